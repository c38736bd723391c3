// Contexts that are being built when the process is killed: whoever comes next finds the file as it
// was, the whole new one, or none, and builds it as if nothing had been.
#include "tools/thermocline/session_build.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <random>
#include <string>
#include <vector>

#include "runtime/session.h"
#include "runtime/thermocline.h"
#include "tests/support/temporary_folder.h"
#include "tests/unit/runtime/killed_child.h"

namespace thermocline {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

const std::string kSource = THERMOCLINE_SOURCE_DIR;
const std::string kModel = kSource + "/tests/golden/tiny/qwen3_q8_0.gguf";
constexpr std::uint32_t kShort = 1024, kLong = 2048;

Status build(const std::vector<std::string>& words) {
  TL_TRY(run_session_build(words));
  return {};
}
const ChildsPart kBuilds(build);

// By what it is built of, and what the file holds before.
enum class Kind { texts, more_texts, rows };

class SessionBuildKill : public ::testing::TestWithParam<Kind> {
 protected:
  SessionBuildKill() : engine_(std::move(*Engine::open({.model_path = kModel, .threads = 1}))) {}
  void SetUp() override {
    ASSERT_EQ(run_child(of_texts(old_, kShort)), Ended::well);
    ASSERT_EQ(run_child(of_texts(raw_, kLong)), Ended::well);
    fs::create_directory(root_);
    start_over();
    const Clock::time_point start = Clock::now();
    ASSERT_EQ(run_child(words()), Ended::well);
    whole_run_ = Clock::now() - start;
    whole_ = *read_session(path_);
    next_ = next_of_file();
    start_over();
  }

  std::vector<std::string> words() const {
    if (GetParam() != Kind::rows) return of_texts(path_, kLong);
    return {"-m", kModel, "--session", path_, "--from", raw_, "--method", "sketch", "--quiet"};
  }
  void start_over() const {
    fs::remove(path_);
    if (GetParam() == Kind::more_texts) fs::copy_file(old_, path_);
  }

  // Of the file as a killed process left it: how many tokens it holds, 0 where there is none. Then
  // builds it.
  std::uint32_t check() {
    EXPECT_LE(std::distance(fs::directory_iterator(root_), fs::directory_iterator()), 1);
    std::uint32_t found = 0;
    if (fs::exists(path_)) {
      const auto sound = verify_session(path_);
      EXPECT_TRUE(sound && sound->damage.empty());
      const auto held = read_session(path_);
      EXPECT_TRUE(held) << held.error().message;
      if (!held) return found;
      found = static_cast<std::uint32_t>(held->text.tokens.size());
      expect_same(held->text, found == kShort ? read_session(old_)->text : whole_.text);
    }
    const Clock::time_point start = Clock::now();
    const Ended built = run_child(words());
    EXPECT_LT(Clock::now() - start, std::chrono::seconds(5));
    // What is there is not sealed once more.
    EXPECT_EQ(built, GetParam() == Kind::rows && found > 0 ? Ended::with_error : Ended::well);
    const auto held = read_session(path_);
    EXPECT_TRUE(held) << held.error().message;
    if (!held) return found;
    expect_same(held->text, whole_.text);
    EXPECT_EQ(next_of_file(), next_);
    return found;
  }

  const std::string& path() const { return path_; }
  Clock::duration whole_run() const { return whole_run_; }

 private:
  static std::vector<std::string> of_texts(const std::string& path, std::uint32_t tokens) {
    return {"-m",        kModel,
            "--session", path,
            "--text",    kSource + "/tests/golden/prompts/long/license_7k.txt",
            "--tokens",  std::to_string(tokens),
            "--chunk",   "256",
            "--quiet"};
  }
  static void expect_same(const SessionText& found, const SessionText& due) {
    EXPECT_EQ(found.tokens, due.tokens);
    EXPECT_EQ(found.logits, due.logits);
  }
  // What follows the next token. And in the file there is no space that nobody holds.
  std::vector<float> next_of_file() {
    const auto held = read_session(path_);
    CacheOptions options{.method = held->method.name, .max_positions = kLong + 1};
    options.method_directory = kSource + "/configs/methods";
    options.session.path = path_;
    std::vector<float> logits(engine_->model().vocabulary);
    std::uint64_t held_bytes = 0;
    {
      const auto cache = engine_->open_cache(options);
      EXPECT_TRUE(cache) << (cache ? "" : cache.error().message);
      if (!cache) return {};
      auto timeline = (*cache)->resume();
      EXPECT_TRUE(timeline) << (timeline ? "" : timeline.error().message);
      if (!timeline) return {};
      held_bytes = (*cache)->usage().total("disk");
      const Feed feed{&*timeline, held->text.tokens.front()};
      EXPECT_TRUE(engine_->step({&feed, 1}, {logits.data(), 1, logits.size()}));
    }
    constexpr std::uint64_t kOther = 64 << 10;  // headers and record
    struct stat file {};
    EXPECT_EQ(::stat(path_.c_str(), &file), 0);
    EXPECT_LE(static_cast<std::uint64_t>(file.st_blocks) * 512, held_bytes + kOther);
    return logits;
  }

  const test::TemporaryFolder folder_{"build-kill"};
  const std::string old_ = folder_.path() + "/old.tls", raw_ = folder_.path() + "/raw.tls";
  const std::string root_ = folder_.path() + "/built", path_ = root_ + "/s.tls";
  std::unique_ptr<Engine> engine_;
  SavedSession whole_;
  std::vector<float> next_;
  Clock::duration whole_run_{};
};

// What is there after a call is what is there before the next one.
TEST_P(SessionBuildKill, BeforeEveryCallOfASave) {
  const std::uint32_t before = GetParam() == Kind::more_texts ? kShort : 0;
  int kills = 0, old = 0, whole = 0;
  for (long at = 0;; at += 2) {
    start_over();
    if (run_child(words(), {.at_call = at}) != Ended::killed) break;
    const std::uint32_t found = check();
    old += found == before;
    whole += found == kLong;
    if (HasFailure()) FAIL() << "killed before call " << at / 2;
    ++kills;
  }
  EXPECT_GE(kills, 10);
  EXPECT_GT(old, 0);
  EXPECT_GT(whole, 0);
  EXPECT_EQ(old + whole, kills);
  RecordProperty("kills", kills);
}

TEST_P(SessionBuildKill, AtAnyMoment) {
  std::mt19937 random(5);
  const auto longest = std::chrono::duration_cast<std::chrono::microseconds>(whole_run()).count();
  int kills = 0;
  for (int run = 0; run < 10; ++run) {
    start_over();
    const std::chrono::microseconds after(1 + static_cast<long>(random()) % longest);
    kills += run_child(words(), {.after = after}) == Ended::killed;
    check();
    if (HasFailure()) FAIL() << "run " << run << ", killed after " << after.count() << " us";
  }
  EXPECT_GE(kills, 3);
  RecordProperty("kills", kills);
}

std::string name_of(const ::testing::TestParamInfo<Kind>& info) {
  constexpr const char* kNames[] = {"Texts", "MoreTexts", "Rows"};
  return kNames[static_cast<std::size_t>(info.param)];
}
INSTANTIATE_TEST_SUITE_P(Everything, SessionBuildKill,
                         ::testing::Values(Kind::texts, Kind::more_texts, Kind::rows), name_of);

}  // namespace
}  // namespace thermocline
