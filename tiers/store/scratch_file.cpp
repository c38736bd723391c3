#include "tiers/store/scratch_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <random>

#include "tiers/io/errno_text.h"
#include "tiers/store/filesystem.h"

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

}  // namespace

Result<ScratchFile> ScratchFile::create(const std::string& directory, std::uint64_t budget_bytes,
                                        const PlannedUse& planned) {
  TL_TRY_ASSIGN(const std::string path, without_slashes(directory));
  if (::mkdir(path.c_str(), 0700) != 0 && errno != EEXIST) return cannot_make(path, errno);
  TL_TRY_ASSIGN(const Descriptor opened, open_private_directory(path));
  TL_TRY_ASSIGN(ScratchFile scratch, open_in(opened, path, planned));
  scratch.extents_ = Extents(scratch.descriptor(), "--kv-dir " + path, 0, budget_bytes);
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
  const std::string where = "--kv-dir " + directory;
  scratch.name_ = where + ": scratch file";
  scratch.file_ = open_unnamed(opened, O_DIRECT);
  scratch.direct_ = scratch.file_.open() && direct_pages_work(scratch.descriptor());
  if (!scratch.direct_ && (scratch.file_.open() || errno == EINVAL))
    scratch.file_ = open_unnamed(opened, 0);
  if (!scratch.file_.open())
    return fail(ErrorCode::io, where, ": could not create a scratch file: ", errno_text(errno));
  // The umask may have taken even the owner's permissions; nothing may have added any.
  (void)::fchmod(scratch.file_.number(), 0600);
  TL_TRY(check_planned(scratch.descriptor(), where, planned));
  scratch.note_ = note_on_filesystem(scratch.descriptor(), where, scratch.direct_);
  return scratch;
}

}  // namespace thermocline
