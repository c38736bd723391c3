#include "tiers/retain/voted.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace thermocline {
namespace {

std::uint32_t part_of(std::uint32_t rows, double share) {
  const double wanted = std::min<double>(rows, share * rows);
  return std::max<std::uint32_t>(1, static_cast<std::uint32_t>(wanted));
}

}  // namespace

std::span<const Parameter<VotedOptions>> VotedRetainer::snapkv_parameters() {
  static constexpr std::string_view kPooled[] = {"mean", "largest"};
  static constexpr Parameter<VotedOptions> kParameters[] = {
      {"share", &VotedOptions::share, 0, 1, {}, {}, {}, "rows"},
      {"rows", &VotedOptions::rows, 0, 1 << 24},
      {"window", &VotedOptions::window, 1, 512},
      {"pool", &VotedOptions::pool, 1, 63},
      {"pooled_by", &VotedOptions::by_largest, 0, 1, kPooled}};
  return kParameters;
}

std::span<const Parameter<VotedOptions>> VotedRetainer::h2o_parameters() {
  static constexpr Parameter<VotedOptions> kParameters[] = {
      {"share", &VotedOptions::share, 0, 1},  // of what steps leave, whatever `rows` says
      {"rows", &VotedOptions::rows, 0, 1 << 24}};
  return kParameters;
}

Result<std::unique_ptr<VotedRetainer>> VotedRetainer::snapkv(const VotedOptions& options,
                                                             const CpuTable& cpu) {
  TL_TRY(check("snapkv", snapkv_parameters(), options));
  if (options.pool % 2 == 0)
    return fail(ErrorCode::invalid_argument, "snapkv: pool = ", options.pool,
                " has no row in its middle: name an odd number");
  return std::unique_ptr<VotedRetainer>(new VotedRetainer(Voters::last, options, cpu));
}

Result<std::unique_ptr<VotedRetainer>> VotedRetainer::h2o(const VotedOptions& options,
                                                          const CpuTable& cpu) {
  TL_TRY(check("h2o", h2o_parameters(), options));
  return std::unique_ptr<VotedRetainer>(new VotedRetainer(Voters::all, options, cpu));
}

std::uint32_t VotedRetainer::kept(std::uint32_t rows, std::uint32_t leave) const {
  return part_of(rows,
                 options_.rows > 0 ? static_cast<double>(options_.rows) / leave : options_.share);
}

std::uint32_t VotedRetainer::kept_of_steps(std::uint32_t rows) const {
  return voters_ == Voters::all ? part_of(rows, options_.share) : rows;
}

// To the votes of the rows, the shares of what one position's query heads attended, as often as
// there are positions that it stands for.
void VotedRetainer::add_attention(const Ballot& ballot, std::uint32_t query, float* votes) const {
  const HeadShape shape = ballot.shape;
  const std::uint32_t position = ballot.first_query + query * ballot.stride;
  const RawRows &sinks = ballot.sinks, &seen = ballot.seen;
  if (position < seen.first_position) return;
  const std::size_t visible = std::min(seen.rows, position + 1 - seen.first_position);
  const std::size_t stride = sinks.rows + visible;
  const std::size_t first_head = std::size_t{query} * shape.heads;
  const auto score = [&](const RawRows& rows, std::size_t count, float* to) {
    if (count == 0) return;
    cpu_.sketch.dot_rows(RowFormat::f16, rows.row(ballot.head, 0), rows.layout.bytes(), count,
                         shape.key_dim, ballot.query + first_head * shape.key_dim,
                         static_cast<int>(shape.heads), to, stride);
  };
  score(sinks, sinks.rows, ballot.scores);
  score(seen, visible, ballot.scores + sinks.rows);
  const std::size_t voted = std::min<std::size_t>(ballot.rows, visible);
  for (std::size_t h = 0; h < shape.heads; ++h) {
    float* weight = ballot.scores + h * stride;
    AttnState whole;
    cpu_.sketch.weigh(weight, stride, &whole.max, &whole.sum);
    const float max = whole.max;
    if (ballot.attended) whole = ballot.attended[first_head + h];
    if (!(whole.sum > 0.0f)) continue;  // of what is not a number neither
    const float share = static_cast<float>(ballot.stride) * std::exp(max - whole.max) / whole.sum;
    for (std::size_t r = 0; r < voted; ++r) {  // no more than all, whatever rounding makes of it
      const float vote = weight[sinks.rows + r] * share;
      votes[r] += vote > 0.0f ? std::min(vote, static_cast<float>(ballot.stride)) : 0.0f;
    }
  }
}

// As votes those of the positions around a row; of those that are voted on, so the outermost have
// fewer neighbours.
void VotedRetainer::add_pooled(std::span<const float> given, float* votes) const {
  const std::size_t beside = options_.pool / 2;
  for (std::size_t r = 0; r < given.size(); ++r) {
    const std::size_t first = r - std::min(r, beside);
    const std::size_t last = std::min(given.size(), r + beside + 1);
    float pooled = 0;
    for (const float vote : given.subspan(first, last - first))
      pooled = options_.by_largest ? std::max(pooled, vote) : pooled + vote;
    votes[r] += options_.by_largest ? pooled : pooled / static_cast<float>(options_.pool);
  }
}

void VotedRetainer::vote(const Ballot& ballot, float* votes) const {
  const bool pools = voters_ == Voters::last && options_.pool > 1;
  std::vector<float> given(pools ? ballot.rows : 0);
  for (std::uint32_t q = 0; q < ballot.queries; ++q)
    add_attention(ballot, q, pools ? given.data() : votes);
  if (pools) add_pooled(given, votes);
}

}  // namespace thermocline
