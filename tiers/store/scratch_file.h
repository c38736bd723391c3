// The disk tier's bytes: one scratch file without a name, gone with the process.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>

#include "kernels/base/error.h"
#include "tiers/io/descriptor.h"
#include "tiers/store/store.h"

namespace thermocline {

// O_TMPFILE in `directory` (else created 0600 and unlinked at once), O_DIRECT where the filesystem
// allows it for whole pages. A missing directory is made, 0700, in a parent that is there; one that
// is a symbolic link, that another user owns or that others may write to is refused, unless it is
// sticky, the caller's or root's, as /tmp is; so is a filesystem with less free than is planned.
// Space is taken with take(), in whole pages, never beyond `budget_bytes`, and allocated on the
// filesystem before it is promised: a full disk is an error here, not a later EIO. What is given
// back leaves the filesystem at once, so that its usage is held_bytes() and no more.
// Belongs to one thread; the descriptor may be read and written from any.
class ScratchFile final : public Store {
 public:
  static constexpr StoreFacts kFacts = {Tier::disk, Reach::pages};
  static Result<ScratchFile> create(const std::string& directory, std::uint64_t budget_bytes,
                                    const PlannedUse& planned = {});
  // What create() would say of the directory, an error or note(), with nothing made that stays.
  static Result<std::string> probe(const std::string& directory, const PlannedUse& planned = {});
  ScratchFile() = default;

  int descriptor() const { return file_.number(); }
  bool direct() const { return direct_; }  // else through the page cache
  // What whoever named the directory should know: that it is memory, or read through the page
  // cache; "": nothing.
  std::string note() const override { return note_; }
  std::uint64_t budget_bytes() const { return budget_bytes_; }
  std::uint64_t held_bytes() const { return held_bytes_; }

  StoreFacts facts() const override { return kFacts; }
  // An extent of `bytes` rounded up to whole pages.
  // exhausted: the message names the budget, what is held and the flag to raise (--kv-disk), or
  // the filesystem, its free space and --kv-dir.
  Result<Space> take(std::uint64_t bytes) override;
  // The extent is reused, and its blocks are released.
  void give(const Space& space) override;

 private:
  static Result<ScratchFile> open_in(const Descriptor& opened, const std::string& directory,
                                     const PlannedUse& planned);
  Status allocate(std::uint64_t offset, std::uint64_t bytes) const;
  bool release(std::uint64_t offset, std::uint64_t bytes) const;
  Space extent(std::uint64_t offset, std::uint64_t bytes) const;

  Descriptor file_;
  bool direct_ = false;
  bool punches_ = true;  // the filesystem can make holes; if not, free extents still occupy it
  std::uint64_t budget_bytes_ = 0, held_bytes_ = 0, end_ = 0;
  std::map<std::uint64_t, std::uint64_t> free_;  // offset -> bytes; neither touching nor empty
  std::string directory_, note_;
};

}  // namespace thermocline
