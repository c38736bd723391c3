#include "tiers/store/scratch_file.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <iterator>
#include <optional>
#include <random>

#include "kernels/base/buffer.h"
#include "tiers/io/errno_text.h"
#include "tiers/size_text.h"

namespace thermocline {
namespace {

// With a slash at its end a symbolic link would be followed.
Result<std::string> without_slashes(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  if (path.empty()) return fail(ErrorCode::invalid_argument, "--kv-dir: no directory was named");
  return path;
}

std::string parent_of(const std::string& path) {
  const std::size_t slash = path.rfind('/');
  return slash == std::string::npos ? "." : slash == 0 ? "/" : path.substr(0, slash);
}

// One directory and no more: a whole path that is missing is a misspelt one, or a disk that is not
// mounted.
tl::unexpected<Error> cannot_make(const std::string& path, int refusal) {
  if (refusal == ENOENT)
    return fail(ErrorCode::not_found, "--kv-dir ", path, ": there is no ", parent_of(path),
                " to make it in: make that, or name another");
  return fail(ErrorCode::io, "--kv-dir ", path, ": could not make it: ", errno_text(refusal));
}

// The cache holds the user's text: nobody else may be able to put something in its place.
Result<Descriptor> open_private_directory(const std::string& path) {
  struct stat found {};
  if (::lstat(path.c_str(), &found) == 0 && S_ISLNK(found.st_mode))
    return fail(ErrorCode::invalid_argument, "--kv-dir ", path,
                " is a symbolic link: name the directory itself");
  Descriptor opened(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  if (!opened.open() || ::fstat(opened.number(), &found) != 0)
    return fail(ErrorCode::io, "--kv-dir ", path, ": could not open it: ", errno_text(errno));
  // In a shared folder such as /tmp (sticky: only its owner can remove or rename a file) a file
  // without a name, or that only its owner may open, is as safe.
  const bool sticky = (found.st_mode & S_ISVTX) != 0;
  if (found.st_uid != ::geteuid() && !(sticky && found.st_uid == 0))
    return fail(ErrorCode::invalid_argument, "--kv-dir ", path, " belongs to user ", found.st_uid,
                ", this process to ", ::geteuid(), ": name a directory of your own");
  if (!sticky && (found.st_mode & (S_IWGRP | S_IWOTH)))
    return fail(ErrorCode::invalid_argument, "--kv-dir ", path,
                " may be written to by others: name a folder inside it, such as ", path,
                "/kv, which is made for you alone");
  return opened;
}

// `flags` in addition to reading and writing; a file without a name, or not open and errno.
Descriptor open_unnamed(const Descriptor& directory, int flags) {
  const int number =
      ::openat(directory.number(), ".", O_TMPFILE | O_EXCL | O_RDWR | O_CLOEXEC | flags, 0600);
  // EISDIR and ENOENT are how kernels and filesystems that know no O_TMPFILE answer.
  const bool unknown = errno == EOPNOTSUPP || errno == EISDIR || errno == ENOENT;
  if (number >= 0 || !unknown) return Descriptor(number);
  std::random_device random;
  for (int attempt = 0; attempt < 16; ++attempt) {
    const std::string name = ".thermocline-" + std::to_string(random()) + std::to_string(random());
    Descriptor named(::openat(directory.number(), name.c_str(),
                              O_CREAT | O_EXCL | O_NOFOLLOW | O_RDWR | O_CLOEXEC | flags, 0600));
    const int refusal = errno;
    // O_DIRECT may be refused after the file was created.
    if (named.open() || refusal == EINVAL) (void)::unlinkat(directory.number(), name.c_str(), 0);
    errno = refusal;
    if (named.open() || refusal != EEXIST) return named;
  }
  errno = EEXIST;
  return {};
}

// Asks, and then tries: FUSE and older kernels cannot be asked.
bool direct_pages_work(const Descriptor& file) {
#ifdef STATX_DIOALIGN
  struct statx found {};
  if (::statx(file.number(), "", AT_EMPTY_PATH, STATX_DIOALIGN, &found) == 0 &&
      (found.stx_mask & STATX_DIOALIGN) &&
      (found.stx_dio_offset_align == 0 || kPageBytes % found.stx_dio_offset_align != 0 ||
       kPageBytes % found.stx_dio_mem_align != 0))
    return false;
#endif
  const auto page = Buffer::create(kPageBytes);
  if (!page) return false;
  std::fill(page->bytes().begin(), page->bytes().end(), std::byte{0});
  const auto whole = static_cast<ssize_t>(kPageBytes);
  const bool works = ::pwrite(file.number(), page->data(), kPageBytes, 0) == whole &&
                     ::pread(file.number(), page->data(), kPageBytes, 0) == whole;
  return ::ftruncate(file.number(), 0) == 0 && works;
}

bool in_memory(const Descriptor& file) {
  struct statfs found {};
  return ::fstatfs(file.number(), &found) == 0 &&
         (found.f_type == TMPFS_MAGIC || found.f_type == RAMFS_MAGIC);
}

// Nothing: it does not say, as a tmpfs without a limit.
std::optional<std::uint64_t> free_on_filesystem(int file) {
  struct statvfs found {};
  if (::fstatvfs(file, &found) != 0 || found.f_blocks == 0) return std::nullopt;
  return std::uint64_t{found.f_bavail} * found.f_frsize;
}

// Before anything is computed: a disk that fills up half way has wasted the half.
Status check_room(int file, const std::string& directory, const PlannedUse& planned) {
  const std::optional<std::uint64_t> free = free_on_filesystem(file);
  if (!free || planned.bytes <= *free) return {};
  const double share = static_cast<double>(*free) / static_cast<double>(planned.bytes);
  return fail(ErrorCode::exhausted, "--kv-dir ", directory, ": ", planned.positions,
              " positions need ", size_text(planned.bytes), " there and its filesystem has ",
              size_text(*free), " free, for about ",
              static_cast<std::uint64_t>(share * static_cast<double>(planned.positions)),
              ": free some, name another --kv-dir, or lower -c");
}

}  // namespace

Result<ScratchFile> ScratchFile::create(const std::string& directory, std::uint64_t budget_bytes,
                                        const PlannedUse& planned) {
  TL_TRY_ASSIGN(const std::string path, without_slashes(directory));
  if (::mkdir(path.c_str(), 0700) != 0 && errno != EEXIST) return cannot_make(path, errno);
  TL_TRY_ASSIGN(const Descriptor opened, open_private_directory(path));
  TL_TRY_ASSIGN(ScratchFile scratch, open_in(opened, path, planned));
  scratch.budget_bytes_ = budget_bytes;
  return scratch;
}

Result<std::string> ScratchFile::probe(const std::string& directory, const PlannedUse& planned) {
  TL_TRY_ASSIGN(const std::string path, without_slashes(directory));
  struct stat found {};
  Descriptor opened;
  if (::lstat(path.c_str(), &found) == 0 || errno != ENOENT) {
    TL_TRY_ASSIGN(opened, open_private_directory(path));
  } else {
    opened = Descriptor(::open(parent_of(path).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (!opened.open()) return cannot_make(path, errno);
  }
  TL_TRY_ASSIGN(const ScratchFile scratch, open_in(opened, path, planned));
  return scratch.note_;
}

Result<ScratchFile> ScratchFile::open_in(const Descriptor& opened, const std::string& directory,
                                         const PlannedUse& planned) {
  ScratchFile scratch;
  scratch.directory_ = directory;
  scratch.file_ = open_unnamed(opened, O_DIRECT);
  scratch.direct_ = scratch.file_.open() && direct_pages_work(scratch.file_);
  if (!scratch.direct_ && (scratch.file_.open() || errno == EINVAL))
    scratch.file_ = open_unnamed(opened, 0);
  if (!scratch.file_.open())
    return fail(ErrorCode::io, "--kv-dir ", directory,
                ": could not create a scratch file: ", errno_text(errno));
  // The umask may have taken even the owner's permissions; nothing may have added any.
  (void)::fchmod(scratch.file_.number(), 0600);
  TL_TRY(check_room(scratch.file_.number(), directory, planned));
  if (in_memory(scratch.file_))
    scratch.note_ = "--kv-dir " + directory +
                    " is in memory (tmpfs): what goes there takes memory, beside --kv-host; name a "
                    "folder on a disk";
  else if (!scratch.direct_)
    scratch.note_ = "--kv-dir " + directory +
                    ": its filesystem cannot be read past the page cache, which takes memory too";
  return scratch;
}

Result<Space> ScratchFile::take(std::uint64_t bytes) {
  TL_CHECK(bytes > 0 && file_.open());
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
    if (!punches_ && (end_ > budget_bytes_ || size > budget_bytes_ - end_))
      return fail(
          ErrorCode::exhausted, "disk: no ", size_text(size), " in one piece: the file of ",
          size_text(end_), " in ", directory_,
          " has room in smaller pieces, which its filesystem cannot release: raise --kv-disk");
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

Space ScratchFile::extent(std::uint64_t offset, std::uint64_t bytes) const {
  Space space;
  space.bytes = bytes;
  space.file = file_.number();
  space.offset = offset;
  return space;
}

void ScratchFile::give(const Space& space) {
  std::uint64_t offset = space.offset, size = round_up(space.bytes, kPageBytes);
  TL_CHECK(size > 0 && offset % kPageBytes == 0 && offset <= end_ && size <= end_ - offset);
  TL_CHECK(size <= held_bytes_);
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
  } else if (::ftruncate(file_.number(), static_cast<off_t>(offset)) == 0) {
    end_ = offset;
  } else {
    free_.emplace(offset, size);
  }
}

Status ScratchFile::allocate(std::uint64_t offset, std::uint64_t bytes) const {
  // Beyond this limit the kernel does not only refuse, it sends a signal that ends the process.
  rlimit limit{};
  if (::getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY &&
      (bytes > limit.rlim_cur || offset > limit.rlim_cur - bytes))
    return fail(ErrorCode::exhausted, "disk: the scratch file would grow to ",
                size_text(offset + bytes), ", RLIMIT_FSIZE is ", size_text(limit.rlim_cur),
                ": see ulimit -f, or lower --kv-disk");
  int refusal = 0;
  do {
    refusal = ::fallocate(file_.number(), 0, static_cast<off_t>(offset), static_cast<off_t>(bytes))
                  ? errno
                  : 0;
  } while (refusal == EINTR);
  if (refusal == 0) return {};
  // Part of it may have been allocated.
  if (offset >= end_)
    (void)::ftruncate(file_.number(), static_cast<off_t>(end_));
  else
    (void)release(offset, bytes);
  if (refusal == ENOSPC || refusal == EDQUOT)
    return fail(ErrorCode::exhausted, "disk: ", size_text(bytes), " more is needed in --kv-dir ",
                directory_, ", its filesystem has ",
                size_text(free_on_filesystem(file_.number()).value_or(0)), " free (",
                errno_text(refusal), "): free some, name another --kv-dir, or lower --kv-disk");
  if (refusal == EOPNOTSUPP)
    return fail(ErrorCode::unsupported, "disk: the filesystem of --kv-dir ", directory_,
                " cannot reserve space (fallocate): name another --kv-dir");
  return fail(ErrorCode::io, "disk: could not reserve ", size_text(bytes), " in --kv-dir ",
              directory_, ": ", errno_text(refusal));
}

bool ScratchFile::release(std::uint64_t offset, std::uint64_t bytes) const {
  int result = 0;
  do {
    result = ::fallocate(file_.number(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                         static_cast<off_t>(offset), static_cast<off_t>(bytes));
  } while (result != 0 && errno == EINTR);
  return result == 0;
}

}  // namespace thermocline
