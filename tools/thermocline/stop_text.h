// Ends a stream of text before any of a few strings, wherever the pieces are cut.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace thermocline {

class StopText {
 public:
  explicit StopText(std::vector<std::string> stops) : stops_(std::move(stops)) {}

  // What may be shown now: what could still begin a stop string is held back.
  std::string feed(std::string_view piece);
  // The rest, when the text ends otherwise.
  std::string flush();
  bool stopped() const { return !found_.empty(); }
  const std::string& found() const { return found_; }

 private:
  std::vector<std::string> stops_;
  std::string held_, found_;
};

}  // namespace thermocline
