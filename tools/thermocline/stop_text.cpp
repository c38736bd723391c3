#include "tools/thermocline/stop_text.h"

#include <algorithm>
#include <utility>

namespace thermocline {

std::string StopText::feed(std::string_view piece) {
  if (stopped()) return {};
  held_ += piece;
  std::size_t first = std::string::npos;
  for (const std::string& stop : stops_) {
    const std::size_t at = held_.find(stop);
    if (at < first) {
      first = at;
      found_ = stop;
    }
  }
  if (stopped()) {
    held_.resize(first);
    return std::exchange(held_, {});
  }
  std::size_t keep = 0;  // the longest end of the text that begins a stop string
  for (const std::string& stop : stops_)
    for (std::size_t n = std::min(stop.size() - 1, held_.size()); n > keep; --n)
      if (std::string_view(held_).ends_with(std::string_view(stop).substr(0, n))) keep = n;
  std::string shown = held_.substr(0, held_.size() - keep);
  held_.erase(0, held_.size() - keep);
  return shown;
}

std::string StopText::flush() { return std::exchange(held_, {}); }

}  // namespace thermocline
