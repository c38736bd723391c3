#include "tiers/io/read_fully.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "tiers/io/errno_text.h"

namespace thermocline {

Status read_fully(int file, const std::string& name, std::uint64_t offset,
                  std::span<std::byte> into) {
  for (std::size_t done = 0; done < into.size();) {
    const ssize_t n =
        ::pread(file, into.data() + done, into.size() - done, static_cast<off_t>(offset + done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return fail(ErrorCode::io, name, ": reading it failed: ", errno_text(errno));
    if (n == 0)
      return fail(ErrorCode::corrupt, name, ": it ends at ", offset + done, ", and ",
                  offset + into.size(), " was to be read: it was cut short");
    done += static_cast<std::size_t>(n);
  }
  return {};
}

Status check_stored(int file, const std::string& name, std::uint64_t offset, std::uint64_t bytes) {
  const std::uint64_t end = offset + bytes;
  std::uint64_t stored = 0;
  for (std::uint64_t at = offset; at < end && stored < bytes / 2;) {
    const off_t data = ::lseek(file, static_cast<off_t>(at), SEEK_DATA);
    if (data < 0 && errno != ENXIO) return {};
    const off_t hole = data < 0 ? data : ::lseek(file, data, SEEK_HOLE);
    if (hole < 0) break;
    const std::uint64_t from = std::min(end, static_cast<std::uint64_t>(data));
    at = static_cast<std::uint64_t>(hole);
    stored += std::min(end, at) - from;
  }
  if (stored >= bytes / 2) return {};
  return fail(ErrorCode::corrupt, name, ": of ", bytes, " bytes at ", offset, " only ", stored,
              " lie in the file, the rest is a hole: it was not written whole");
}

}  // namespace thermocline
