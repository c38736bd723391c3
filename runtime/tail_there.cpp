#include "runtime/tail_there.h"

#include <utility>

namespace thermocline {

Status TailThere::send(Device* device, const RawStore& from, std::uint32_t first,
                       std::uint32_t last, std::byte* to, std::uint64_t apart,
                       std::uint64_t* bytes) const {
  if (first >= last) return {};
  const std::size_t of_head = std::size_t{last - first} * layout_.bytes();
  for (std::uint32_t h = 0; h < heads_; ++h)
    TL_TRY(device->write(to + h * apart, {from.row(h, first), of_head}));
  *bytes += heads_ * of_head;
  return {};
}

Status TailThere::bring(Device* device, const RawStore& sinks, const RawStore& tail,
                        std::uint32_t tail_first, std::uint32_t end, std::uint64_t* bytes) {
  const std::uint32_t there = std::exchange(end_, 0);  // should a copy fail, nothing is
  const std::uint32_t in_sinks = std::min(sinks_, there);
  TL_TRY(send(device, sinks, in_sinks, std::min(sinks_, end), sink(in_sinks), sink_apart(), bytes));
  const std::uint32_t first =
      tail_first == tail_first_ && there > tail_first ? there - tail_first : 0;
  if (end > tail_first)
    TL_TRY(send(device, tail, first, end - tail_first, row(first), row_apart(), bytes));
  tail_first_ = tail_first;
  end_ = end;
  return {};
}

}  // namespace thermocline
