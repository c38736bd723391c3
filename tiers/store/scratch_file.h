// The disk tier's bytes: one scratch file without a name, gone with the process.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "kernels/base/error.h"

namespace thermocline {

// O_TMPFILE in `directory` (else created 0600 and unlinked at once), O_DIRECT where the filesystem
// allows it. The directory is made 0700 if it is missing; one that another user owns or may write
// to is refused. Space is taken with take(), page aligned, never beyond `budget_bytes`, and
// allocated on the filesystem before it is promised: a full disk is an error here, not a later EIO.
class ScratchFile {
 public:
  static Result<ScratchFile> create(const std::string& directory, std::uint64_t budget_bytes);
  ScratchFile() = default;
  ScratchFile(ScratchFile&&) noexcept;
  ScratchFile& operator=(ScratchFile&&) noexcept;
  ~ScratchFile();

  int descriptor() const { return descriptor_; }
  bool direct() const { return direct_; }
  std::uint64_t budget_bytes() const { return budget_bytes_; }
  std::uint64_t held_bytes() const { return held_bytes_; }

  // An extent of `bytes` rounded up to whole pages; its offset. exhausted: the message names the
  // budget, what is held and the flag to raise (--kv-disk), or the filesystem's free space.
  Result<std::uint64_t> take(std::uint64_t bytes);
  // Gives an extent back (same arguments as taken): it is reused, and its blocks are released.
  void give(std::uint64_t offset, std::uint64_t bytes);

 private:
  struct Free;  // sorted free extents
  int descriptor_ = -1;
  bool direct_ = false;
  std::uint64_t budget_bytes_ = 0, held_bytes_ = 0, end_ = 0;
  std::string directory_;
  Free* free_ = nullptr;
};

}  // namespace thermocline
