#include "tiers/io/read_fully.h"

#include <unistd.h>

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

}  // namespace thermocline
