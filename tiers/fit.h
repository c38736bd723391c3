// What the rows of a segment share on one side, owned: made once, when the segment is sealed, and
// immutable from then on. In host memory, whatever the home of the rows; where a device chooses
// among those, and rebuilds keys from it, it has a copy.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "kernels/base/buffer.h"
#include "kernels/rotation.h"
#include "tiers/budget.h"
#include "tiers/store/store.h"

namespace thermocline {

enum class Side : std::uint8_t { keys, values };
inline constexpr Side kSides[] = {Side::keys, Side::values};

// Bytes and their place in the ledger. Shared by segments and their forks, hence shared_ptr.
struct FitBytes {
  Buffer bytes;
  Reservation memory;
  Slot there;  // the copy; of an own part with the segment's offsets (Segment::offset) behind it
};

inline constexpr std::uint32_t kFitGroup = 32;  // rows stored one after the other that share it

// What is known of a fit, of what its parts hold.
struct FitFacts {
  // What a read of one head's rows takes of both parts, in bytes: once, whichever rows it has; for
  // each group of kFitGroup of which it has any; and for each row. Of all rows of all heads that
  // comes to what the parts hold, but for what rows are not read by, which nothing counts, and for
  // what heads have in common, which each of them reads. Rounded up; outliers and kept rows, of
  // which heads have more or fewer, are means.
  std::uint32_t head_bytes = 0, group_bytes = 0, row_bytes = 0;
  std::uint32_t rank = 0;  // numbers that all heads' rows of a position are made of; 0: it has none
  float captured = 1.0f;   // share of the squares of the segment's rows that those hold
};

// A side without a fit has neither part.
struct SegmentFit {
  std::shared_ptr<const FitBytes> common;  // of this segment and of later ones that it suits
  std::shared_ptr<const FitBytes> own;     // of this segment alone
  // KV heads that both are of, side by side: of several layers, where those are fitted together and
  // their segments hold the same parts. This segment's begin at `first_head`.
  std::uint32_t heads = 0, first_head = 0;
  const Rotation* rotation = nullptr;  // the cache's, of its layer's keys
  FitFacts facts;

  explicit operator bool() const { return common || own; }
};

}  // namespace thermocline
