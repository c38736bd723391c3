#include "tiers/io/left_to_kernel.h"

#include <mutex>
#include <utility>
#include <vector>

namespace thermocline {
namespace {

struct Left {
  std::mutex mutex;
  std::vector<Buffer> memory;
  std::vector<std::unique_ptr<Sink>> sinks;
};

// Not destroyed when the process ends, either: that would wait for the disk once more.
Left& left() {
  static Left* const all = new Left;
  return *all;
}

}  // namespace

void leave_to_kernel(Buffer memory) {
  const std::lock_guard lock(left().mutex);
  left().memory.push_back(std::move(memory));
}

void leave_to_kernel(std::unique_ptr<Sink> sink) {
  const std::lock_guard lock(left().mutex);
  left().sinks.push_back(std::move(sink));
}

}  // namespace thermocline
