// Processes that are killed while they save: whoever opens the file next finds the save before,
// this one, or no file, whole; and no space that nobody holds.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <random>
#include <set>
#include <string>
#include <thread>

#include "tests/support/written_rows.h"
#include "tests/unit/runtime/save_calls.h"
#include "tests/unit/runtime/session_saves.h"

namespace thermocline {
namespace {

namespace fs = std::filesystem;

constexpr int kSaves = 4;

// The process ends itself before the call that it was told, or right after it.
std::atomic<long> calls_left{-1};

void maybe_die() {
  if (calls_left.load() >= 0 && calls_left.fetch_sub(1) == 0) ::kill(::getpid(), SIGKILL);
}

// Goes on where the file ends, saves several times, and is killed on the way.
Status write_on(const std::string& path) {
  TL_TRY_ASSIGN(const auto cache, KvCache::create(saved_options(path), 1, "auto"));
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

// The child is this program again, which does this instead of its tests.
class ChildsPart : public ::testing::Environment {
 public:
  void SetUp() override {
    const char* path = std::getenv("SESSION_KILL_PATH");
    if (!path) return;
    calls_left = std::atol(std::getenv("SESSION_KILL_AT"));
    const auto live = [](SaveCall) {
      maybe_die();
      return CallFate{};
    };
    watch_save_calls({live, maybe_die});
    ::_exit(write_on(path) ? 0 : 1);
  }
};
const ::testing::Environment* const kChildsPart =
    ::testing::AddGlobalTestEnvironment(new ChildsPart);

class SessionKill : public SessionSaves {
 protected:
  // Whether it was killed: by itself before or after call number `at`, or by us after `after`.
  bool killed(long at, std::chrono::microseconds after = {}) {
    const pid_t child = ::fork();
    if (child == 0) {
      ::setenv("SESSION_KILL_PATH", path_.c_str(), 1);
      ::setenv("SESSION_KILL_AT", std::to_string(at).c_str(), 1);
      ::dup2(::open("/dev/null", O_WRONLY), STDOUT_FILENO);
      ::execl("/proc/self/exe", "child", "--gtest_filter=SessionKill.AtAnyMoment", nullptr);
      ::_exit(127);
    }
    if (after.count() > 0) {
      std::this_thread::sleep_for(after);
      ::kill(child, SIGKILL);
    }
    int status = 0;
    EXPECT_EQ(::waitpid(child, &status, 0), child);
    if (WIFSIGNALED(status)) return true;
    EXPECT_EQ(WEXITSTATUS(status), 0);
    return false;
  }
};

TEST_F(SessionKill, BeforeAndAfterEveryCallOfASave) {
  int kills = 0;
  std::set<std::uint32_t> found;
  for (long at = 0;; ++at) {
    fs::remove(path_);
    const bool died = killed(at);
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
    kills += killed(-1, std::chrono::microseconds(5'000 + random() % 90'000));
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
