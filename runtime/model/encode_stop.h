// Whether the encoding of a text is to stop: asked now and then, since a text has many words and a
// word can be as long as the text.
#pragma once

#include <cstdint>

#include "kernels/base/error.h"
#include "runtime/stop_asked.h"

namespace thermocline {

class EncodeStop {
 public:
  explicit EncodeStop(const StopAsked& asked) : asked_(asked) {}

  // To be called for each word, merge and token: some nanoseconds to a microsecond apart.
  Status check() {
    if (++turns_ % kTurns != 0 || !asked_ || !asked_()) return {};
    return fail(ErrorCode::cancelled, "encode() was stopped");
  }

 private:
  static constexpr std::uint32_t kTurns = 1024;

  const StopAsked& asked_;
  std::uint32_t turns_ = 0;
};

}  // namespace thermocline
