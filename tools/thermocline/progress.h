// Progress of long work, on stderr.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>

#include "kernels/base/error.h"

namespace thermocline {

enum class ProgressStyle : std::uint8_t {
  none,
  bar,   // one line that is drawn again: percent, rate and the time left
  json,  // {"prompt_progress":{"total":..,"cache":..,"processed":..,"time_ms":..}} a line
};

// "auto" is a bar on a terminal and nothing elsewhere.
Result<ProgressStyle> parse_progress_style(std::string_view text);

// One piece of work. A bar appears when the work has taken half a second and goes when it is done.
class Progress {
 public:
  // `cached` of `total` tokens needed no work.
  Progress(ProgressStyle style, std::string label, std::uint64_t total, std::uint64_t cached = 0);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void update(std::uint64_t done);

 private:
  void draw_bar(double seconds, std::uint64_t done);

  using Clock = std::chrono::steady_clock;
  ProgressStyle style_;
  std::string label_;
  std::uint64_t total_, cached_;
  Clock::time_point start_ = Clock::now(), drawn_ = start_;
  bool on_screen_ = false;
};

}  // namespace thermocline
