// The disk tier's bytes: one scratch file without a name, gone with the process.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "kernels/base/error.h"
#include "tiers/io/descriptor.h"
#include "tiers/store/extents.h"
#include "tiers/store/store.h"

namespace thermocline {

// O_TMPFILE in `directory` (else created 0600 and unlinked at once), O_DIRECT where the filesystem
// allows it for whole pages. A missing directory is made, 0700, in a parent that is there; one that
// is a symbolic link, that another user owns or that others may write to is refused, unless it is
// sticky, the caller's or root's, as /tmp is; so is a filesystem with less free than is planned.
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
  std::uint64_t held_bytes() const { return extents_.held_bytes(); }

  StoreFacts facts() const override { return kFacts; }
  const std::string& name() const override { return name_; }
  Result<Space> take(std::uint64_t bytes) override { return extents_.take(bytes); }
  void give(const Space& space) override { extents_.give(space); }

 private:
  static Result<ScratchFile> open_in(const Descriptor& opened, const std::string& directory,
                                     const PlannedUse& planned);

  Descriptor file_;
  Extents extents_;
  bool direct_ = false;
  std::string name_ = "scratch file", note_;
};

}  // namespace thermocline
