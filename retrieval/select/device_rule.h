// How a device chooses in a selector's place (kernels/device_choice.h): what it is told of a layer,
// of a list and of a segment.
#pragma once

#include <cstdint>

#include "kernels/device_choice.h"
#include "tiers/block.h"

namespace thermocline {

// Immutable: any thread may ask.
class DeviceRule {
 public:
  virtual ~DeviceRule() = default;
  // Of rows that are kept as `layout` says.
  virtual ChoiceFormat format(HeadShape shape, const RowLayout& layout) const = 0;
  // Of sealed rows, for a list of a timeline of `length` positions that reads `steady_rows` beside
  // them: how many are read, though there may be fewer; how many are attended at least by their
  // codes, read ones included; and of how many more, where `sealed` are there, a summary is.
  struct Budget {
    std::uint32_t read = 0, coded = 0, estimated = 0;
  };
  virtual Budget budget(std::uint32_t length, std::uint32_t steady_rows,
                        std::uint32_t sealed) const = 0;
  // Of a segment of so many rows, at most.
  virtual std::uint32_t units(std::uint32_t rows) const = 0;
  // Rows, units and what they are chosen by, of KV head `head` of a run, where its index lies,
  // which the selector formed, if it does: one piece of memory (SegmentIndex::whole), since it is
  // copied to the device. Kept rows, summaries and residuals are not its business.
  virtual IndexedRows indexed(HeadShape shape, const Run& run, std::uint32_t head) const = 0;
};

}  // namespace thermocline
