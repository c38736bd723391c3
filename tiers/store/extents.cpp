#include "tiers/store/extents.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <iterator>

#include "kernels/base/buffer.h"
#include "tiers/io/errno_text.h"
#include "tiers/size_text.h"
#include "tiers/store/filesystem.h"

namespace thermocline {

Result<Space> Extents::take(std::uint64_t bytes) {
  TL_CHECK(bytes > 0 && file_ >= 0);
  stayed_whole_ = is_whole();
  const bool fits =
      bytes <= budget_bytes_ && round_up(bytes, kPageBytes) <= budget_bytes_ - held_bytes_;
  if (!fits)
    return fail(ErrorCode::exhausted, "disk: ", size_text(bytes), " more is needed and ",
                size_text(budget_bytes_ - held_bytes_), " of ", size_text(budget_bytes_),
                " is free (", size_text(held_bytes_), " held): raise --kv-disk");
  const std::uint64_t size = round_up(bytes, kPageBytes);

  const auto hole = std::find_if(free_.begin(), free_.end(),
                                 [size](const auto& extent) { return extent.second >= size; });
  if (hole == free_.end()) {
    if (const std::uint64_t used = end_ - begin_;
        !punches_ && (used > budget_bytes_ || size > budget_bytes_ - used))
      return fail(
          ErrorCode::exhausted, "disk: no ", size_text(size), " in one piece: the file of ",
          size_text(end_), " (", where_,
          ") has room in smaller pieces, which its filesystem cannot release: raise --kv-disk");
    TL_TRY(allocate(end_, size));
    held_bytes_ += size;
    end_ += size;
    return extent(end_ - size, bytes);
  }
  const auto [offset, room] = *hole;
  TL_TRY(allocate(offset, size));
  free_.erase(hole);
  if (room > size) free_.emplace(offset + size, room - size);
  held_bytes_ += size;
  return extent(offset, bytes);
}

Space Extents::extent(std::uint64_t offset, std::uint64_t bytes) const {
  Space space;
  space.bytes = bytes;
  space.file = file_;
  space.offset = offset;
  return space;
}

void Extents::give(const Space& space) {
  std::uint64_t offset = space.offset, size = round_up(space.bytes, kPageBytes);
  TL_CHECK(size > 0 && offset % kPageBytes == 0 && offset >= begin_);
  TL_CHECK(offset <= end_ && size <= end_ - offset);
  TL_CHECK(size <= held_bytes_);
  stayed_whole_ = is_whole();
  auto after = free_.lower_bound(offset);
  auto before = after == free_.begin() ? free_.end() : std::prev(after);
  TL_CHECK(after == free_.end() || after->first >= offset + size);  // given back twice
  TL_CHECK(before == free_.end() || before->first + before->second <= offset);
  held_bytes_ -= size;
  if (!release(offset, size)) punches_ = false;

  if (after != free_.end() && after->first == offset + size) {
    size += after->second;
    free_.erase(after);
  }
  if (before != free_.end() && before->first + before->second == offset) {
    offset = before->first;
    size += before->second;
    free_.erase(before);
  }
  if (offset + size < end_) {
    free_.emplace(offset, size);
  } else if (::ftruncate(file_, static_cast<off_t>(offset)) == 0) {
    end_ = offset;
  } else {
    free_.emplace(offset, size);
  }
}

Status Extents::claim(std::uint64_t offset, std::uint64_t bytes) {
  TL_CHECK(bytes > 0 && offset % kPageBytes == 0 && bytes % kPageBytes == 0 && offset >= begin_);
  if (bytes > budget_bytes_ - held_bytes_)
    return fail(ErrorCode::exhausted, where_, " holds more than the ", size_text(budget_bytes_),
                " of --kv-disk: raise it");
  const std::uint64_t end = offset + bytes;
  if (end_ < end) {
    if (end_ < offset) free_.emplace(end_, offset - end_);
    end_ = end;
  } else {
    const auto hole = std::prev(free_.upper_bound(offset));
    const std::uint64_t from = hole->first, to = from + hole->second;
    TL_CHECK(from <= offset && end <= to);  // in use already
    free_.erase(hole);
    if (from < offset) free_.emplace(from, offset - from);
    if (end < to) free_.emplace(end, to - end);
  }
  held_bytes_ += bytes;
  return {};
}

void Extents::trim() {
  for (const auto& [offset, bytes] : free_) (void)release(offset, bytes);
  (void)::ftruncate(file_, static_cast<off_t>(end_));
}

bool Extents::is_whole() const { return stayed_whole_ && is_long_enough(); }

// What cannot be looked at is not held to be short.
bool Extents::is_long_enough() const {
  struct stat found {};
  return end_ == begin_ || ::fstat(file_, &found) != 0 ||
         static_cast<std::uint64_t>(found.st_size) >= end_;
}

Status Extents::allocate(std::uint64_t offset, std::uint64_t bytes) const {
  // Beyond this limit the kernel does not only refuse, it sends a signal that ends the process.
  rlimit limit{};
  if (::getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY &&
      (bytes > limit.rlim_cur || offset > limit.rlim_cur - bytes))
    return fail(ErrorCode::exhausted, "disk: the file (", where_, ") would grow to ",
                size_text(offset + bytes), ", RLIMIT_FSIZE is ", size_text(limit.rlim_cur),
                ": raise it (ulimit -f), or lower -c");
  int refusal = 0;
  do {
    refusal =
        ::fallocate(file_, 0, static_cast<off_t>(offset), static_cast<off_t>(bytes)) ? errno : 0;
  } while (refusal == EINTR);
  if (refusal == 0) return {};
  // Part of it may have been allocated.
  if (offset >= end_)
    (void)::ftruncate(file_, static_cast<off_t>(end_));
  else
    (void)release(offset, bytes);
  if (refusal == ENOSPC || refusal == EDQUOT)
    return fail(ErrorCode::exhausted, "disk: ", size_text(bytes), " more is needed in ", where_,
                ", its filesystem has ", size_text(free_on_filesystem(file_).value_or(0)),
                " free (", errno_text(refusal),
                "): free some, name another place, or lower --kv-disk");
  if (refusal == EOPNOTSUPP)
    return fail(ErrorCode::unsupported, "disk: the filesystem of ", where_,
                " cannot reserve space (fallocate): name another");
  return fail(ErrorCode::io, "disk: could not reserve ", size_text(bytes), " (", where_,
              "): ", errno_text(refusal));
}

bool Extents::release(std::uint64_t offset, std::uint64_t bytes) const {
  int result = 0;
  do {
    result = ::fallocate(file_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                         static_cast<off_t>(offset), static_cast<off_t>(bytes));
  } while (result != 0 && errno == EINTR);
  return result == 0;
}

}  // namespace thermocline
