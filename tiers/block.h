// The nouns of the cache. A sequence's rows in a layer are
//
//     sinks | runs of sealed segments | tail
//
// A segment is formed once from tail rows and is immutable and shared afterwards. Blocks of 64 of
// its rows are the unit of addressing; a Pick (block and row set) is the unit of selection.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kernels/attend.h"
#include "kernels/base/ids.h"
#include "tiers/fit.h"

namespace thermocline {

// The longest segment; longer spans are cut at multiples of it, so that forming costs the same for
// each row and a row's place in its segment fits 16 bits.
inline constexpr std::uint32_t kSegmentRows = 8192;

// One KV head's K and V of a row lie side by side: what is read together is stored together.
// Bytes are of one side of one row, padding included.
struct RowLayout {
  RowFormat key_format = RowFormat::f16, value_format = RowFormat::f16;
  std::uint32_t key_bytes = 0, value_bytes = 0;
  std::uint32_t bytes() const { return key_bytes + value_bytes; }
  bool operator==(const RowLayout&) const = default;
};

// Raw rows in position order that someone else owns: [heads][rows] records of layout.bytes().
struct RawRows {
  RowLayout layout;
  std::uint32_t heads = 0;           // KV heads
  std::uint32_t first_position = 0;  // of row 0
  std::uint32_t rows = 0;
  const std::byte* data = nullptr;
  std::size_t head_stride = 0;  // bytes between heads

  const std::byte* row(std::uint32_t head, std::uint32_t r) const {
    return data + head * head_stride + std::size_t{r} * layout.bytes();
  }
  const f16* key(std::uint32_t head, std::uint32_t r) const {
    return reinterpret_cast<const f16*>(row(head, r));
  }
  const f16* value(std::uint32_t head, std::uint32_t r) const {
    return reinterpret_cast<const f16*>(row(head, r) + layout.key_bytes);
  }
  const f16* side(Side side, std::uint32_t head, std::uint32_t r) const {
    return side == Side::keys ? key(head, r) : value(head, r);
  }
  std::uint32_t channels(Side side) const {
    return (side == Side::keys ? layout.key_bytes : layout.value_bytes) / sizeof(f16);
  }
  RawRows part(std::uint32_t first, std::uint32_t count) const {
    RawRows part = *this;
    part.first_position += first;
    part.rows = count;
    part.data += std::size_t{first} * layout.bytes();
    return part;
  }
};

// What a selector keeps beside a segment: its own, in the fastest tier, immutable, gone with it.
class SegmentIndex {
 public:
  virtual ~SegmentIndex() = default;
  virtual std::uint64_t bytes() const = 0;
  // Of one that is a piece of memory: all of it; and the same index as a copy of that has it, at
  // `at`, which this memory need not reach: then where its parts are is all that may be asked. `at`
  // is aligned to 64 bytes and outlives it. Of another: nothing, null.
  virtual std::span<const std::byte> whole() const { return {}; }
  virtual std::shared_ptr<const SegmentIndex> copied_to(std::byte* /*at*/) const { return nullptr; }
};

// Where the bytes of a segment live is the page table's business (tiers/page_table.h); this is what
// everybody may know of it. Shared by timelines that have a past in common, hence shared_ptr.
struct Segment {
  LayerId layer{};
  RowLayout layout;
  std::uint32_t heads = 0;  // KV heads, each with the same rows in an order of its own
  std::uint32_t rows = 0;   // 1 to kSegmentRows
  std::uint32_t first_position = 0;
  // [head][row]: position of a row less first_position. Empty: position order.
  std::vector<std::uint16_t> offset;
  SegmentFit fits[2];    // by Side
  std::uint32_t id = 0;  // of the page table

  std::uint32_t blocks() const { return (rows + kBlockRows - 1) / kBlockRows; }
  std::uint32_t position(std::uint32_t head, std::uint32_t row) const {
    return first_position + (offset.empty() ? row : offset[std::size_t{head} * rows + row]);
  }
  const SegmentFit& fit(Side side) const { return fits[static_cast<std::size_t>(side)]; }
  // A side's fit as one head's rows are read with it; of the segment's.
  SideFit fit_of(Side side, std::uint32_t head) const {
    const SegmentFit& of = fit(side);
    if (!of) return {};
    return {of.common ? of.common->bytes.data() : nullptr,
            of.own ? of.own->bytes.data() : nullptr,
            of.heads,
            rows,
            of.first_head + head,
            first_position,
            offset.empty() ? nullptr : offset.data() + std::size_t{head} * rows,
            of.rotation};
  }
};

// In which form rows are attended: as they are kept; as rows that stand for several each, in place
// of what a selection leaves unread; or as codes of what their values differ from those by.
enum class Form : std::uint8_t { rows, summaries, codes };

// A sealed stretch of one timeline in one layer. `summaries` and `codes` (null: none) are in the
// fastest tier; codes are the same rows in the same order. They may have no keys
// (layout.key_bytes is 0): then a read of them has to be a scored one.
struct Run {
  std::shared_ptr<const Segment> rows;
  std::shared_ptr<const Segment> summaries;
  std::shared_ptr<const Segment> codes;
  std::shared_ptr<const SegmentIndex> index;

  const Segment& in(Form form) const {
    return form == Form::rows ? *rows : form == Form::summaries ? *summaries : *codes;
  }
};

struct Pick {
  std::uint32_t block = 0;  // of the segment's head
  RowSet rows = 0;
};

// Consecutive picks in one segment. Picks ascend by block. Or every row of it, without weights.
struct Read {
  std::uint32_t run = 0;
  Form form = Form::rows;
  bool everything = false;
  std::uint32_t first = 0, last = 0;  // of the list's picks, unless everything
  // Values of log_weight for each picked row, from first_weight on. 0: none. Otherwise 1, which is
  // added to the row's scores; or, if `scored`, one for each query head, which is its whole score.
  std::uint32_t weights_a_row = 0;
  bool scored = false;
  bool residual = false;  // of a scored read: as Fold::residual
  std::uint32_t first_weight = 0;
};

// What one row of a step reads in one KV head, beside its sinks and tail. Reused from step to step:
// clear() keeps the capacity.
struct ReadList {
  std::vector<Read> reads;
  std::vector<Pick> picks;
  std::vector<float> log_weight;

  // Every row of so many runs.
  void take_all(std::size_t runs) {
    clear();
    for (std::uint32_t run = 0; run < runs; ++run)
      reads.push_back({.run = run, .everything = true});
  }
  void clear() {
    reads.clear();
    picks.clear();
    log_weight.clear();
  }
};

}  // namespace thermocline
