#include "retrieval/select/roles.h"

#include <algorithm>
#include <cstring>

#include "retrieval/index/head_records.h"

namespace thermocline {
namespace {

// More of a prompt's queries change no head's share by a hundredth.
constexpr std::uint32_t kMostQueries = 64;

// How many rows of a head are at positions before `end`.
std::uint32_t rows_before(const Sealing& sealing, std::uint32_t head, std::uint32_t end) {
  const RawRows& rows = sealing.rows;
  if (end <= rows.first_position) return 0;
  const std::uint32_t offset = end - rows.first_position;
  if (sealing.which.empty()) return std::min(offset, rows.rows);
  const auto of_head = sealing.which.subspan(std::size_t{head} * rows.rows, rows.rows);
  return static_cast<std::uint32_t>(std::lower_bound(of_head.begin(), of_head.end(), offset) -
                                    of_head.begin());
}

}  // namespace

std::span<const Parameter<RolesOptions>> RolesSelector::parameters() {
  static constexpr Parameter<RolesOptions> kParameters[] = {{"far", &RolesOptions::far, 0, 1}};
  return kParameters;
}

Result<std::unique_ptr<RolesSelector>> RolesSelector::create(const RolesOptions& options,
                                                             const CpuTable& cpu) {
  TL_TRY(check("roles", parameters(), options));
  return std::unique_ptr<RolesSelector>(new RolesSelector(options, cpu));
}

std::uint64_t RolesSelector::index_bytes(HeadShape, std::uint64_t /*rows*/) const {
  return HeadRecords::of_head(sizeof(Measured));
}

// To far[query head], the shares of attention that one query gives to rows that are far.
void RolesSelector::add_shares(const Sealing& sealing, std::uint32_t head, std::uint32_t query,
                               std::vector<float>* scores, std::vector<double>* far) const {
  const HeadShape shape = sealing.shape;
  const std::uint32_t position = sealing.first_query + query * sealing.query_stride;
  const std::uint32_t visible = rows_before(sealing, head, position + 1);
  const std::uint32_t not_recent = rows_before(sealing, head, position + 1 - sealing.recent);
  const std::size_t stride = sealing.sinks.rows + visible;
  scores->resize(stride * shape.heads);
  const float* heads =
      sealing.query + (std::size_t{head} * sealing.queries + query) * shape.heads * shape.key_dim;
  const auto score = [&](const RawRows& rows, std::uint32_t count, float* to) {
    if (count == 0) return;
    cpu_.sketch.dot_rows(RowFormat::f16, rows.row(head, 0), rows.layout.bytes(), count,
                         shape.key_dim, heads, static_cast<int>(shape.heads), to, stride);
  };
  score(sealing.sinks, sealing.sinks.rows, scores->data());
  score(sealing.rows, visible, scores->data() + sealing.sinks.rows);
  for (std::size_t h = 0; h < shape.heads; ++h) {
    float* weight = scores->data() + h * stride;
    float max = 0, sum = 0;
    cpu_.sketch.weigh(weight, stride, &max, &sum);
    double of_far = 0;
    for (std::uint32_t r = 0; r < not_recent; ++r) of_far += weight[sealing.sinks.rows + r];
    if (sum > 0.0f) (*far)[h] += of_far / sum;
  }
}

// By queries that see at least as many positions of the segment that are far as that are recent.
RolesSelector::Measured RolesSelector::measure(const Sealing& sealing, std::uint32_t head) const {
  const RawRows& rows = sealing.rows;
  const std::uint32_t last = sealing.which.empty()
                                 ? rows.rows - 1
                                 : sealing.which[(head + 1) * std::size_t{rows.rows} - 1];
  const std::uint32_t step = (sealing.queries + kMostQueries - 1) / kMostQueries;
  std::vector<float> scores;
  std::vector<double> far(sealing.shape.heads);
  Measured measured;
  for (std::uint32_t q = 0; q < sealing.queries; q += step) {
    const std::uint32_t position = sealing.first_query + q * sealing.query_stride;
    if (position < rows.first_position + 2 * sealing.recent) continue;
    if (position > rows.first_position + last) break;
    add_shares(sealing, head, q, &scores, &far);
    ++measured.queries;
  }
  if (measured.queries > 0)
    measured.far = static_cast<float>(*std::max_element(far.begin(), far.end()) / measured.queries);
  return measured;
}

Result<Formation> RolesSelector::form(const Sealing& sealing, const Workers& workers) const {
  const RawRows& rows = sealing.rows;
  TL_TRY_ASSIGN(const auto records, HeadRecords::create(name(), rows.heads, rows.rows,
                                                        index_bytes(sealing.shape, rows.rows)));
  workers.parallel(rows.heads, 1, [&](std::size_t first, std::size_t end) {
    for (std::size_t h = first; h < end; ++h) {
      const auto head = static_cast<std::uint32_t>(h);
      const Measured measured = measure(sealing, head);
      std::memcpy(records->head(head), &measured, sizeof(measured));
    }
  });
  Formation formation;
  formation.index = records;
  return formation;
}

void RolesSelector::save(const Formation& formation, RecordWriter* out) const {
  static_cast<const HeadRecords&>(*formation.index).save(out);
}

Result<Formation> RolesSelector::load(HeadShape shape, std::uint32_t heads, std::uint32_t rows,
                                      RecordReader* in) const {
  TL_TRY_ASSIGN(const auto records,
                HeadRecords::load(name(), heads, rows, index_bytes(shape, rows), in));
  for (std::uint32_t h = 0; h < heads; ++h) {
    Measured measured;
    std::memcpy(&measured, records->head(h), sizeof(measured));
    if (!(measured.far >= 0.0f && measured.far <= 1.001f))  // of sums of floats
      return in->corrupt("index", "has a share of attention of ", measured.far, ", in head ", h);
  }
  Formation formation;
  formation.index = records;
  return formation;
}

bool RolesSelector::reads_everything(const ListQuery& list) const {
  for (const Run& run : list.runs) {
    const HeadRecords* records = run.index ? HeadRecords::of(name(), *run.index) : nullptr;
    if (!records) continue;
    Measured measured;
    std::memcpy(&measured, records->head(list.head), sizeof(measured));
    if (measured.queries > 0) return measured.far > options_.far;
  }
  return true;
}

Result<Chosen> RolesSelector::choose(const LayerQuery& query, const Workers&,
                                     std::span<ReadList> out) {
  TL_CHECK(query.lists.size() == out.size());
  for (std::size_t l = 0; l < out.size(); ++l) {
    if (reads_everything(query.lists[l]))
      out[l].take_all(query.lists[l].runs.size());
    else
      out[l].clear();
  }
  return Chosen{};
}

}  // namespace thermocline
