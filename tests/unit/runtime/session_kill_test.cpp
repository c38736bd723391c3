// Processes that are killed while they save: whoever opens the file next finds the save before,
// this one, or no file, whole; and no space that nobody holds.
#include <gtest/gtest.h>

#include <chrono>
#include <filesystem>
#include <random>
#include <set>
#include <string>

#include "tests/support/written_rows.h"
#include "tests/unit/runtime/killed_child.h"
#include "tests/unit/runtime/session_saves.h"

namespace thermocline {
namespace {

namespace fs = std::filesystem;

constexpr int kSaves = 4;

// Goes on where the file ends, saves several times, and is killed on the way.
Status write_on(const std::vector<std::string>& words) {
  TL_TRY_ASSIGN(const auto cache, KvCache::create(saved_options(words.at(0)), 1, "auto"));
  Timeline timeline;
  if (cache->saved()) {
    TL_TRY_ASSIGN(timeline, cache->resume());
  } else {
    TL_TRY_ASSIGN(timeline, cache->start());
  }
  for (int save = 0; save < kSaves; ++save) {
    TL_TRY(read_on(cache.get(), timeline));
    TL_TRY(cache->save(timeline, session_text(timeline.length())));
    if (save % 2 == 1) TL_TRY(timeline.truncate(timeline.length() - kStep));
  }
  return {};
}
const ChildsPart kWrites(write_on);

class SessionKill : public SessionSaves {
 protected:
  bool killed(const Killing& killing) {
    const Ended ended = run_child({path_}, killing);
    EXPECT_NE(ended, Ended::with_error);
    return ended == Ended::killed;
  }
};

TEST_F(SessionKill, BeforeAndAfterEveryCallOfASave) {
  int kills = 0;
  std::set<std::uint32_t> found;
  for (long at = 0;; ++at) {
    fs::remove(path_);
    const bool died = killed({.at_call = at});
    const std::uint32_t length = check();
    found.insert(length);
    if (length > 0) {
      EXPECT_EQ((length - kFirst) % kStep, 0u) << length;
    }
    if (HasFailure()) FAIL() << "killed at call " << at;
    if (!died) break;
    ++kills;
  }
  EXPECT_GE(kills, 40);
  EXPECT_TRUE(found.count(0) && found.count(kFirst) && found.count(kFirst + kStep));
  RecordProperty("kills", kills);
}

// On a file that goes from run to run.
TEST_F(SessionKill, AtAnyMoment) {
  std::mt19937 random(3);
  int kills = 0;
  std::uint32_t before = 0;
  for (int run = 0; run < 30; ++run) {
    kills += killed({.after = std::chrono::microseconds(5'000 + random() % 90'000)});
    const std::uint32_t length = check();
    if (before > 0) {
      EXPECT_GT(length, 0u) << "what was saved is gone";
    }
    if (HasFailure()) FAIL() << "run " << run;
    before = length;
    if (length > 1000) {
      fs::remove(path_);
      before = 0;
    }
  }
  EXPECT_GE(kills, 10);
  RecordProperty("kills", kills);
}

}  // namespace
}  // namespace thermocline
