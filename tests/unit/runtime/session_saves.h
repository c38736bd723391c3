// A text that is saved as it grows, and what is to be found of it afterwards.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "runtime/kv_cache.h"
#include "tests/support/temporary_folder.h"

namespace thermocline {

// A text is read so, call by call: its answers depend on where they end.
inline constexpr std::uint32_t kFirst = 300, kStep = 150;

CacheOptions saved_options(const std::string& path);
// The next stretch of such a text.
Status read_on(KvCache* cache, const Timeline& timeline);

class SessionSaves : public ::testing::Test {
 protected:
  // What is in the file goes on as that text does that never stopped; how long it is. 0: no file.
  // And neither beside it nor in it is there anything that nobody holds.
  std::uint32_t check();
  // What the next row gives after `length` rows, without a session.
  const std::vector<float>& due(std::uint32_t length);

  const test::TemporaryFolder temporary_{"saves"};
  const std::string root_ = temporary_.path(), path_ = root_ + "/s.tls";

 private:
  struct Found {
    std::uint32_t length = 0;
    std::uint64_t held_bytes = 0;
  };
  Found go_on();
  std::map<std::uint32_t, std::vector<float>> due_;
};

}  // namespace thermocline
