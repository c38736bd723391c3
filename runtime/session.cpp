#include "runtime/session.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <set>
#include <utility>

#include "kernels/base/buffer.h"
#include "runtime/session_manifest.h"
#include "tiers/io/checksum.h"
#include "tiers/io/descriptor.h"
#include "tiers/io/errno_text.h"
#include "tiers/io/file_lock.h"
#include "tiers/io/read_fully.h"
#include "tiers/segment_record.h"
#include "tiers/store/publication.h"

namespace thermocline {
namespace {

struct OpenSession {
  Descriptor file;
  Publication published;
  SessionManifest manifest;
};

Result<Descriptor> open_file(const std::string& path) {
  Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
  struct stat found {};
  if (!file.open() && errno == ELOOP)
    return fail(ErrorCode::invalid_argument, path, " is a symbolic link: name the file itself");
  if (!file.open() || ::fstat(file.number(), &found) != 0)
    return fail(errno == ENOENT ? ErrorCode::not_found : ErrorCode::io, path,
                ": could not open it: ", errno_text(errno));
  if (!S_ISREG(found.st_mode)) return fail(ErrorCode::corrupt, path, ": it is not a file");
  return file;
}

Result<OpenSession> open_session(const std::string& path) {
  OpenSession session;
  TL_TRY_ASSIGN(session.file, open_file(path));
  // A process that saves meanwhile may have freed what the header of a moment ago referred to.
  Result<Publication> read = read_publication(session.file.number(), path);
  for (int more = 0; !read && read.error().code == ErrorCode::corrupt && more < 3; ++more)
    read = read_publication(session.file.number(), path);
  TL_TRY_ASSIGN(session.published, std::move(read));
  TL_TRY_ASSIGN(session.manifest, SessionManifest::decode(session.published.manifest, path));
  return session;
}

std::string damaged(const char* what, std::uint64_t offset) {
  return std::string(what) + " at " + std::to_string(offset) +
         " is damaged (the checksum does not match)";
}

bool refers_to(const Publication& published, const Extent& extent) {
  for (const Extent& one : published.extents)
    if (one.offset == extent.offset && one.bytes == extent.bytes) return true;
  return false;
}

bool is_stored(const OpenSession& session, const Extent& extent, const char* what,
               SessionCheck* found) {
  const Status stored = check_stored(session.file.number(), what, extent.offset, extent.bytes);
  if (!stored) found->damage.push_back(stored.error().message);
  return stored.has_value();
}

// Adds to `found` what of one segment is not as it was written.
Status verify_segment(const OpenSession& session, const std::string& path,
                      const PageTable::Record& at, const StopAsked& stop, SessionCheck* found) {
  if (!refers_to(session.published, {at.offset, at.bytes})) {
    found->damage.push_back("no extent holds the record at " + std::to_string(at.offset));
    return {};
  }
  if (!is_stored(session, {at.offset, at.bytes}, "the record", found)) return {};
  TL_TRY_ASSIGN(const Buffer image, Buffer::create(at.bytes));
  TL_TRY(read_fully(session.file.number(), path, at.offset, image.bytes()));
  found->bytes += at.bytes;
  if (page_checksum(image.bytes(), at.offset) != at.checksum) {
    found->damage.push_back(damaged("the record", at.offset));
    return {};
  }
  const auto record =
      SegmentRecord::decode(image.bytes(), "the record at " + std::to_string(at.offset));
  if (!record || !refers_to(session.published, record->rows)) {
    found->damage.push_back(record ? "no extent holds the rows at " +
                                         std::to_string(record->rows.offset)
                                   : record.error().message);
    return {};
  }
  if (!is_stored(session, record->rows, "the rows", found)) return {};
  TL_TRY_ASSIGN(const Buffer head, Buffer::create(record->head_bytes()));
  const std::size_t pages = head.size() / kPageBytes;
  for (std::uint32_t h = 0; h < record->segment.heads; ++h) {
    if (stop && stop()) return fail(ErrorCode::cancelled, path, ": verifying was stopped");
    TL_TRY(read_fully(session.file.number(), path, record->rows.offset + h * head.size(),
                      head.bytes()));
    found->bytes += head.size();
    for (std::size_t p = 0; p < pages; ++p) {
      const std::size_t page = h * pages + p;
      ++found->pages;
      if (page_checksum(head.bytes().subspan(p * kPageBytes, kPageBytes),
                        SegmentRecord::identity(record->epoch, record->rows.offset, page)) !=
          record->checksums[page])
        found->damage.push_back(damaged("the page", record->rows.offset + page * kPageBytes));
    }
  }
  return {};
}

Status verify_segments(const OpenSession& session, const std::string& path, const StopAsked& stop,
                       SessionCheck* found) {
  for (const SessionManifest::Layer& layer : session.manifest.layers)
    for (const PageTable::Record& record : layer.runs)
      TL_TRY(verify_segment(session, path, record, stop, found));
  return {};
}

}  // namespace

Result<SavedSession> read_session(const std::string& path) {
  TL_TRY_ASSIGN(OpenSession session, open_session(path));
  struct stat found {};
  if (::fstat(session.file.number(), &found) != 0)
    return fail(ErrorCode::io, path, ": could not be looked at: ", errno_text(errno));
  SavedSession saved;
  saved.saves = session.published.generation;
  saved.disk_bytes = static_cast<std::uint64_t>(found.st_blocks) * 512;
  saved.saved_at = found.st_mtime;
  saved.held.positions = session.manifest.length;
  saved.facts = std::move(session.manifest.facts);
  saved.method = std::move(session.manifest.method);
  saved.text = std::move(session.manifest.text);
  std::set<std::uint32_t> ends;  // a layer may have joined what another has not
  for (const SessionManifest::Layer& layer : session.manifest.layers) {
    saved.segments += layer.runs.size();
    saved.held.tails.push_back(saved.held.positions -
                               std::min(saved.held.positions, layer.tail_first));
    std::uint32_t end = 0;
    for (const PageTable::Record& record : layer.runs) {
      const auto rows = static_cast<std::uint32_t>(record.rows);
      saved.held.longest_segment = std::max(saved.held.longest_segment, rows);
      ends.insert(end += rows);
    }
  }
  std::uint32_t from = 0;
  for (const std::uint32_t end : ends)
    saved.held.segments.push_back(end - std::exchange(from, end));
  saved.layers = session.manifest.layers.size();
  return saved;
}

Result<SessionCheck> verify_session(const std::string& path, const StopAsked& stop) {
  TL_TRY_ASSIGN(const OpenSession session, open_session(path));
  SessionCheck found;
  const Status read = verify_segments(session, path, stop, &found);
  if (read && found.damage.empty()) return found;
  // Nobody is kept from saving it: then what was read may be of no session any more.
  const auto now = read_publication(session.file.number(), path);
  if (now && now->generation != session.published.generation)
    return fail(ErrorCode::invalid_argument, path,
                ": another process has saved it while it was read: verify it again");
  TL_TRY(read);
  return found;
}

bool is_session(const std::string& path) {
  const auto file = open_file(path);
  return file && check_is_session(file->number(), path);
}

bool session_is_free(const std::string& path) {
  const auto file = open_file(path);
  return file && lock_file(file->number());
}

Status remove_session(const std::string& path) {
  TL_TRY_ASSIGN(const Descriptor file, open_file(path));
  TL_TRY(check_is_session(file.number(), path));
  if (!lock_file(file.number()))
    return fail(ErrorCode::io, path, " is in use by another process: it stays");
  if (::unlink(path.c_str()) != 0)
    return fail(ErrorCode::io, path, ": could not be removed: ", errno_text(errno));
  return {};
}

}  // namespace thermocline
