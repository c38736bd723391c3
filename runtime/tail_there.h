// A copy of a timeline's sinks and tail in one layer on the device that computes it. The host's own
// are what counts: what the device's steps append is in both, and whatever else has changed since
// is sent before the next one.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/base/error.h"
#include "kernels/device.h"
#include "runtime/raw_store.h"

namespace thermocline {

class TailThere {
 public:
  TailThere() = default;
  // `memory`, the device's, for bytes_for(): not owned.
  TailThere(std::byte* memory, RowLayout layout, std::uint32_t heads, std::uint32_t sinks,
            std::uint32_t capacity)
      : memory_(memory), layout_(layout), heads_(heads), sinks_(sinks), capacity_(capacity) {}
  static std::uint64_t bytes_for(RowLayout layout, std::uint32_t heads, std::uint32_t sinks,
                                 std::uint32_t capacity) {
    return RawStore::bytes_for(layout, heads, sinks + capacity);
  }

  // Of KV head 0; and how far the next one's is.
  std::byte* sink(std::uint32_t row) const { return memory_ + std::size_t{row} * layout_.bytes(); }
  std::byte* row(std::uint32_t row) const {
    return memory_ + (std::size_t{heads_} * sinks_ + row) * layout_.bytes();
  }
  std::uint64_t sink_apart() const { return std::uint64_t{sinks_} * layout_.bytes(); }
  std::uint64_t row_apart() const { return std::uint64_t{capacity_} * layout_.bytes(); }

  // Brings what is not there yet of the positions [0, end), the tail's row 0 being at `tail_first`;
  // adds to *bytes what that is.
  Status bring(Device* device, const RawStore& sinks, const RawStore& tail,
               std::uint32_t tail_first, std::uint32_t end, std::uint64_t* bytes);
  // The positions before `end` are here and there: a step's, which it left in both.
  void reached(std::uint32_t end) { end_ = std::max(end_, end); }
  // And those from `end` on are other ones from now on.
  void cut(std::uint32_t end) { end_ = std::min(end_, end); }

 private:
  Status send(Device* device, const RawStore& from, std::uint32_t first, std::uint32_t last,
              std::byte* to, std::uint64_t apart, std::uint64_t* bytes) const;

  std::byte* memory_ = nullptr;
  RowLayout layout_;
  std::uint32_t heads_ = 0, sinks_ = 0, capacity_ = 0;
  std::uint32_t tail_first_ = 0, end_ = 0;  // positions that are there: sinks, and the tail's
};

}  // namespace thermocline
