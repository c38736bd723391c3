#include "tiers/store/filesystem.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>

#include "kernels/base/buffer.h"
#include "tiers/io/read_fully.h"
#include "tiers/size_text.h"

namespace thermocline {
namespace {

Status check_file_limit(const std::string& where, const PlannedUse& planned) {
  rlimit limit{};
  if (::getrlimit(RLIMIT_FSIZE, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY ||
      planned.bytes <= limit.rlim_cur)
    return {};
  return fail(ErrorCode::exhausted, where, ": ", planned.positions, " positions need ",
              size_text(planned.bytes), " there and RLIMIT_FSIZE is ", size_text(limit.rlim_cur),
              ": raise it (ulimit -f), or lower -c");
}

// As far as the filesystem says.
bool direct_pages_allowed(int file) {
#ifdef STATX_DIOALIGN
  struct statx found {};
  if (::statx(file, "", AT_EMPTY_PATH, STATX_DIOALIGN, &found) != 0 ||
      !(found.stx_mask & STATX_DIOALIGN))
    return true;
  const auto divides_a_page = [](std::uint32_t alignment) {
    return alignment > 0 && kPageBytes % alignment == 0;
  };
  return divides_a_page(found.stx_dio_offset_align) && divides_a_page(found.stx_dio_mem_align);
#else
  (void)file;
  return true;
#endif
}

}  // namespace

bool direct_pages_work(int file) {
  if (!direct_pages_allowed(file)) return false;
  const auto page = Buffer::create(kPageBytes);
  if (!page) return false;
  std::fill(page->bytes().begin(), page->bytes().end(), std::byte{0});
  const auto whole = static_cast<ssize_t>(kPageBytes);
  const bool works = ::pwrite(file, page->data(), kPageBytes, 0) == whole &&
                     ::pread(file, page->data(), kPageBytes, 0) == whole;
  return ::ftruncate(file, 0) == 0 && works;
}

bool direct_pages_can_be_read(int file) {
  if (!direct_pages_allowed(file)) return false;
  const auto page = Buffer::create(kPageBytes);
  // Whatever else may be the reason will be met again, and said then.
  return page && read_fully(file, "", 0, page->bytes());
}

bool in_memory(int file) {
  struct statfs found {};
  return ::fstatfs(file, &found) == 0 &&
         (found.f_type == TMPFS_MAGIC || found.f_type == RAMFS_MAGIC);
}

std::optional<std::uint64_t> free_on_filesystem(int file) {
  struct statvfs found {};
  if (::fstatvfs(file, &found) != 0 || found.f_blocks == 0) return std::nullopt;
  return std::uint64_t{found.f_bavail} * found.f_frsize;
}

Status check_planned(int file, const std::string& where, const PlannedUse& planned) {
  TL_TRY(check_file_limit(where, planned));
  const std::optional<std::uint64_t> free = free_on_filesystem(file);
  struct stat found {};
  const std::uint64_t held =
      ::fstat(file, &found) == 0 ? static_cast<std::uint64_t>(found.st_blocks) * 512 : 0;
  if (!free || planned.bytes <= held || planned.bytes - held <= *free) return {};
  const double share = static_cast<double>(held + *free) / static_cast<double>(planned.bytes);
  return fail(ErrorCode::exhausted, where, ": ", planned.positions, " positions need ",
              size_text(planned.bytes), " there",
              held > 0 ? ", of which it holds " + size_text(held) + "," : "",
              " and its filesystem has ", size_text(*free), " free, for about ",
              static_cast<std::uint64_t>(share * static_cast<double>(planned.positions)),
              ": free some, name another place, or lower -c");
}

std::string note_on_filesystem(int file, const std::string& where, bool direct) {
  if (in_memory(file))
    return where +
           " is in memory (tmpfs): what goes there takes memory, beside --kv-host; name a "
           "folder on a disk";
  if (!direct)
    return where + ": its filesystem cannot be read past the page cache, which takes memory too";
  return {};
}

}  // namespace thermocline
