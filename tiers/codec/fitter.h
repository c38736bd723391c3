// What a codec whose rows are not each coded by itself does when a segment is sealed: it sees all
// of a side's rows and leaves what they share, from which any row is read again.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/base/buffer.h"
#include "kernels/base/error.h"
#include "kernels/base/workers.h"
#include "tiers/block.h"

namespace thermocline {

// One side of the rows that a segment is formed of; or of layers that are fitted together, whose KV
// heads then are one layer's after the other's.
struct Fitting {
  Side side = Side::keys;
  RawRows rows;  // of all KV heads; keys rotated
  // [head][row]: which of them is stored there. Empty: as they are.
  std::span<const std::uint32_t> order = {};
  // [head] of `rows`, ascending: those that are read in every step. Empty: none.
  std::span<const std::vector<std::uint32_t>> always = {};
  // Of keys, unless they carry no position.
  const Rotation* rotation = nullptr;
  // The fit of the same side of the segment before this in the timeline; null: there is none.
  const SegmentFit* before = nullptr;
  // [head][number]: position of the row that is stored there less that of the first one, where they
  // are not in order or a retainer has dropped some. Empty: 0, 1, 2 ...
  std::span<const std::uint16_t> offset = {};
  // [head][dim] of keys, where the fitter asks for them: the mean square of each channel of the
  // last queries of the prefill's span that the rows are of, finite. Empty: there is no prefill.
  std::span<const float> query_squares = {};

  std::uint32_t dim() const { return rows.channels(side); }
  // Of what is stored in a head as row `number`.
  const f16* stored(std::uint32_t head, std::uint32_t number) const {
    return rows.side(side, head,
                     order.empty() ? number : order[std::size_t{head} * rows.rows + number]);
  }
  std::uint32_t position(std::uint32_t head, std::uint32_t number) const {
    const std::size_t at = std::size_t{head} * rows.rows + number;
    return rows.first_position + (offset.empty() ? number : offset[at]);
  }
};

struct FitShape {
  std::uint32_t heads = 0, dim = 0;  // KV heads, of all layers together; channels of a head
};

// A part that a format does not have is empty.
struct Fit {
  Buffer common, own;
  bool as_before = false;  // its common part is that of the segment before
};

// Any thread may use it.
class Fitter {
 public:
  virtual ~Fitter() = default;
  // Whether a row is of all heads together: then no head may drop another's rows.
  virtual bool spans_heads() const { return false; }
  // How many layers are fitted together, at most. If several, a row has no bytes of its own: a
  // layer's rows are coded before those of the next ones are there.
  virtual std::uint32_t layers() const { return 1; }
  // Whether fit() goes by Fitting::query_squares.
  virtual bool asks_for_queries() const { return false; }
  // Bytes of both parts that `rows` sealed rows of all heads take, of which no more than `always`
  // in each head are named in Fitting::always: fit() makes no more. Of many rows no more than their
  // blocks of kBlockRows would take, each alone.
  virtual std::uint64_t bytes(FitShape shape, std::uint64_t rows, std::uint64_t always) const = 0;
  // What fit() computes with, of so many rows, where that may be many megabytes. It is in no
  // ledger.
  virtual std::uint64_t scratch_bytes(FitShape, std::uint64_t) const { return 0; }
  // Work is spread over `workers` with a fixed cut.
  virtual Result<Fit> fit(const Fitting& of, const Workers& workers) const = 0;
  // Of parts that flaw() finds none in.
  virtual FitFacts facts(FitShape shape, std::uint32_t rows, std::span<const std::byte> common,
                         std::span<const std::byte> own) const = 0;
  // Why these parts, which come from a file, cannot be of `rows` rows, where reading a row would
  // reach outside of them; null: they are safe to read.
  virtual const char* flaw(FitShape shape, std::uint32_t rows, std::span<const std::byte> common,
                           std::span<const std::byte> own) const = 0;
};

}  // namespace thermocline
