#include "runtime/prefill.h"

#include <algorithm>

namespace thermocline {
namespace {

// Logits that are handed out at a time, in bytes: a few rows of a large vocabulary.
constexpr std::size_t kLogitBytes = std::size_t{64} << 20;

// Calls body(first, count) for the parts of [first, last) between multiples of `grid`.
template <typename Body>
Status for_grid(std::uint32_t first, std::uint32_t last, std::uint32_t grid, const Body& body) {
  while (first < last) {
    const std::uint32_t end = std::min(last, first - first % grid + grid);
    TL_TRY(body(first, end - first));
    first = end;
  }
  return {};
}

// How far a prefill is, in rows of layers.
class Meter {
 public:
  Meter(const PrefillOptions& options, std::size_t tokens, std::size_t layers)
      : options_(options), tokens_(tokens), layers_(layers) {}

  Status advance(std::size_t rows) {
    done_ += rows;
    if (options_.progress) options_.progress(progress());
    return options_.stop && options_.stop() ? stopped() : Status();
  }
  // Of work that was asked to stop by itself: says how far it all was.
  Status check(const Status& work) const {
    return !work && work.error().code == ErrorCode::cancelled ? stopped() : work;
  }

 private:
  PrefillProgress progress() const {
    return {static_cast<std::uint32_t>(done_ / layers_), static_cast<std::uint32_t>(tokens_)};
  }
  Status stopped() const {
    return fail(ErrorCode::cancelled, "prefill was stopped after ", progress().done, " of ",
                progress().total, " tokens");
  }

  const PrefillOptions& options_;
  std::size_t tokens_, layers_, done_ = 0;
};

MatView<float> some(MatView<float> of, std::uint32_t first, std::uint32_t count) {
  return of.rows_from(first, count);
}
Projection some(const Projection& of, std::uint32_t first, std::uint32_t count) {
  return {some(of.q, first, count), some(of.k, first, count), some(of.v, first, count)};
}

class SpanPass {
 public:
  SpanPass(const Model& model, Timeline& timeline, const PrefillOptions& options,
           PrefillMemory* memory, Meter* meter)
      : model_(model),
        timeline_(timeline),
        options_(options),
        memory_(*memory),
        meter_(*meter),
        work_(model, &memory->scratch) {}

  // `logits`: of the last row; empty where nobody asks.
  Status run(std::uint32_t first, std::span<const int> tokens, std::span<float> logits) {
    const std::uint32_t rows = static_cast<std::uint32_t>(tokens.size());
    const MatView<float> hidden = memory_.rows.hidden(rows);
    KvCache& cache = *timeline_.cache();
    memory_.at.clear();
    for (std::uint32_t r = 0; r < rows; ++r) memory_.at.push_back({timeline_.id(), first + r});
    TL_TRY_ASSIGN(
        PendingRows pending,
        PendingRows::begin(&cache, memory_.at, options_.alone ? Pass::alone : Pass::prefill));
    work_.embed(tokens, hidden);
    for (std::uint32_t l = 0; l < model_.spec->layers.size(); ++l) {
      const LayerId layer{l};
      const Projection projection = memory_.rows.projection(model_.layer(layer), rows);
      const MatView<float> mixed = memory_.rows.mixed(model_.layer(layer), rows);
      TL_TRY(project(layer, first, hidden, projection));
      TL_TRY(cache.append(layer, projection.k, projection.v));
      TL_TRY(meter_.check(cache.attend(layer, projection.q, mixed, options_.stop)));
      TL_TRY(finish(layer, first, mixed, hidden));
    }
    if (options_.all_logits) TL_TRY(hand_out(first, hidden));
    if (!logits.empty()) {
      const MatView<float> last(logits.data(), 1, logits.size());
      TL_TRY(work_.head(some(hidden, rows - 1, 1), last));
      TL_TRY(check_logits(last));
    }
    return pending.commit();
  }

 private:
  Status project(LayerId layer, std::uint32_t first, MatView<float> hidden,
                 const Projection& projection) {
    const std::uint32_t last = first + static_cast<std::uint32_t>(hidden.rows());
    return for_grid(first, last, kChunkPositions, [&](auto at, auto count) -> Status {
      TL_TRY(work_.project(layer, some(hidden, at - first, count),
                           some(projection, at - first, count)));
      return meter_.advance(0);
    });
  }

  Status finish(LayerId layer, std::uint32_t first, MatView<float> mixed, MatView<float> hidden) {
    const std::uint32_t last = first + static_cast<std::uint32_t>(hidden.rows());
    return for_grid(first, last, kChunkPositions, [&](auto at, auto count) -> Status {
      TL_TRY(work_.finish(layer, some(mixed, at - first, count), some(hidden, at - first, count)));
      return meter_.advance(count);
    });
  }

  Status hand_out(std::uint32_t first, MatView<float> hidden) {
    const std::size_t vocabulary = model_.weights->vocabulary();
    const std::uint32_t rows = static_cast<std::uint32_t>(
        std::clamp<std::size_t>(kLogitBytes / (vocabulary * sizeof(float)), 1, kChunkPositions));
    if (memory_.logits.size() == 0) {
      TL_TRY_ASSIGN(memory_.logits, Buffer::create(rows * vocabulary * sizeof(float)));
    }
    const std::uint32_t last = first + static_cast<std::uint32_t>(hidden.rows());
    return for_grid(first, last, rows, [&](auto at, auto count) -> Status {
      const MatView<float> logits(memory_.logits.as<float>().data(), count, vocabulary);
      TL_TRY(work_.head(some(hidden, at - first, count), logits));
      TL_TRY(check_logits(logits));
      options_.all_logits(at, logits);
      return {};
    });
  }

  const Model& model_;
  Timeline& timeline_;
  const PrefillOptions& options_;
  PrefillMemory& memory_;
  Meter& meter_;
  LayerWork work_;
};

Status grow(const Model& model, std::size_t rows, PrefillMemory* memory) {
  if (memory->scratch.rows() == 0) {
    TL_TRY_ASSIGN(memory->scratch, LayerScratch::create(model, kChunkPositions));
  }
  if (memory->rows.capacity() < rows) {
    memory->rows = RowState();  // given back before more is taken
    TL_TRY_ASSIGN(memory->rows, RowState::create(*model.spec, rows));
    memory->at.reserve(rows);
  }
  return {};
}

}  // namespace

std::uint64_t PrefillMemory::bytes_for(const Model& model, std::size_t rows) {
  if (rows == 0) return 0;
  return RowState::bytes_for(*model.spec, rows) + rows * sizeof(Token) +
         LayerScratch::bytes_for(model, kChunkPositions);
}

std::uint64_t PrefillMemory::bytes() const {
  return rows.bytes() + scratch.bytes() + at.capacity() * sizeof(Token) + logits.size();
}

Status prefill(const Model& model, Timeline& timeline, std::span<const int> tokens,
               std::span<float> logits, const PrefillOptions& options, PrefillMemory* memory) {
  const std::uint32_t start = timeline.length();
  const std::uint32_t end = start + static_cast<std::uint32_t>(tokens.size());
  Meter meter(options, tokens.size(), model.spec->layers.size());
  TL_TRY(grow(model, std::min<std::size_t>(tokens.size(), kSpanRows), memory));
  SpanPass pass(model, timeline, options, memory, &meter);
  if (options.alone) return pass.run(start, tokens, logits);
  return for_grid(start, end, kSpanRows, [&](std::uint32_t first, std::uint32_t count) {
    return pass.run(first, tokens.subspan(first - start, count),
                    first + count == end ? logits : std::span<float>{});
  });
}

}  // namespace thermocline
