#include "tools/thermocline/input.h"

#include <poll.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "tools/thermocline/interruption.h"

namespace thermocline {

Result<std::size_t> read_some(int descriptor, std::span<char> into) {
  // Not a read that waits: a signal just before it would be heard only when something comes.
  constexpr int kLookMs = 50;
  for (;;) {
    if (interrupted()) return fail(ErrorCode::cancelled, "interrupted");
    pollfd wanted{descriptor, POLLIN, 0};
    const int ready = ::poll(&wanted, 1, kLookMs);
    if (ready == 0 || (ready < 0 && errno == EINTR)) continue;
    const ssize_t count = ::read(descriptor, into.data(), into.size());
    if (count >= 0) return static_cast<std::size_t>(count);
    if (errno != EINTR && errno != EAGAIN) return fail(ErrorCode::io, std::strerror(errno));
  }
}

}  // namespace thermocline
