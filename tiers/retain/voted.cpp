#include "tiers/retain/voted.h"

#include <algorithm>
#include <vector>

namespace thermocline {

std::span<const Parameter<VotedOptions>> VotedRetainer::snapkv_parameters() {
  static constexpr std::string_view kPooled[] = {"mean", "largest"};
  static constexpr Parameter<VotedOptions> kParameters[] = {
      {"share", &VotedOptions::share, 0, 1},
      {"rows", &VotedOptions::rows, 0, 1 << 24},
      {"window", &VotedOptions::window, 1, 512},
      {"pool", &VotedOptions::pool, 1, 63},
      {"pooled_by", &VotedOptions::by_largest, 0, 1, kPooled}};
  return kParameters;
}

std::span<const Parameter<VotedOptions>> VotedRetainer::h2o_parameters() {
  return snapkv_parameters().first(2);
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
  const double share =
      options_.rows > 0 ? static_cast<double>(options_.rows) / leave : options_.share;
  const double wanted = std::min<double>(rows, share * rows);
  return std::max<std::uint32_t>(1, static_cast<std::uint32_t>(wanted));
}

// To the votes of the rows that leave, the shares of what one position's query heads attended.
// `scores`: room for every row of the ballot, for each query head.
void VotedRetainer::add_attention(const Ballot& ballot, std::uint32_t query, float* scores,
                                  float* votes) const {
  const HeadShape shape = ballot.shape;
  const std::uint32_t position = ballot.first_query + query * ballot.stride;
  const RawRows &sinks = ballot.sinks, &seen = ballot.seen;
  if (position < seen.first_position) return;
  const std::size_t visible = std::min(seen.rows, position + 1 - seen.first_position);
  const std::size_t stride = sinks.rows + visible;
  const float* heads = ballot.query + std::size_t{query} * shape.heads * shape.key_dim;
  const auto score = [&](const RawRows& rows, std::size_t count, float* to) {
    if (count == 0) return;
    cpu_.sketch.dot_rows(RowFormat::f16, rows.row(ballot.head, 0), rows.layout.bytes(), count,
                         shape.key_dim, heads, static_cast<int>(shape.heads), to, stride);
  };
  score(sinks, sinks.rows, scores);
  score(seen, visible, scores + sinks.rows);
  const std::size_t voted = std::min<std::size_t>(ballot.leave, visible);
  for (std::size_t h = 0; h < shape.heads; ++h) {
    float* weight = scores + h * stride;
    float max = 0, sum = 0;
    cpu_.sketch.weigh(weight, stride, &max, &sum);
    const float share = sum > 0.0f ? 1.0f / sum : 0.0f;
    for (std::size_t r = 0; r < voted; ++r) votes[r] += weight[sinks.rows + r] * share;
  }
}

// Each row's votes become those of the positions around it; of those that leave, so the outermost
// have fewer neighbours.
void VotedRetainer::pool(std::uint32_t rows, float* votes) const {
  const std::vector<float> given(votes, votes + rows);
  const std::uint32_t beside = options_.pool / 2;
  for (std::uint32_t r = 0; r < rows; ++r) {
    const auto first = given.begin() + (r - std::min(r, beside));
    const auto last = given.begin() + std::min(rows, r + beside + 1);
    float pooled = 0;
    for (auto vote = first; vote != last; ++vote)
      pooled = options_.by_largest ? std::max(pooled, *vote) : pooled + *vote;
    votes[r] = options_.by_largest ? pooled : pooled / static_cast<float>(options_.pool);
  }
}

void VotedRetainer::vote(const Ballot& ballot, float* votes) const {
  std::fill_n(votes, ballot.leave, 0.0f);
  std::vector<float> scores(std::size_t{ballot.shape.heads} *
                            (ballot.sinks.rows + ballot.seen.rows));
  for (std::uint32_t q = 0; q < ballot.queries; ++q) add_attention(ballot, q, scores.data(), votes);
  if (voters_ == Voters::last && options_.pool > 1) pool(ballot.leave, votes);
}

}  // namespace thermocline
