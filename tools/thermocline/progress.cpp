#include "tools/thermocline/progress.h"

#include <unistd.h>
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "tools/thermocline/printable.h"

namespace thermocline {
namespace {

constexpr std::chrono::milliseconds kFirstDrawn{500}, kDrawnEvery{100}, kReportedEvery{500};

double seconds_between(std::chrono::steady_clock::time_point from,
                       std::chrono::steady_clock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

std::string format_time_left(double seconds) {
  const auto whole = static_cast<long>(seconds + 0.5);
  char text[32];
  if (whole >= 3600)
    std::snprintf(text, sizeof text, "%ld:%02ld:%02ld", whole / 3600, whole / 60 % 60, whole % 60);
  else
    std::snprintf(text, sizeof text, "%ld:%02ld", whole / 60, whole % 60);
  return text;
}

}  // namespace

Result<ProgressStyle> parse_progress_style(std::string_view text) {
  if (text == "auto") {
    const char* terminal = std::getenv("TERM");
    const bool dumb = terminal != nullptr && std::string_view(terminal) == "dumb";
    return isatty(STDERR_FILENO) && !dumb ? ProgressStyle::bar : ProgressStyle::none;
  }
  if (text == "bar") return ProgressStyle::bar;
  if (text == "json") return ProgressStyle::json;
  if (text == "none") return ProgressStyle::none;
  return fail(ErrorCode::invalid_argument, "--progress '", text,
              "' is not known: auto, bar, json or none");
}

Progress::Progress(ProgressStyle style, std::string label, std::uint64_t total,
                   std::uint64_t cached)
    : style_(style), label_(std::move(label)), total_(total), cached_(cached) {}

Progress::~Progress() {
  if (on_screen_) std::fputs("\r\033[K", stderr);
}

void Progress::update(std::uint64_t done) {
  if (style_ == ProgressStyle::none) return;
  const Clock::time_point now = Clock::now();
  const bool finished = done >= total_;
  const bool first = drawn_ == start_;
  const auto wait = style_ == ProgressStyle::json ? kReportedEvery
                    : first                       ? kFirstDrawn
                                                  : kDrawnEvery;
  if (now - drawn_ < wait && !(finished && style_ == ProgressStyle::json)) return;
  drawn_ = now;
  const double seconds = seconds_between(start_, now);
  if (style_ == ProgressStyle::json)
    std::fprintf(stderr,
                 "{\"prompt_progress\":{\"label\":%s,\"total\":%llu,\"cache\":%llu,"
                 "\"processed\":%llu,\"time_ms\":%.0f}}\n",
                 nlohmann::json(label_)
                     .dump(-1, ' ', false, nlohmann::json::error_handler_t::replace)
                     .c_str(),
                 static_cast<unsigned long long>(total_), static_cast<unsigned long long>(cached_),
                 static_cast<unsigned long long>(done), seconds * 1e3);
  else
    draw_bar(seconds, done);
}

void Progress::draw_bar(double seconds, std::uint64_t done) {
  constexpr std::size_t kWidth = 24;
  const double share =
      total_ == 0 ? 1 : std::min(1.0, static_cast<double>(done) / static_cast<double>(total_));
  const double worked = static_cast<double>(done > cached_ ? done - cached_ : 0);
  const double rate = seconds > 0 ? worked / seconds : 0;
  const double left = static_cast<double>(total_ > done ? total_ - done : 0);
  const auto filled = static_cast<std::size_t>(share * static_cast<double>(kWidth));
  const std::string bar = std::string(filled, '#') + std::string(kWidth - filled, '.');
  std::fprintf(stderr, "\r%s [%s] %3.0f %%  %.0f tokens/s  %s left\033[K",
               printable(label_).c_str(), bar.c_str(), share * 100, rate,
               rate > 0 ? format_time_left(left / rate).c_str() : "?");
  on_screen_ = true;
}

}  // namespace thermocline
