// A store whose content outlives the process. What was taken of it becomes part of what is kept
// when it is published, all at once: whoever opens the file later finds the last publication whole,
// whatever happened meanwhile.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/base/error.h"
#include "tiers/store/store.h"

namespace thermocline {

// Belongs to the thread of its store.
class Keeper {
 public:
  virtual ~Keeper() = default;
  // What was published last, by this process or an earlier one; empty: nothing ever was.
  virtual std::span<const std::byte> manifest() const = 0;
  // Takes over an extent of the last publication: to be given back like one that was taken.
  // corrupt: the publication has no such extent, or somebody has it already.
  virtual Result<Space> claim(const Extent& extent) = 0;
  // From now on `manifest` and `extents`, which somebody holds, are what is kept, on the disk
  // itself. What is given back of them stays there until the next publication. On an error the last
  // one is still what is kept; unless it was the write that makes the new one count that failed:
  // then one of the two is, and nothing that either refers to is used again.
  virtual Status publish(std::span<const std::byte> manifest, std::span<const Extent> extents) = 0;
};

}  // namespace thermocline
