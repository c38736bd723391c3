// Which parts of a file are in use, and by how much it may grow.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "kernels/base/error.h"
#include "tiers/store/store.h"

namespace thermocline {

// Space is taken in whole pages, never beyond `budget_bytes`, and allocated on the filesystem
// before it is promised: a full disk is an error here, not a later EIO. What is given back leaves
// the filesystem at once, so that its usage is held_bytes() and no more. The file is the owner's;
// it belongs to one thread.
class Extents {
 public:
  Extents() = default;
  // Of `file` from byte `begin` on, where nothing is in use yet: what is before it is the owner's.
  // `where` is how its place was named ("--kv-dir /data").
  Extents(int file, std::string where, std::uint64_t begin, std::uint64_t budget_bytes)
      : file_(file),
        where_(std::move(where)),
        budget_bytes_(budget_bytes),
        begin_(begin),
        end_(begin) {}

  std::uint64_t budget_bytes() const { return budget_bytes_; }
  std::uint64_t held_bytes() const { return held_bytes_; }

  // An extent of `bytes` rounded up to whole pages.
  // exhausted: the message names the budget, what is held and the flag to raise (--kv-disk), or
  // the filesystem, its free space and its place.
  Result<Space> take(std::uint64_t bytes);
  // The extent is reused, and its blocks are released.
  void give(const Space& space);
  // An extent that was in use before the file was opened: whole pages, free as yet.
  // exhausted: it is beyond the budget.
  Status claim(std::uint64_t offset, std::uint64_t bytes);
  // Releases whatever the filesystem still holds of free space.
  void trim();
  // Whether the file has always reached to the end of what is in use, as far as was looked: now,
  // and whenever space was taken or given back, which may have made it as long again.
  bool is_whole() const;

 private:
  Status allocate(std::uint64_t offset, std::uint64_t bytes) const;
  bool release(std::uint64_t offset, std::uint64_t bytes) const;
  bool is_long_enough() const;
  Space extent(std::uint64_t offset, std::uint64_t bytes) const;

  int file_ = -1;
  std::string where_;
  bool stayed_whole_ = true;
  bool punches_ = true;  // the filesystem can make holes; if not, free extents still occupy it
  std::uint64_t budget_bytes_ = 0, held_bytes_ = 0, begin_ = 0, end_ = 0;
  std::map<std::uint64_t, std::uint64_t> free_;  // offset -> bytes; neither touching nor empty
};

}  // namespace thermocline
