// What the rows of a segment share under a codec that fits them: made when they are sealed, kept in
// a session's file before what the selector keeps, and read back from there.
#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "kernels/format/row_lowrank.h"
#include "runtime/kv_impl.h"

namespace thermocline {
namespace {

// In a file, of a side's common part; or that the whole fit is in the record of a later layer.
enum class Common : std::uint32_t { none = 0, here = 1, as_before = 2, with_later = 3 };

Common common_of(const SegmentFit& fit, const SegmentFit* before) {
  if (!fit) return Common::with_later;
  if (!fit.common) return Common::none;
  return before && before->common == fit.common ? Common::as_before : Common::here;
}

std::span<const std::byte> bytes_of(const std::shared_ptr<const FitBytes>& part) {
  return part ? part->bytes.bytes() : std::span<std::byte>();
}

}  // namespace

std::uint32_t KvCache::Impl::side_dim(LayerId l, Side side) const {
  return side == Side::keys ? spec(l).key_dim : spec(l).value_dim;
}

const Rotation* KvCache::Impl::rotation_of(LayerId l, Side side) const {
  const Rotation& rotation = angles[angles_of_layer[index(l)]].rotation;
  return side == Side::keys && rotation.pairs > 0 ? &rotation : nullptr;
}

// The part, if there is one, with its place in the ledger. The host has it as well where a device
// chooses: a prefill over such keys is the host's, and so is the next segment's fit.
Status KvCache::Impl::hold(LayerId l, Buffer bytes, std::span<const std::uint16_t> offsets,
                           std::shared_ptr<const FitBytes>* part) {
  if (bytes.size() == 0) return {};
  auto held = std::make_shared<FitBytes>();
  TL_TRY_ASSIGN(held->memory, budget->reserve(Tier::host, Purpose::index, bytes.size()));
  held->bytes = std::move(bytes);
  if (plan.layers[index(l)].chosen_there()) {
    TL_TRY_ASSIGN(held->there, table->put(held->bytes.bytes(), Tier::device, Purpose::index,
                                          std::as_bytes(offsets)));
  }
  *part = std::move(held);
  return {};
}

Status KvCache::Impl::fit_rows(LayerId l, const RawRows& raw, const Formation& formation,
                               const Segment* before, MatView<const float> queries,
                               Segment* segment) {
  for (const Side side : kSides) {
    const Fitter* const fitter = method.compress.of(side).fitter();
    if (!fitter || fitter->layers() > 1) continue;
    Fitting fitting{side,
                    raw,
                    formation.order,
                    formation.always,
                    rotation_of(l, side),
                    before ? &before->fit(side) : nullptr,
                    segment->offset};
    std::vector<float> squares;
    if (side == Side::keys && fitter->asks_for_queries() && !queries.empty()) {
      TL_TRY_ASSIGN(squares, query_squares(l, queries));
      fitting.query_squares = squares;
    }
    TL_TRY_ASSIGN(segment->fits[static_cast<std::size_t>(side)], fit_side(l, *fitter, fitting));
  }
  return {};
}

Result<SegmentFit> KvCache::Impl::fit_side(LayerId l, const Fitter& fitter,
                                           const Fitting& fitting) {
  const FitShape of{fitting.rows.heads, fitting.dim()};
  const std::uint32_t count = fitting.rows.rows;
  TL_TRY_ASSIGN(Reservation planned,
                budget->reserve(Tier::host, Purpose::index,
                                fitter.bytes(of, count, method.select->always_rows(count))));
  TL_TRY_ASSIGN(Fit made, fitter.fit(fitting, *workers));
  TL_CHECK(made.common.size() + made.own.size() <= planned.bytes());
  planned = Reservation();
  SegmentFit fit;
  if (made.as_before) fit.common = fitting.before->common;
  TL_TRY(hold(l, std::move(made.common), {}, &fit.common));
  TL_TRY(hold(l, std::move(made.own), fitting.offset, &fit.own));
  fit.heads = of.heads;
  fit.rotation = fitting.rotation;
  fit.facts = fitter.facts(of, count, bytes_of(fit.common), bytes_of(fit.own));
  return fit;
}

LowRankKeys KvCache::Impl::low_rank_there(const Segment& segment, std::uint32_t head) const {
  const SegmentFit& fit = segment.fit(Side::keys);
  if (!fit) return {};
  const SideFit here = segment.fit_of(Side::keys, head);
  const auto there = [](const FitBytes& part, const auto* at) {
    const auto offset = reinterpret_cast<const std::byte*>(at) - part.bytes.data();
    return reinterpret_cast<decltype(at)>(part.there.space().address + offset);
  };
  const std::uint32_t dim = side_dim(segment.layer, Side::keys);
  const RowLowRank::Kept kept = RowLowRank::kept(here, dim);
  LowRankKeys keys{.rank = RowLowRank::rank(here),
                   .first_position = segment.first_position,
                   .basis = there(*fit.common, RowLowRank::basis(here, dim)),
                   .coefficients = there(*fit.own, RowLowRank::coefficients(here, 0)),
                   .kept = static_cast<std::uint32_t>(kept.numbers.size()),
                   .kept_number = there(*fit.own, kept.numbers.data()),
                   .kept_key = there(*fit.own, kept.rows)};
  if (!segment.offset.empty())
    keys.offset = reinterpret_cast<const std::uint16_t*>(fit.own->there.space().address +
                                                         fit.own->bytes.size()) +
                  std::size_t{head} * segment.rows;
  return keys;
}

Result<std::vector<float>> KvCache::Impl::query_squares(LayerId l,
                                                        MatView<const float> queries) const {
  const LayerSpec& s = spec(l);
  const auto count = static_cast<std::uint32_t>(queries.rows());
  const QuerySample sample = QuerySample::last(count, rows[0].position + count);
  const std::size_t of_head = std::size_t{sample.count} * s.q_heads / s.kv_heads;
  const std::size_t bytes = of_head * s.kv_heads * s.key_dim * sizeof(float);
  TL_TRY_ASSIGN(const Reservation memory, budget->reserve(Tier::host, Purpose::sealing, bytes));
  TL_TRY_ASSIGN(const Buffer asked, Buffer::create(bytes));
  const float* query = asked.as<float>().data();
  sample_queries(l, queries, sample, asked.as<float>().data());
  std::vector<float> squares(std::size_t{s.kv_heads} * s.key_dim);
  for (std::size_t h = 0; h < s.kv_heads; ++h)
    for (std::uint32_t i = 0; i < s.key_dim; ++i) {
      double sum = 0;
      for (std::size_t q = 0; q < of_head; ++q)
        sum += std::pow(double{query[(h * of_head + q) * s.key_dim + i]}, 2);
      const auto mean = static_cast<float>(sum / static_cast<double>(of_head));
      squares[h * s.key_dim + i] = std::isfinite(mean) ? mean : std::numeric_limits<float>::max();
    }
  return squares;
}

std::vector<RankReport> KvCache::Impl::ranks(TimelineId id) {
  std::vector<RankReport> ranks;
  for (std::uint32_t l = 0; l < options.layers.size(); ++l)
    for (const Side side : kSides) {
      RankReport of{.layer = l, .side = side == Side::keys ? "keys" : "values"};
      double rows_so_far = 0, captured = 0;
      const FitBytes* basis = nullptr;
      for (const Run& run : layer_state(id, LayerId{l}).runs) {
        const SegmentFit& fit = run.rows->fit(side);
        if (fit.facts.rank == 0 || fit.first_head > 0) continue;
        of.layers = fit.heads / run.rows->heads;
        of.channels = fit.heads * side_dim(LayerId{l}, side);
        of.rank = std::max(of.rank, fit.facts.rank);
        ++of.segments;
        of.bases += fit.common.get() != basis;
        basis = fit.common.get();
        const double count = run.rows->rows;
        rows_so_far += count;
        captured += count * fit.facts.captured;
      }
      if (of.segments == 0) continue;
      of.captured = captured / rows_so_far;
      ranks.push_back(std::move(of));
    }
  return ranks;
}

void KvCache::Impl::save_fits(const Segment& segment, const Segment* before,
                              RecordWriter* out) const {
  for (const Side side : kSides) {
    if (!method.compress.of(side).fitter()) continue;
    const SegmentFit& fit = segment.fit(side);
    const Common common = common_of(fit, before ? &before->fit(side) : nullptr);
    out->value(static_cast<std::uint32_t>(common));
    if (common == Common::with_later) continue;
    if (common == Common::here) out->list(bytes_of(fit.common));
    out->list(bytes_of(fit.own));
  }
}

Status KvCache::Impl::load_fits(LayerId l, const Segment* before, RecordReader* in,
                                const std::shared_ptr<Segment>& segment,
                                std::vector<Gathered>* waiting) {
  const auto part = [&](const char* field, std::span<const std::uint16_t> offsets,
                        std::shared_ptr<const FitBytes>* to) -> Status {
    std::uint64_t count = 0;
    TL_TRY(in->value(field, &count));
    TL_TRY_ASSIGN(const std::span<const std::byte> from, in->raw(field, count));
    TL_TRY_ASSIGN(Buffer bytes, Buffer::create(from.size()));
    std::copy(from.begin(), from.end(), bytes.data());
    return hold(l, std::move(bytes), offsets, to);
  };
  for (const Side side : kSides) {
    const Fitter* const fitter = method.compress.of(side).fitter();
    if (!fitter) continue;
    Gathered alone;
    alone.segments = {segment};
    Gathered* const of = fitter->layers() > 1 ? join(segment, waiting) : &alone;
    if (!of)
      return in->corrupt("rows", "is ", segment->rows, " from position ", segment->first_position,
                         ", which a layer that shares their fit has not");
    std::uint32_t common = 0;
    TL_TRY(in->value("fit", &common));
    const bool later = fitter->layers() > 1 && !complete(*of);
    if (later != (common == static_cast<std::uint32_t>(Common::with_later)))
      return in->corrupt("fit", "is of kind ", common, ", in a layer whose fit is ",
                         later ? "in the record of a later one" : "its own or of those before it");
    if (later) continue;
    SegmentFit fit;
    if (common == static_cast<std::uint32_t>(Common::here)) {
      TL_TRY(part("fit", {}, &fit.common));
    } else if (common == static_cast<std::uint32_t>(Common::as_before) && before) {
      fit.common = before->fit(side).common;
    } else if (common != static_cast<std::uint32_t>(Common::none)) {
      return in->corrupt("fit", "is of kind ", common, ", in a segment ",
                         before ? "after another" : "without one before it");
    }
    TL_TRY(part("fit", segment->offset, &fit.own));
    fit.heads = static_cast<std::uint32_t>(of->segments.size()) * segment->heads;
    const FitShape shape{fit.heads, side_dim(l, side)};
    if (const char* flaw =
            fitter->flaw(shape, segment->rows, bytes_of(fit.common), bytes_of(fit.own)))
      return in->corrupt("fit", flaw);
    fit.rotation = rotation_of(l, side);
    fit.facts = fitter->facts(shape, segment->rows, bytes_of(fit.common), bytes_of(fit.own));
    share_fit(fit, side, of->segments);
    if (of != &alone) waiting->erase(waiting->begin() + (of - waiting->data()));
  }
  return {};
}

}  // namespace thermocline
