#include "tiers/io/read_fully.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <memory>
#include <utility>

#include "kernels/base/buffer.h"
#include "tiers/io/errno_text.h"
#include "tiers/io/left_to_kernel.h"
#include "tiers/io/thread_sink.h"

namespace thermocline {

namespace {

tl::unexpected<Error> why_not(int file, const std::string& name, int refusal, std::uint64_t end) {
  struct stat found {};
  if (refusal != ENODATA || ::fstat(file, &found) != 0)
    return fail(ErrorCode::io, name, ": reading it failed: ", errno_text(refusal));
  return fail(ErrorCode::corrupt, name, ": it ends at ", found.st_size, ", and ", end,
              " was to be read: it was cut short");
}

}  // namespace

// By a thread of its own: no signal ends a read that a disk, or a server, does not answer, and
// whoever waits for it here can be ended. The memory is neither's alone then.
Status read_fully(int file, const std::string& name, std::uint64_t offset,
                  std::span<std::byte> into, std::chrono::milliseconds patience) {
  SinkOptions one;
  one.threads = 1;
  TL_TRY_ASSIGN(std::unique_ptr<Sink> sink, open_thread_sink(one));
  TL_TRY_ASSIGN(Buffer memory, Buffer::create(std::min(into.size(), kPieceBytes)));
  for (std::size_t done = 0, bytes = 0; done < into.size(); done += bytes) {
    bytes = std::min(memory.size(), into.size() - done);
    Transfer piece;
    piece.file = file;
    piece.offset = offset + done;
    piece.bytes = memory.bytes().first(bytes);
    TL_TRY(sink->submit({&piece, 1}));
    Completion completion;
    TL_TRY_ASSIGN(const std::size_t arrived,
                  sink->poll({&completion, 1}, std::chrono::steady_clock::now() + patience));
    if (arrived == 0) {
      leave_to_kernel(std::move(memory));
      leave_to_kernel(std::move(sink));
      return fail(ErrorCode::io, name, ": a read of ", bytes, " bytes at ", piece.offset,
                  " did not finish within ", patience.count(), " ms: the disk does not answer");
    }
    if (completion.error != 0) return why_not(file, name, completion.error, offset + into.size());
    std::ranges::copy(piece.bytes, into.begin() + static_cast<std::ptrdiff_t>(done));
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
