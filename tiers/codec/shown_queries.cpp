#include "tiers/codec/shown_queries.h"

#include <algorithm>
#include <cmath>

namespace thermocline {

Result<std::span<const float>> ShownQueries::carry(const Fitting& of, Fit* fit) {
  std::span<const float> queries = of.query_squares;
  if (of.before && of.before->common) {
    const std::span<const float> last = of.before->common->bytes.as<float>();
    if (queries.empty()) queries = last;
    fit->as_before = std::ranges::equal(queries, last);
  }
  if (!queries.empty() && !fit->as_before) {
    TL_TRY_ASSIGN(fit->common, Buffer::create(queries.size_bytes()));
    std::copy(queries.begin(), queries.end(), fit->common.as<float>().begin());
  }
  return queries;
}

const char* ShownQueries::flaw(FitShape shape, std::span<const std::byte> common) {
  if (common.empty()) return nullptr;
  const std::size_t channels = std::size_t{shape.heads} * shape.dim;
  if (common.size() != bytes(shape)) return "has queries of another number of channels";
  const auto* square = reinterpret_cast<const float*>(common.data());
  const bool are_squares =
      std::all_of(square, square + channels, [](float x) { return std::isfinite(x) && x >= 0; });
  return are_squares ? nullptr : "has squares of queries that are none";
}

}  // namespace thermocline
