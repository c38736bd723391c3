#include "tests/unit/runtime/killed_child.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <sstream>
#include <thread>

#include "tests/unit/runtime/save_calls.h"

namespace thermocline {
namespace {

constexpr const char* kWords = "KILLED_CHILD_WORDS";
constexpr const char* kAtCall = "KILLED_CHILD_AT_CALL";

std::atomic<long> calls_left{-1};

void maybe_die() {
  if (calls_left.load() >= 0 && calls_left.fetch_sub(1) == 0) ::kill(::getpid(), SIGKILL);
}

class InsteadOfTests : public ::testing::Environment {
 public:
  explicit InsteadOfTests(Status (*part)(const std::vector<std::string>&)) : part_(part) {}
  void SetUp() override {
    const char* given = std::getenv(kWords);
    if (!given) return;
    std::vector<std::string> words;
    std::istringstream lines(given);
    for (std::string word; std::getline(lines, word);) words.push_back(word);
    calls_left = std::atol(std::getenv(kAtCall));
    watch_save_calls({[](SaveCall) {
                        maybe_die();
                        return CallFate{};
                      },
                      maybe_die});
    const Status done = part_(words);
    if (!done) std::fprintf(stderr, "%s\n", done.error().message.c_str());
    ::_exit(done ? 0 : 1);
  }

 private:
  Status (*part_)(const std::vector<std::string>&);
};

}  // namespace

ChildsPart::ChildsPart(Status (*part)(const std::vector<std::string>&)) {
  ::testing::AddGlobalTestEnvironment(new InsteadOfTests(part));  // which owns it
}

Ended run_child(const std::vector<std::string>& words, const Killing& killing) {
  std::string lines;
  for (const std::string& word : words) lines += word + "\n";
  // Where no test is to run, nothing is set up.
  const ::testing::TestInfo* const test = ::testing::UnitTest::GetInstance()->current_test_info();
  const std::string filter =
      std::string("--gtest_filter=") + test->test_suite_name() + "." + test->name();
  const std::string at_call = std::to_string(killing.at_call);
  const pid_t child = ::fork();
  if (child == 0) {
    ::setenv(kWords, lines.c_str(), 1);
    ::setenv(kAtCall, at_call.c_str(), 1);
    ::dup2(::open("/dev/null", O_WRONLY), STDOUT_FILENO);
    ::execl("/proc/self/exe", "child", filter.c_str(), nullptr);
    ::_exit(127);
  }
  if (killing.after.count() > 0) {
    std::this_thread::sleep_for(killing.after);
    ::kill(child, SIGKILL);
  }
  int status = 0;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  if (WIFSIGNALED(status)) return Ended::killed;
  EXPECT_LE(WEXITSTATUS(status), 1);
  return WEXITSTATUS(status) == 0 ? Ended::well : Ended::with_error;
}

}  // namespace thermocline
