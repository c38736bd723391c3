// Processes that are killed while they save: whoever opens the file next finds the save before,
// this one, or no file, whole; and no space that nobody holds.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <random>
#include <set>
#include <string>
#include <thread>

#include "runtime/kv_cache.h"
#include "tests/support/written_rows.h"

namespace {

// Every system call that a save makes passes here on its way: the process ends itself before the
// one that it was told, or right after it.
std::atomic<long> calls_left{-1};

void maybe_die() {
  if (calls_left.load() >= 0 && calls_left.fetch_sub(1) == 0) ::kill(::getpid(), SIGKILL);
}

}  // namespace

extern "C" {
ssize_t pwrite(int file, const void* bytes, std::size_t count, off_t offset) {
  maybe_die();
  const auto written = ::syscall(SYS_pwrite64, file, bytes, count, offset);
  maybe_die();
  return written;
}
int fsync(int file) {
  maybe_die();
  const auto result = static_cast<int>(::syscall(SYS_fsync, file));
  maybe_die();
  return result;
}
int linkat(int from, const char* name, int to, const char* as, int flags) noexcept {
  maybe_die();
  const auto result = static_cast<int>(::syscall(SYS_linkat, from, name, to, as, flags));
  maybe_die();
  return result;
}
}

namespace thermocline {
namespace {

namespace fs = std::filesystem;

constexpr std::uint32_t kFirst = 300, kStep = 150;
constexpr int kSaves = 4;

CacheOptions options_for(const std::string& path) {
  CacheOptions options;
  options.layers = {plain_layer(2, 2, 32, 32), plain_layer(1, 1, 64, 32)};
  options.method = "sketch";
  options.method_directory = std::string(THERMOCLINE_SOURCE_DIR) + "/configs/methods";
  options.max_positions = 1500;
  options.session.path = path;
  return options;
}

// Goes on where the file ends, saves several times, and is killed on the way.
Status write_on(const std::string& path) {
  TL_TRY_ASSIGN(const auto cache, KvCache::create(options_for(path), 1, "auto"));
  Timeline timeline;
  if (cache->saved()) {
    TL_TRY_ASSIGN(timeline, cache->resume());
  } else {
    TL_TRY_ASSIGN(timeline, cache->start());
  }
  for (int save = 0; save < kSaves; ++save) {
    TL_TRY(advance(cache.get(), timeline, timeline.length() == 0 ? kFirst : kStep, Pass::prefill));
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
    ::_exit(write_on(path) ? 0 : 1);
  }
};
const ::testing::Environment* const kChildsPart =
    ::testing::AddGlobalTestEnvironment(new ChildsPart);

class SessionKill : public ::testing::Test {
 protected:
  SessionKill() {
    std::string pattern = ::testing::TempDir() + "kill-XXXXXX";
    root_ = ::mkdtemp(pattern.data());
    path_ = root_ + "/s.tls";
  }
  ~SessionKill() override { fs::remove_all(root_); }

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

  // What is in the file goes on as that text does that never stopped; how long it is. 0: no file.
  std::uint32_t check() {
    EXPECT_LE(std::distance(fs::directory_iterator(root_), fs::directory_iterator()), 1);
    if (!fs::exists(path_)) return 0;
    const Found found = go_on();
    // Space that nobody names was given back: what is left is held, or headers and record. Looked
    // at when the file is closed: while it is open, a piece of it measures what a read costs.
    constexpr std::uint64_t kOther = 64 << 10;
    struct stat file {};
    EXPECT_EQ(::stat(path_.c_str(), &file), 0);
    EXPECT_LE(static_cast<std::uint64_t>(file.st_blocks) * 512, found.held_bytes + kOther);
    return found.length;
  }

  struct Found {
    std::uint32_t length = 0;
    std::uint64_t held_bytes = 0;
  };
  Found go_on() {
    const auto start = std::chrono::steady_clock::now();
    const auto cache = KvCache::create(options_for(path_), 1, "auto");
    EXPECT_TRUE(cache) << (cache ? "" : cache.error().message);
    if (!cache) return {};
    const SessionText saved = *(*cache)->saved();
    auto timeline = (*cache)->resume();
    EXPECT_TRUE(timeline) << (timeline ? "" : timeline.error().message);
    EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(5));
    if (!timeline) return {};
    const std::uint32_t length = timeline->length();
    EXPECT_EQ(saved.tokens.size(), length);
    const Found found{length, (*cache)->usage().total("disk")};
    const auto next = advance(cache->get(), *timeline, 1, Pass::decode);
    EXPECT_TRUE(next);
    if (next) {
      EXPECT_EQ(*next, due(length)) << length;
    }
    return found;
  }

  // What the next row gives after `length` rows, without a session.
  const std::vector<float>& due(std::uint32_t length) {
    if (due_.count(length)) return due_[length];
    CacheOptions plain = options_for("");
    const auto cache = KvCache::create(plain, 1, "auto");
    const Timeline timeline = std::move(*(*cache)->start());
    EXPECT_TRUE(advance(cache->get(), timeline, kFirst, Pass::prefill));
    while (timeline.length() < length)
      EXPECT_TRUE(advance(cache->get(), timeline, kStep, Pass::prefill));
    return due_[length] = *advance(cache->get(), timeline, 1, Pass::decode);
  }

  std::string root_, path_;
  std::map<std::uint32_t, std::vector<float>> due_;
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
