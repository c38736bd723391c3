#include "tiers/store/session_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "kernels/base/buffer.h"
#include "tiers/io/attempt.h"
#include "tiers/io/errno_text.h"
#include "tiers/io/file_lock.h"
#include "tiers/io/name_claim.h"
#include "tiers/store/filesystem.h"

namespace thermocline {
namespace {

std::string folder_of(const std::string& path) {
  const std::size_t slash = path.rfind('/');
  return slash == std::string::npos ? "." : slash == 0 ? "/" : path.substr(0, slash);
}
std::string file_of(const std::string& path) { return path.substr(path.rfind('/') + 1); }

// It holds the user's text, and is read as it is: nobody else may have written it.
Status check_file(int file, const std::string& name) {
  struct stat found {};
  if (::fstat(file, &found) != 0)
    return fail(ErrorCode::io, name, ": could not be looked at: ", errno_text(errno));
  if (!S_ISREG(found.st_mode))
    return fail(ErrorCode::invalid_argument, name, " is not a file: name another");
  if (found.st_uid != ::geteuid())
    return fail(ErrorCode::invalid_argument, name, " belongs to user ", found.st_uid,
                ", this process to ", ::geteuid(), ": name a file of your own");
  if (found.st_mode & (S_IWGRP | S_IWOTH))
    return fail(ErrorCode::invalid_argument, name,
                " may be written to by others: take that right away (chmod go-w), if the content "
                "is yours");
  return {};
}

// Not open, and no error: there is no such file.
Result<Descriptor> open_existing(int directory, const std::string& path, const std::string& name) {
  const std::string file = file_of(path);
  struct stat found {};
  if (::fstatat(directory, file.c_str(), &found, AT_SYMLINK_NOFOLLOW) != 0) {
    if (errno == ENOENT) return Descriptor();
    return fail(ErrorCode::io, name, ": could not be looked at: ", errno_text(errno));
  }
  if (S_ISLNK(found.st_mode))
    return fail(ErrorCode::invalid_argument, name, " is a symbolic link: name the file itself");
  constexpr int kFlags = O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK;
  Descriptor opened(::openat(directory, file.c_str(), kFlags | O_DIRECT));
  if (opened.open() ? !direct_pages_can_be_read(opened.number()) : errno == EINVAL)
    opened = Descriptor(::openat(directory, file.c_str(), kFlags));
  if (!opened.open() && (errno == EACCES || errno == EROFS))
    return fail(ErrorCode::io, name, ": a session is written to, and this process may not: ",
                errno == EROFS ? "its filesystem is read-only: copy it to another"
                               : "give yourself the right to read and write it (chmod u+rw)");
  if (!opened.open()) return fail(ErrorCode::io, name, ": could not open it: ", errno_text(errno));
  TL_TRY(check_file(opened.number(), name));
  return opened;
}

Result<Descriptor> open_new(int directory, const std::string& name) {
  constexpr int kFlags = O_TMPFILE | O_RDWR | O_CLOEXEC;
  Descriptor opened(::openat(directory, ".", kFlags | O_DIRECT, 0600));
  if (opened.open() && !direct_pages_work(opened.number())) opened = Descriptor();
  if (!opened.open()) opened = Descriptor(::openat(directory, ".", kFlags, 0600));
  if (!opened.open() && (errno == EOPNOTSUPP || errno == EISDIR || errno == ENOENT))
    return fail(ErrorCode::unsupported, name,
                ": its filesystem has no files without a name (O_TMPFILE), which a session is "
                "until it is saved: name a place on another one");
  if (!opened.open())
    return fail(ErrorCode::io, name, ": could not create it: ", errno_text(errno));
  // The umask may have taken even the owner's permissions; nothing may have added any.
  (void)::fchmod(opened.number(), 0600);
  return opened;
}

Result<Descriptor> open_folder(const std::string& path, const std::string& name) {
  if (path.empty() || file_of(path).empty())
    return fail(ErrorCode::invalid_argument, name, " names no file");
  Descriptor folder(::open(folder_of(path).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (folder.open()) return folder;
  return fail(errno == ENOENT ? ErrorCode::not_found : ErrorCode::io, name, ": its folder ",
              folder_of(path), " could not be opened: ", errno_text(errno));
}

bool is_direct(int file) { return (::fcntl(file, F_GETFL) & O_DIRECT) != 0; }

}  // namespace

Result<SessionFile> SessionFile::open(const std::string& path, std::uint64_t budget_bytes,
                                      const PlannedUse& planned) {
  SessionFile session;
  session.path_ = path;
  session.name_ = "--session " + path;
  TL_TRY_ASSIGN(session.directory_, open_folder(path, session.name_));
  TL_TRY(session.find());
  if (session.named_) {
    TL_TRY(session.take_publication(budget_bytes));
    TL_TRY(check_planned(session.descriptor(), session.name_, planned));
  } else {
    TL_TRY_ASSIGN(session.file_, open_new(session.directory_.number(), session.name_));
    TL_TRY(check_planned(session.descriptor(), session.name_, planned));
    TL_TRY(session.lock());
    session.extents_ =
        Extents(session.descriptor(), session.name_, kSessionHeaderBytes, budget_bytes);
  }
  session.note_ =
      note_on_filesystem(session.descriptor(), session.name_, is_direct(session.descriptor()));
  return session;
}

Status SessionFile::find() {
  for (bool claimed = false;;) {
    TL_TRY_ASSIGN(file_, open_existing(directory_.number(), path_, name_));
    named_ = file_.open();
    if (named_) {
      TL_TRY(lock());
      // While another process had it, its name may have gone, or to another file.
      if (!has_its_name()) continue;
      claim_ = Descriptor();
      return {};
    } else if (claimed) {
      return {};
    } else {  // looked for once more: it may have been made until now
      auto claim = claim_name(directory_.number(), file_of(path_));
      if (!claim)
        return fail(ErrorCode::io, name_,
                    " is being made by another process: wait for it, or name another");
      claim_ = std::move(*claim);
      claimed = true;
    }
  }
}

Status SessionFile::take_publication(std::uint64_t budget_bytes) {
  TL_TRY_ASSIGN(Publication last, read_publication(descriptor(), name_));
  extents_ = Extents(descriptor(), name_, kSessionHeaderBytes, budget_bytes);
  TL_TRY(extents_.claim(last.record.offset, last.record.bytes));
  for (const Extent& extent : last.extents) {
    TL_TRY(extents_.claim(extent.offset, extent.bytes));
    published_.emplace(extent.offset, extent.bytes);
    unheld_bytes_ += extent.bytes;
  }
  unheld_ = published_;
  record_ = last.record;
  records_bytes_ = record_.bytes;
  generation_ = last.generation;
  manifest_ = std::move(last.manifest);
  extents_.trim();  // what an earlier process took and did not live to publish
  return {};
}

Status SessionFile::lock() const {
  if (lock_file(descriptor())) return {};
  if (errno != EWOULDBLOCK && errno != EINTR)
    return fail(ErrorCode::io, name_, ": could not be locked: ", errno_text(errno));
  return fail(ErrorCode::io, name_, " is in use by another process: wait for it, or copy the file");
}

Result<std::string> SessionFile::probe(const std::string& path, const PlannedUse& planned) {
  const std::string name = "--session " + path;
  TL_TRY_ASSIGN(const Descriptor folder, open_folder(path, name));
  TL_TRY_ASSIGN(Descriptor file, open_existing(folder.number(), path, name));
  if (file.open()) {
    TL_TRY(read_publication(file.number(), name));
  } else {
    TL_TRY_ASSIGN(file, open_new(folder.number(), name));
  }
  TL_TRY(check_planned(file.number(), name, planned));
  return note_on_filesystem(file.number(), name, is_direct(file.number()));
}

Result<Space> SessionFile::claim(const Extent& extent) {
  const auto found = unheld_.find(extent.offset);
  if (found == unheld_.end() || found->second != extent.bytes)
    return fail(ErrorCode::corrupt, name_, ": nothing of ", extent.bytes, " bytes at ",
                extent.offset, " is left to claim in it");
  unheld_.erase(found);
  unheld_bytes_ -= extent.bytes;
  Space space;
  space.bytes = extent.bytes;
  space.file = descriptor();
  space.offset = extent.offset;
  return space;
}

Status SessionFile::stop_keeping() {
  if (!keeps()) return {};
  TL_TRY_ASSIGN(scratch_file_, open_new(directory_.number(), name_));
  scratch_ =
      Extents(scratch_file_.number(), name_, 0, extents_.budget_bytes() - extents_.held_bytes());
  claim_ = Descriptor();
  return {};
}

void SessionFile::give(const Space& space) {
  if (scratch_file_.open() && space.file == scratch_file_.number()) return scratch_.give(space);
  const auto found = published_.find(space.offset);
  if (found == published_.end()) return extents_.give(space);
  TL_CHECK(unheld_.emplace(*found).second);  // given back twice
  unheld_bytes_ += found->second;
}

// Else the first or second save could be the one that finds no room for its header: when everything
// else is written, and in a file that has no other way to be saved.
Status SessionFile::allocate_headers() const {
  int refusal = 0;
  do {
    refusal = ::fallocate(descriptor(), 0, 0, kSessionHeaderBytes) ? errno : 0;
  } while (refusal == EINTR);
  if (refusal == 0) return {};
  return fail(refusal == ENOSPC || refusal == EDQUOT ? ErrorCode::exhausted : ErrorCode::io, name_,
              ": could not reserve ", kSessionHeaderBytes,
              " bytes for its headers: ", errno_text(refusal));
}

Status SessionFile::write(const Buffer& pages, std::uint64_t offset) const {
  Attempt attempt;
  attempt.transfer.kind = Transfer::Kind::write;
  attempt.transfer.offset = offset;
  attempt.transfer.bytes = pages.bytes();
  for (;;) {
    const auto rest = attempt.rest();
    const ssize_t count =
        ::pwrite(descriptor(), rest.data(), rest.size(), static_cast<off_t>(attempt.offset()));
    const auto error = attempt.settle(count < 0 ? -errno : count);
    if (error == 0) return {};
    if (error)
      return fail(ErrorCode::io, name_, ": writing ", rest.size(), " bytes at ", attempt.offset(),
                  " failed: ", errno_text(*error));
  }
}

// The system tells of pages that it lost once, and takes them for written from then on: asked again
// it would say that all is well.
Status SessionFile::sync(int file) {
  int refusal = 0;
  do {
    refusal = ::fsync(file) ? errno : 0;
  } while (refusal == EINTR);
  if (refusal == 0) return {};
  uncertain_ = true;
  return fail(ErrorCode::io, name_, ": could not be brought to the disk: ", errno_text(refusal));
}

bool SessionFile::has_its_name() const {
  struct stat own {
  }, found{};
  return ::fstat(descriptor(), &own) == 0 &&
         ::fstatat(directory_.number(), file_of(path_).c_str(), &found, AT_SYMLINK_NOFOLLOW) == 0 &&
         own.st_dev == found.st_dev && own.st_ino == found.st_ino;
}

Status SessionFile::give_a_name() const {
  const std::string self = "/proc/self/fd/" + std::to_string(descriptor());
  int refusal = 0;
  do {
    refusal = ::linkat(AT_FDCWD, self.c_str(), directory_.number(), file_of(path_).c_str(),
                       AT_SYMLINK_FOLLOW)
                  ? errno
                  : 0;
  } while (refusal == EINTR);
  // A filesystem behind a network may have done it and lost the answer.
  if (refusal == 0 || has_its_name()) return {};
  if (refusal == EEXIST)
    return fail(ErrorCode::io, name_,
                ": another process has made it meanwhile: it stays as it is, name another");
  return fail(ErrorCode::io, name_, ": could not be given its name: ", errno_text(refusal));
}

// Others may write to it as its owner. What they cut off is in no publication, whatever was written
// behind it since.
Status SessionFile::check_whole() const {
  if (extents_.is_whole()) return {};
  return fail(ErrorCode::corrupt, name_,
              ": the file was cut short while it was in use, so nothing can be saved in it any "
              "more: name another, and let it be made anew");
}

// Until the header is written nothing that counts has changed; when it is on the disk, everything
// has. In between nobody knows, so what either may refer to stays then.
Status SessionFile::publish(const WriteRecord& manifest, std::span<const Extent> extents) {
  TL_CHECK(keeps());
  if (uncertain_)
    return fail(ErrorCode::io, name_,
                ": an earlier save could not be brought to the disk, so it cannot be saved any "
                "more: ",
                named_ ? "what it holds is shown by 'thermocline session verify'"
                       : "name another file, and let it be made anew");
  if (named_ && !has_its_name())
    return fail(
        ErrorCode::not_found, name_,
        ": the file was removed or replaced while it was in use, so nothing can be saved in "
        "it any more: name another");
  if (generation_ >= kMostGenerations)
    return fail(ErrorCode::exhausted, name_, " was saved ", generation_,
                " times, which is as often as a file can be: make it anew in another");
  if (generation_ < 2) TL_TRY(allocate_headers());
  TL_TRY_ASSIGN(const Buffer record, encode_record(manifest, extents));
  TL_TRY_ASSIGN(const Space place, extents_.take(record.size()));
  Status counts = write_record(record, place.offset);
  if (counts) counts = check_whole();
  if (counts) {
    counts = write_header(generation_ + 1, place.offset, record);
    if (!counts && named_) {
      uncertain_ = true;
      records_bytes_ += record.size();
      for (const Extent& extent : extents) published_.emplace(extent.offset, extent.bytes);
      return counts;
    }
  }
  if (counts && !named_) counts = give_a_name();
  if (!counts) {  // no header that anyone can find refers to it
    extents_.give(place);
    return counts;
  }
  take_effect(extents, {place.offset, record.size()});
  if (named_) return {};
  named_ = true;
  claim_ = Descriptor();
  return sync(directory_.number());
}

void SessionFile::take_effect(std::span<const Extent> extents, const Extent& record) {
  published_.clear();
  for (const Extent& extent : extents) published_.emplace(extent.offset, extent.bytes);
  for (const auto& [offset, bytes] : std::exchange(unheld_, {})) {
    TL_CHECK(published_.count(offset) == 0);  // published, and nobody holds it
    give_back({offset, bytes});
  }
  unheld_bytes_ = 0;
  if (generation_ > 0) give_back(record_);
  ++generation_;
  record_ = record;
  records_bytes_ = record.bytes;
}

Status SessionFile::write_record(const Buffer& record, std::uint64_t offset) {
  TL_TRY(write(record, offset));
  return sync(descriptor());
}

Status SessionFile::write_header(std::uint64_t generation, std::uint64_t record_offset,
                                 const Buffer& record) {
  TL_TRY_ASSIGN(const Buffer header, encode_header(generation, record_offset, record.bytes()));
  TL_TRY(write(header, header_offset(generation)));
  return sync(descriptor());
}

void SessionFile::give_back(const Extent& extent) {
  Space space;
  space.bytes = extent.bytes;
  space.offset = extent.offset;
  extents_.give(space);
}

}  // namespace thermocline
