// A session file taken apart, to be changed and put together again with checksums that fit: what
// only somebody who means harm would write.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "runtime/session_manifest.h"
#include "tiers/store/publication.h"

namespace thermocline::test {

class SessionParts {
 public:
  // Of a sound file.
  static SessionParts read(const std::string& path);
  // A file of its own, 0600. Records are written as they are in `bytes`, wherever the manifest says
  // that they lie in it.
  void write(const std::string& path) const;

  SessionManifest manifest;
  std::vector<std::byte> bytes;  // of the file: rows and records of segments where they were

 private:
  std::uint64_t generation_ = 0;
  std::vector<Extent> extents_;
};

}  // namespace thermocline::test
