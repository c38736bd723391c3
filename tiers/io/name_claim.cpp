#include "tiers/io/name_claim.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <span>

#include "tiers/io/checksum.h"

namespace thermocline {

// An abstract socket that nobody connects to: of what a kernel frees with its process, all that
// has a name which is in no filesystem.
std::optional<Descriptor> claim_name(int folder, const std::string& file) {
  struct stat found {};
  Descriptor claim(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (!claim.open() || ::fstat(folder, &found) != 0) return Descriptor();
  // A file's name may be longer than a socket's.
  const std::string name = "thermocline session " + std::to_string(found.st_dev) + " " +
                           std::to_string(found.st_ino) + " " +
                           std::to_string(page_checksum(std::as_bytes(std::span(file)), 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::copy(name.begin(), name.end(), address.sun_path + 1);
  const auto bytes = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
  if (::bind(claim.number(), reinterpret_cast<const sockaddr*>(&address), bytes) == 0) return claim;
  if (errno == EADDRINUSE) return std::nullopt;
  return Descriptor();
}

}  // namespace thermocline
