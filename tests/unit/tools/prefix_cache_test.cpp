// The folder of kept prompts: what counts, what goes first, and that two processes do not fill the
// same room.
#include "tools/thermocline/prefix_cache.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <atomic>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <thread>

#include "tests/support/temporary_folder.h"
#include "tests/support/written_rows.h"

namespace thermocline {
namespace {

namespace fs = std::filesystem;
constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;

class PrefixCacheTest : public ::testing::Test {
 protected:
  PrefixCache open(std::uint64_t budget_bytes) const {
    auto cache = PrefixCache::open(budget_bytes, PrefixCache::Missing::is_made, folder_);
    EXPECT_TRUE(cache);
    return std::move(*cache);
  }
  std::string entry(const std::string& name) const { return folder_ + "/" + name + ".tls"; }
  void make_session(const std::string& name) const {
    CacheOptions options;
    options.layers = {plain_layer(1, 1, 16, 16)};
    options.method_directory = std::string(THERMOCLINE_SOURCE_DIR) + "/configs/methods";
    options.max_positions = 100;
    options.session.path = entry(name);
    const auto cache = KvCache::create(options, 1, "auto");
    ASSERT_TRUE(cache) << cache.error().message;
    const auto timeline = (*cache)->start();
    ASSERT_TRUE(timeline);
    ASSERT_TRUE(advance(cache->get(), *timeline, 50, Pass::prefill));
    ASSERT_TRUE((*cache)->save(*timeline, session_text(50)));
  }
  void make_garbage(const std::string& name) const {
    std::ofstream(entry(name)) << std::string(kMiB, 'x');
  }
  // As if it had been used so many nanoseconds into one second.
  void use(const std::string& name, long nanoseconds) const {
    const timespec at[2] = {{1'700'000'000, nanoseconds}, {1'700'000'000, nanoseconds}};
    ASSERT_EQ(::utimensat(AT_FDCWD, entry(name).c_str(), at, 0), 0);
  }
  std::uint64_t held_bytes() const {
    std::uint64_t bytes = 0;
    for (const auto& file : fs::directory_iterator(folder_)) {
      struct stat found {};
      if (::stat(file.path().c_str(), &found) == 0)
        bytes += static_cast<std::uint64_t>(found.st_blocks) * 512;
    }
    return bytes;
  }

  const test::TemporaryFolder temporary_{"prefixes"};
  const std::string root_ = temporary_.path(), folder_ = root_ + "/prefixes";
};

TEST_F(PrefixCacheTest, WhatCannotBeReadCountsAndGoesFirst) {
  (void)open(kMiB);
  make_session("old");
  make_garbage("new");
  use("old", 1);
  const PrefixCache cache = open(held_bytes() + kMiB / 2);
  const auto keeping = cache.begin_keeping();
  ASSERT_TRUE(keeping);
  EXPECT_TRUE(cache.make_room(*keeping, kMiB, entry("mine")));
  EXPECT_TRUE(fs::exists(entry("old")));
  EXPECT_FALSE(fs::exists(entry("new")));
}

TEST_F(PrefixCacheTest, TheOneUsedLongestAgoGoesWithinASecondToo) {
  (void)open(kMiB);
  for (const char* name : {"a", "b", "c"}) make_session(name);
  use("a", 30);
  use("b", 10);
  use("c", 20);
  const PrefixCache cache = open(held_bytes());
  const auto keeping = cache.begin_keeping();
  ASSERT_TRUE(keeping);
  EXPECT_TRUE(cache.make_room(*keeping, 1, entry("mine")));
  EXPECT_TRUE(fs::exists(entry("a")));
  EXPECT_FALSE(fs::exists(entry("b")));
  EXPECT_TRUE(fs::exists(entry("c")));
}

// What other budgets left behind, whether or not the run keeps anything; what it goes on with is
// the last to go, and goes where it alone is too much.
TEST_F(PrefixCacheTest, ABudgetHoldsForWhatIsThereAlready) {
  (void)open(kMiB);
  for (const char* name : {"a", "b", "c"}) make_session(name);
  use("a", 10);
  use("b", 20);
  use("c", 30);
  const std::uint64_t one = held_bytes() / 3;
  const auto there = [&] {
    std::string names;
    for (const char* name : {"a", "b", "c"}) names += fs::exists(entry(name)) ? name : "";
    return names;
  };
  open(3 * one).hold_budget(0, entry("a"));
  EXPECT_EQ(there(), "abc");
  open(2 * one).hold_budget(one / 2, entry("a"));
  EXPECT_EQ(there(), "ac");
  open(3 * one).hold_budget(2 * one, entry("new"));
  EXPECT_EQ(there(), "c") << "room for one that is not there yet";
  open(one).hold_budget(2 * one, entry("new"));
  EXPECT_EQ(there(), "c") << "no room is made for what has none";
  open(one - 1).hold_budget(0, entry("c"));
  EXPECT_EQ(there(), "");
}

TEST_F(PrefixCacheTest, OneProcessAtATimeKeeps) {
  const PrefixCache cache = open(kMiB);
  std::optional<PrefixCache::Keeping> first = std::move(*cache.begin_keeping());
  std::atomic<bool> second = false;
  std::thread other([&] {
    EXPECT_TRUE(cache.begin_keeping());
    second = true;
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  EXPECT_FALSE(second);
  first.reset();
  other.join();
  EXPECT_TRUE(second);
}

TEST_F(PrefixCacheTest, AMissingFolderMayStayMissing) {
  const auto cache = PrefixCache::open(kMiB, PrefixCache::Missing::stays, folder_ + "/deep");
  ASSERT_TRUE(cache);
  const std::vector<int> tokens = {1, 2, 3};
  EXPECT_TRUE(cache->choose({}, tokens).starts_with(root_ + "/"));
  EXPECT_FALSE(fs::exists(folder_));
}

}  // namespace
}  // namespace thermocline
