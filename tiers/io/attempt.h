// One transfer on its way, and what an answer of the operating system means for it.
#pragma once

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <optional>

#include "kernels/base/buffer.h"
#include "tiers/io/sink.h"

namespace thermocline {

// Both back ends carry transfers as attempts, so that one rule decides what is retried.
struct Attempt {
  static constexpr int kTries = 16;  // answers in a row without a page of progress

  Transfer transfer;
  std::size_t done = 0;  // bytes, a multiple of kPageBytes until the transfer is whole
  int fruitless = 0;

  std::span<std::byte> rest() const { return transfer.bytes.subspan(done); }
  std::uint64_t offset() const { return transfer.offset + done; }

  // `answer` is what read or write returned: bytes, or minus an errno value. Returns the error of
  // the completion (0: whole), or nothing: rest() has to be tried again. Only whole pages count as
  // done, so that a retry of a direct transfer stays aligned; the end of a file is therefore
  // noticed as an answer that stops making progress.
  std::optional<int> settle(std::int64_t answer) {
    const bool read = transfer.kind == Transfer::Kind::read;
    if (answer == 0 && read) return ENODATA;
    if (answer < 0 && answer != -EINTR && answer != -EAGAIN) return static_cast<int>(-answer);
    if (answer > 0) {
      const std::size_t reached = done + static_cast<std::size_t>(answer);
      TL_CHECK(reached <= transfer.bytes.size());
      if (reached == transfer.bytes.size()) return 0;
      const std::size_t whole = reached / kPageBytes * kPageBytes;
      if (whole > done) {
        done = whole;
        fruitless = 0;
        return std::nullopt;
      }
    }
    if (++fruitless < kTries) return std::nullopt;
    if (answer < 0) return static_cast<int>(-answer);
    return read ? ENODATA : EIO;
  }
};

}  // namespace thermocline
