// A store whose content outlives the process. What was taken of it becomes part of what is kept
// when it is published, all at once: whoever opens the file later finds the last publication whole,
// whatever happened meanwhile.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/base/error.h"
#include "tiers/record.h"
#include "tiers/store/store.h"

namespace thermocline {

// Belongs to the thread of its store.
class Keeper {
 public:
  virtual ~Keeper() = default;
  // What an earlier process published last, once: it is not held here. Empty: nothing ever was.
  virtual std::vector<std::byte> take_manifest() = 0;
  // What the store holds beside what was taken of it: for being what it is, and of the last
  // publication what nobody holds. It changes when something is given back, claimed or published.
  virtual std::uint64_t kept_bytes() const = 0;
  // What a publication takes beside them, and while it is written as much memory, and a page.
  virtual std::uint64_t publication_bytes(std::uint64_t manifest_bytes,
                                          std::uint64_t extents) const = 0;
  // Nothing will be published any more: what is taken from now on is of a file without a name, and
  // gone with the process. On an error it is as it was.
  virtual Status stop_keeping() = 0;
  virtual bool keeps() const = 0;
  // Takes over an extent of the last publication: to be given back like one that was taken.
  // corrupt: the publication has no such extent, or somebody has it already.
  virtual Result<Space> claim(const Extent& extent) = 0;
  // From now on `manifest` and `extents`, ascending, which somebody holds, are what is kept, on the
  // disk itself. What is given back of them stays there until the next publication. On an error the
  // last one is still what is kept; or, where the system does not say what it brought to the disk,
  // one of the two, whole, and whatever either names stays: then every later call is refused.
  virtual Status publish(const WriteRecord& manifest, std::span<const Extent> extents) = 0;
};

}  // namespace thermocline
