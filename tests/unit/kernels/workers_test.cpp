#include "kernels/base/workers.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

namespace thermocline {
namespace {

using namespace std::chrono_literals;

// Every row once, in ranges that keep to the grain; no two threads at once with one slot.
void expect_every_row_once(const Workers& workers, std::size_t count, std::size_t grain) {
  std::vector<std::atomic<int>> seen(count);
  std::vector<std::atomic<int>> busy(static_cast<std::size_t>(workers.threads()));
  workers.parallel(count, grain, [&](std::size_t first, std::size_t last) {
    EXPECT_LT(Workers::slot(), busy.size());
    EXPECT_EQ(busy[Workers::slot()].fetch_add(1), 0);
    EXPECT_TRUE(last - first <= grain || (first == 0 && last == count));
    for (; first < last; ++first) ++seen[first];
    busy[Workers::slot()].fetch_sub(1);
  });
  for (std::size_t i = 0; i < count; ++i) ASSERT_EQ(seen[i], 1) << i << " of " << count;
}

TEST(Workers, DoEveryRowOnce) {
  const Workers workers(2);
  for (const std::size_t count : {0u, 1u, 2u, 3u, 64u, 1001u})
    for (const std::size_t grain : {1u, 7u, 64u}) expect_every_row_once(workers, count, grain);
}

TEST(Workers, DoEveryRowOnceWhileThreadsWatch) {
  const Workers workers(2);
  for (int step = 0; step < 50; ++step) {
    const Workers::Attention attention(workers);
    if (step % 3 == 0) std::this_thread::sleep_for(200us);  // the watcher has come
    for (const std::size_t count : {0u, 1u, 2u, 3u, 64u, 1001u})
      for (const std::size_t grain : {1u, 7u, 64u}) expect_every_row_once(workers, count, grain);
  }
}

TEST(Workers, WatchersTakePart) {
  const Workers workers(2);
  if (workers.threads() < 2) GTEST_SKIP() << "this process may run on one processor only";
  const Workers::Attention attention(workers);
  const auto end = std::chrono::steady_clock::now() + 20s;
  bool shared = false;
  while (!shared && std::chrono::steady_clock::now() < end) {
    std::atomic<int> waiting{2};
    // Two pieces that each wait for the other to begin, or give up.
    std::atomic<bool> met{false};
    workers.parallel(2, 1, [&](std::size_t first, std::size_t last) {
      for (; first < last; ++first) {
        --waiting;
        const auto patience = std::chrono::steady_clock::now() + 20ms;
        while (waiting > 0 && std::chrono::steady_clock::now() < patience) {
        }
        if (waiting == 0 && Workers::slot() != 0) met = true;
      }
    });
    shared = met;
  }
  EXPECT_TRUE(shared);
}

// A loop inside of a body is done whoever else is busy, and its rows are seen when it returns.
TEST(Workers, LoopsInsideOfBodiesAreWhole) {
  const Workers workers(2);
  const auto check = [&] {
    std::vector<std::vector<int>> out(6);
    workers.parallel(out.size(), 1, [&](std::size_t first, std::size_t last) {
      for (; first < last; ++first) {
        std::vector<int>& mine = out[first];
        mine.resize(500);
        workers.parallel(mine.size(), 3, [&](std::size_t from, std::size_t to) {
          for (; from < to; ++from) mine[from] = static_cast<int>(from);
        });
        for (std::size_t i = 0; i < mine.size(); ++i) ASSERT_EQ(mine[i], static_cast<int>(i));
      }
    });
  };
  for (int i = 0; i < 100; ++i) check();
  const Workers::Attention attention(workers);
  for (int i = 0; i < 1000; ++i) check();
}

bool comes_true(const std::function<bool()>& condition) {
  const auto end = std::chrono::steady_clock::now() + 20s;
  while (!condition() && std::chrono::steady_clock::now() < end) std::this_thread::yield();
  return condition();
}

// Watchers have some milliseconds of patience, in which a busy machine may not let this thread see
// them: then `attempt` brings others.
bool comes_true_in_some(const std::function<bool()>& attempt) {
  const auto end = std::chrono::steady_clock::now() + 20s;
  while (std::chrono::steady_clock::now() < end)
    if (attempt()) return true;
  return false;
}

// Whether somebody watches before watchers that came at once would have left.
bool soon_watched(const Workers& workers) {
  const auto end = std::chrono::steady_clock::now() + 20ms;
  while (!workers.watched() && std::chrono::steady_clock::now() < end) std::this_thread::yield();
  return workers.watched();
}

// Who waits too long has left, and loops go on without; a new call brings watchers again, while the
// old one lives too.
TEST(Workers, OutliveTheirWatchersPatience) {
  auto workers = std::make_unique<Workers>(2);
  if (workers->threads() < 2) GTEST_SKIP() << "this process may run on one processor only";
  {
    const Workers::Attention attention(*workers);
    expect_every_row_once(*workers, 100, 1);
    EXPECT_TRUE(comes_true([&] { return !workers->watched(); }));
    expect_every_row_once(*workers, 100, 1);
    EXPECT_TRUE(comes_true_in_some([&] {
      const Workers::Attention again(*workers);
      return soon_watched(*workers);
    }));
    expect_every_row_once(*workers, 100, 1);
  }
  EXPECT_TRUE(comes_true([&] { return !workers->watched(); }));
  EXPECT_TRUE(comes_true_in_some([&] {
    const Workers::Attention outer(*workers);
    { const Workers::Attention inner(*workers); }
    return soon_watched(*workers);  // the outer one wants them still
  }));
  workers.reset();
}

// The only thread that could watch is in another's loop: whoever lets the workers go waits for
// nobody who has not begun.
TEST(Workers, GoWithWatchersThatNeverCame) {
  const Workers busy(2);
  if (busy.threads() < 2) GTEST_SKIP() << "this process may run on one processor only";
  std::atomic<int> here{0};
  std::atomic<bool> done{false};
  std::thread other([&] {
    busy.parallel(2, 1, [&](std::size_t, std::size_t) {
      ++here;
      while (!done) std::this_thread::yield();
    });
  });
  EXPECT_TRUE(comes_true([&] { return here == 2; }));
  for (int i = 0; i < 100; ++i) {
    const Workers workers(2);
    const Workers::Attention attention(workers);
    expect_every_row_once(workers, 100, 1);
  }
  done = true;
  other.join();
}

// Rather than leave a loop that others are in: with one thread as with several, watched or not.
TEST(WorkersDeathTest, ABodyThatThrowsEndsTheProcess) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  for (const int threads : {1, 2})
    EXPECT_DEATH(
        {
          const Workers workers(threads);
          const Workers::Attention attention(workers);
          try {
            workers.parallel(64, 1, [](std::size_t, std::size_t) { throw 1; });
          } catch (int) {
            std::_Exit(0);
          }
        },
        "");
}

}  // namespace
}  // namespace thermocline
