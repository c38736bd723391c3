// Where --json goes: opened before the work, so that a path that cannot be written costs no run;
// written after it, so that what lies there is lost only to a new value.
#pragma once

#include <string>
#include <string_view>
#include <utility>

#include "kernels/base/error.h"

namespace thermocline {

// Moves, does not copy. A file that was made and never written is taken away again.
class JsonOutput {
 public:
  // "-": stdout; "": nowhere, and write() does nothing.
  static Result<JsonOutput> open(const std::string& path);
  JsonOutput(JsonOutput&& other) noexcept { *this = std::move(other); }
  JsonOutput& operator=(JsonOutput&& other) noexcept;
  ~JsonOutput();

  // Once.
  Status write(std::string_view text);

 private:
  JsonOutput() = default;

  std::string path_;
  int file_ = -1;
  bool made_ = false;  // and nothing is in it yet
};

}  // namespace thermocline
