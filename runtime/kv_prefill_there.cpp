// Prefill by a device: queries of a layer go over once, then whatever they see, in the order in
// which the host would read it: sinks, sealed runs, the span. Rows at home on the device are read
// where they lie; others are packed, and cross a piece at a time while those before them are
// attended.
//
// Slots are on the grid of positions that segments are cut on, so where a call begins and ends does
// not show in a row's bits, nor does a row's home. Whether to stop is asked before each piece.
#include <algorithm>
#include <cstring>
#include <numeric>

#include "runtime/kv_impl.h"

namespace thermocline {
namespace {

StretchFormat format_of(const RowLayout& layout, bool masked) {
  return {layout.key_format, layout.value_format, layout.key_bytes, layout.bytes(), masked};
}

}  // namespace

// Of a longer call than there is memory for so many queries at a time: each of them reads anew.
Status KvCache::Impl::prefill_there(LayerId l, MatView<const float> queries, const RawRows& raw,
                                    MatView<float> out, const StopSign& stop) {
  PrefillShape shape;
  shape.head = this->shape(l);
  shape.kv_heads = spec(l).kv_heads;
  shape.window = spec(l).window;
  for (std::uint32_t first = 0; first < rows.size(); first += shape.rows) {
    shape.first_position = rows[first].position;
    shape.rows = std::min(plan.prefill_rows, static_cast<std::uint32_t>(rows.size()) - first);
    TL_TRY(device_prefill->begin(shape));
    TL_TRY(send_queries(l, first, queries, shape, stop));
    TL_TRY(send_rows(l, raw, shape, stop));
    TL_TRY(take_results(shape, out.rows_from(first, shape.rows), stop));
  }
  return {};
}

// Those of the step's rows from `step_row` on.
Status KvCache::Impl::send_queries(LayerId l, std::uint32_t step_row, MatView<const float> queries,
                                   const PrefillShape& shape, const StopSign& stop) {
  const std::uint32_t dim = shape.head.key_dim;
  for (std::uint32_t first = 0; first < shape.rows;) {
    TL_TRY(stop.check());
    TL_TRY_ASSIGN(const std::span<std::byte> outbox, device_prefill->outbox());
    const auto count = static_cast<std::uint32_t>(
        std::min<std::uint64_t>(outbox.size() / shape.query_row_bytes(), shape.rows - first));
    workers->parallel(count, 16, [&](std::size_t from, std::size_t to) {
      alignas(64) float query[kMaxHeadSize];
      for (std::size_t r = from; r < to; ++r)
        for (std::uint32_t h = 0; h < shape.q_heads(); ++h) {
          const std::size_t row = step_row + first + r;
          std::byte* const record =
              outbox.data() + r * shape.query_row_bytes() + std::size_t{h} * shape.query_bytes();
          std::copy_n(queries.row(row) + std::size_t{h} * dim, dim, query);
          turn_query(l, row, query);
          const float power = query_power({query, dim});
          cpu->dense.scale(1.0f / power, dim, query);
          cpu->dense.to_half(query, dim, record);
          std::memcpy(record + dim * sizeof(f16), &power, sizeof power);
        }
    });
    TL_TRY(device_prefill->send_queries(first, count));
    counted.device_bytes_exchanged += count * shape.query_row_bytes();
    first += count;
  }
  return {};
}

// Whatever the queries see.
Status KvCache::Impl::send_rows(LayerId l, const RawRows& raw, const PrefillShape& shape,
                                const StopSign& stop) {
  const std::uint32_t sinks = plan.layers[index(l)].sinks;
  const std::uint32_t end = shape.first_position + shape.rows;
  if (sees_from == 0) {
    const LayerState& layer = layer_state(rows[0].timeline, l);
    TL_TRY(send_raw(layer.sinks.view(0, std::min(sinks, end)), 0, stop));
    TL_TRY(send_runs(l, stop));
  }
  std::uint32_t first = std::max(raw.first_position, sees_from);
  if (shape.window > 0 && shape.first_position >= shape.window)
    first = std::max(first, shape.first_position + 1 - shape.window);
  if (first >= end) return {};
  return send_raw(raw.part(first - raw.first_position, end - first), sinks, stop);
}

// Raw rows, whose slots are counted from `origin` on.
Status KvCache::Impl::send_raw(const RawRows& raw, std::uint32_t origin, const StopSign& stop) {
  const std::uint64_t position_bytes = std::uint64_t{raw.heads} * raw.layout.bytes();
  for (std::uint32_t first = 0; first < raw.rows;) {
    TL_TRY(stop.check());
    TL_TRY_ASSIGN(const std::span<std::byte> outbox, device_prefill->outbox());
    const std::uint32_t slot = (raw.first_position + first - origin) % kBlockRows;
    // Whole blocks: one that came in two parts would be two.
    const std::uint64_t room = outbox.size() / position_bytes / kBlockRows * kBlockRows - slot;
    const auto count = static_cast<std::uint32_t>(std::min<std::uint64_t>(room, raw.rows - first));
    const std::size_t head_bytes = std::size_t{count} * raw.layout.bytes();
    stretches.clear();
    for (std::uint32_t h = 0; h < raw.heads; ++h)
      stretches.push_back(
          {outbox.data() + h * head_bytes, h, count, slot, raw.first_position + first});
    workers->parallel(raw.heads, 1, [&](std::size_t from, std::size_t to) {
      for (std::size_t h = from; h < to; ++h)
        std::memcpy(outbox.data() + h * head_bytes, raw.row(static_cast<std::uint32_t>(h), first),
                    head_bytes);
    });
    TL_TRY(attend_stretches(format_of(raw.layout, true), count * position_bytes));
    first += count;
  }
  return {};
}

Status KvCache::Impl::send_runs(LayerId l, const StopSign& stop) {
  const bool stay = plan.layers[index(l)].home.reach == Reach::device;
  if (!list_runs(l)) return {};
  TL_TRY(stay ? reader->start(index(l), FoldOrder::any, DeviceRows::stay)
              : reader->start(index(l), FoldOrder::in_list));
  TL_TRY(reader->add(requests));
  TL_TRY(attend_at_home(l));
  while (true) {
    TL_TRY_ASSIGN(const auto wave, reader->next());
    if (wave.empty()) return {};
    // Of all heads in turn: what is sent at a time is work for each.
    sending.resize(wave.size());
    std::iota(sending.begin(), sending.end(), 0u);
    std::ranges::stable_sort(sending, {}, [&](std::uint32_t f) { return wave[f].ordinal; });
    for (std::size_t first = 0; first < sending.size();) {
      TL_TRY(stop.check());
      TL_TRY_ASSIGN(const std::size_t folds,
                    send_folds(l, wave, std::span(sending).subspan(first)));
      first += folds;
    }
  }
}

// Of rows that stay: those of a segment are one stretch in each head.
Status KvCache::Impl::attend_at_home(LayerId l) {
  const StretchFormat format = format_of(plan.layers[index(l)].sealed, false);
  stretches.clear();
  for (const ReadyFold& ready : reader->on_device()) {
    const std::byte* const from = ready.fold.blocks.front().key;
    if (!stretches.empty()) {
      RowStretch& last = stretches.back();
      if (last.head == ready.list &&
          last.rows + std::size_t{last.count} * format.row_bytes == from &&
          last.count % kBlockRows == 0) {
        last.count += ready.rows;
        continue;
      }
    }
    if (stretches.size() == DevicePrefill::kMostStretches) {
      TL_TRY(attend_stretches(format, 0));
      stretches.clear();
    }
    stretches.push_back({from, ready.list, ready.rows});
  }
  return attend_stretches(format, 0);
}

// As many folds of the wave, in that order, as a piece has room for: how many.
Result<std::size_t> KvCache::Impl::send_folds(LayerId l, std::span<const ReadyFold> wave,
                                              std::span<const std::uint32_t> order) {
  const StretchFormat format = format_of(plan.layers[index(l)].sealed, false);
  TL_TRY_ASSIGN(const std::span<std::byte> outbox, device_prefill->outbox());
  stretches.clear();
  packed_at.clear();
  std::size_t sent = 0;
  for (const std::uint32_t f : order) {
    const ReadyFold& ready = wave[f];
    const std::size_t bytes = std::size_t{ready.rows} * format.row_bytes;
    if (sent + bytes > outbox.size() || stretches.size() == DevicePrefill::kMostStretches) break;
    packed_at.push_back(outbox.data() + sent);
    stretches.push_back({packed_at.back(), ready.list, ready.rows});
    sent += bytes;
  }
  const std::size_t folds = stretches.size();
  TL_CHECK(folds > 0);  // there is room for the largest
  damaged.assign(folds, 0);
  workers->parallel(folds, 1, [&](std::size_t first, std::size_t last) {
    for (std::size_t i = first; i < last; ++i) {
      damaged[i] = !verify(wave[order[i]]);
      if (!damaged[i]) pack_rows(wave[order[i]], packed_at[i]);
    }
  });
  for (std::size_t i = 0; i < folds; ++i) {
    if (!damaged[i]) continue;
    TL_TRY(reader->read_again(wave[order[i]]));
    pack_rows(wave[order[i]], packed_at[i]);
  }
  std::ranges::stable_sort(stretches, {}, &RowStretch::head);  // a list's stay in their order
  TL_TRY(attend_stretches(format, sent));
  return folds;
}

Status KvCache::Impl::attend_stretches(const StretchFormat& format, std::uint64_t sent) {
  counted.device_bytes_fetched += sent;
  counted.device_bytes_exchanged += stretches.size() * sizeof(RowStretch);
  return device_prefill->attend(format, stretches, sent);
}

Status KvCache::Impl::take_results(const PrefillShape& shape, MatView<float> out,
                                   const StopSign& stop) {
  for (std::uint32_t first = 0; first < shape.rows;) {
    TL_TRY(stop.check());
    TL_TRY_ASSIGN(const MatView<const float> some, device_prefill->results(first));
    workers->parallel(some.rows(), 16, [&](std::size_t from, std::size_t to) {
      for (std::size_t r = from; r < to; ++r)
        std::copy_n(some.row(r), some.cols(), out.row(first + r));
    });
    counted.device_bytes_exchanged += some.rows() * shape.result_row_bytes();
    first += static_cast<std::uint32_t>(some.rows());
  }
  return {};
}

}  // namespace thermocline
