// What a file holds on the disk.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdint>
#include <string>

#include "tiers/io/descriptor.h"

namespace thermocline::test {

// Without holes. Not the file's blocks: of those a filesystem takes another one for its own list of
// extents when they happen to be a few more.
inline std::uint64_t data_bytes(const std::string& path) {
  const Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  EXPECT_TRUE(file.open()) << path;
  std::uint64_t bytes = 0;
  for (off_t hole = 0;;) {
    const off_t data = ::lseek(file.number(), hole, SEEK_DATA);
    if (data < 0) return bytes;
    hole = ::lseek(file.number(), data, SEEK_HOLE);
    bytes += static_cast<std::uint64_t>(hole - data);
  }
}

}  // namespace thermocline::test
