// Team alone, with threads of the test's own: loops of a few rows begin and end as fast as they
// can, so that watchers come, look and leave at every point of one.
#include "kernels/base/team.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <random>
#include <thread>
#include <tuple>
#include <vector>

#include "kernels/base/error.h"

namespace thermocline {
namespace {

using Clock = std::chrono::steady_clock;
using namespace std::chrono_literals;

// A loop that counts how often each of its rows is done. Not atomically: the end of a loop is what
// makes the counts the leader's, and a sanitizer is to see where it does not. What is wrong ends
// the program at once, since the leader may wait for ever at the end of such a loop.
class Loop {
 public:
  explicit Loop(Team* team) : team_(team) {}

  // In every third row there is a loop over `nested` rows, if any.
  void run(std::size_t count, std::size_t grain, std::size_t nested) {
    grain_ = grain;
    nested_ = nested;
    done_.assign(count, 0);
    team_->run(count, grain, &Loop::body, this);
    for (const int times : done_) TL_CHECK(times == 1);
  }
  // Rows that others than the leader have done.
  int helped() const { return helped_.load(std::memory_order_relaxed); }

 private:
  static void body(const void* self, std::size_t first, std::size_t last) noexcept {
    auto& loop = *static_cast<Loop*>(const_cast<void*>(self));
    const std::size_t count = loop.done_.size();
    TL_CHECK(first < last && last <= count);
    // A nested one is not cut where another has the watchers.
    TL_CHECK(last - first <= loop.grain_ || (first == 0 && last == count));
    if (!Team::leading())
      loop.helped_.fetch_add(static_cast<int>(last - first), std::memory_order_relaxed);
    for (; first < last; ++first) {
      if (loop.nested_ > 0 && first % 3 == 0) Loop(loop.team_).run(loop.nested_, 2, 0);
      TL_CHECK(++loop.done_[first] == 1);
    }
  }

  Team* team_;
  std::size_t grain_ = 0, nested_ = 0;
  std::vector<int> done_;
  std::atomic<int> helped_{0};
};

// Watchers, and rows of nested loops.
class TeamLoops : public ::testing::TestWithParam<std::tuple<int, std::size_t>> {};

TEST_P(TeamLoops, DoEveryRowOnceWhileWatchersComeAndGo) {
  const auto [watchers, nested] = GetParam();
  // A loop whose end is lost would hang: the alarm ends the program, and does so late enough for a
  // machine that is stopped for a while.
  ::alarm(120);
  std::mt19937 random(static_cast<unsigned>(watchers) + 100 * static_cast<unsigned>(nested));
  Team team(watchers);
  std::vector<std::thread> threads;
  const auto let_go = [&] {
    for (std::thread& thread : threads) thread.join();
    threads.clear();
  };
  long helped = 0;
  // On a busy machine it may take a while until a watcher is there while a loop is.
  const auto enough = Clock::now() + 400ms, latest = enough + 60s;
  while (Clock::now() < (helped > 0 ? enough : latest)) {
    for (int missing = team.summon(); missing > 0; --missing)
      threads.emplace_back([&team, stays_away = random() % 8 == 0] {
        if (stays_away)
          team.stay_away();
        else
          team.watch();
      });
    for (unsigned loops = random() % 4000; loops > 0; --loops) {
      Loop loop(&team);
      loop.run(1 + random() % 40, 1 + random() % 5, nested);
      helped += loop.helped();
    }
    team.dismiss();
    // At times all have left before the next are sent for, at times they are still here.
    if (random() % 2 == 0 || threads.size() > 64) let_go();
  }
  let_go();
  EXPECT_FALSE(team.watched());
  EXPECT_GT(helped, 0);
  ::alarm(0);
}

INSTANTIATE_TEST_SUITE_P(All, TeamLoops,
                         ::testing::Combine(::testing::Values(1, 3),
                                            ::testing::Values(std::size_t{0}, std::size_t{17})));

}  // namespace
}  // namespace thermocline
