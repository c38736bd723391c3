// Workers on plain threads, for programs under ThreadSanitizer: it does not see how oneTBB
// synchronises. More threads than a small machine has processors, so that they are interleaved.
//
// Pieces of a loop are taken from a counter that orders nothing: what two of them do is as
// concurrent for the sanitizer as it can be in oneTBB, whoever did them.
#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include "kernels/base/team.h"
#include "kernels/base/workers.h"

namespace thermocline {
namespace {

constexpr int kThreads = 4;

thread_local std::size_t slot_here = 0;
thread_local bool busy = false;  // inside a loop that is not the team's

struct Loop {
  const std::size_t count, grain;
  void (*const call)(const void* body, std::size_t first, std::size_t last) noexcept;
  const void* const body;
  std::atomic<std::size_t> next{0};
  int helpers = 0;  // with the mutex held

  void take_pieces() {
    const bool before = std::exchange(busy, true);
    std::size_t first = 0;
    while ((first = next.fetch_add(grain, std::memory_order_relaxed)) < count)
      call(body, first, std::min(first + grain, count));
    busy = before;
  }
};

}  // namespace

struct Workers::Arena {
  std::mutex mutex;  // guards all of what follows, but for the threads
  std::condition_variable changed;
  std::vector<Loop*> loops;  // that may have pieces left; the innermost last
  int watchers = 0;          // that are to go to the team
  bool ended = false;
  std::vector<std::jthread> threads;

  void serve(Team* team, std::size_t slot) {
    slot_here = slot;
    for (std::unique_lock lock(mutex); !ended || watchers > 0;) {
      if (watchers > 0) {
        --watchers;
        lock.unlock();
        team->watch();
        lock.lock();
      } else if (!loops.empty()) {
        Loop* const loop = loops.back();
        ++loop->helpers;
        lock.unlock();
        loop->take_pieces();
        lock.lock();
        --loop->helpers;
        std::erase(loops, loop);
        changed.notify_all();
      } else {
        changed.wait(lock);
      }
    }
  }
};

int Workers::usable(int threads) { return threads > 0 ? std::min(threads, kThreads) : kThreads; }

Workers::Workers(int threads)
    : arena_(std::make_unique<Arena>()),
      team_(std::make_unique<Team>(usable(threads) - 1)),
      threads_(usable(threads)) {
  for (int t = 1; t < threads_; ++t)
    arena_->threads.emplace_back([this, t] { arena_->serve(team_.get(), std::size_t(t)); });
}

Workers::~Workers() {
  {
    std::lock_guard lock(arena_->mutex);
    arena_->ended = true;
  }
  arena_->changed.notify_all();
  arena_->threads.clear();  // joins them, before the team goes
}

Workers::Attention::Attention(const Workers& workers) : team_(*workers.team_) {
  const int missing = team_.summon();
  if (missing == 0) return;
  std::lock_guard lock(workers.arena_->mutex);
  workers.arena_->watchers += missing;
  workers.arena_->changed.notify_all();
}
Workers::Attention::~Attention() { team_.dismiss(); }

bool Workers::watched() const { return team_->watched(); }

std::size_t Workers::slot() { return slot_here; }

void Workers::run(std::size_t count, std::size_t grain, Call call, const void* body) const {
  if (count == 0) return;
  if (Team::inside() || (!busy && team_->watched())) {
    team_->run(count, grain, call, body);
    return;
  }
  Loop loop{count, grain, call, body};
  if (threads_ == 1 || count <= grain) {
    const bool before = std::exchange(busy, true);
    call(body, 0, count);
    busy = before;
    return;
  }
  {
    std::lock_guard lock(arena_->mutex);
    arena_->loops.push_back(&loop);
  }
  arena_->changed.notify_all();
  loop.take_pieces();
  std::unique_lock lock(arena_->mutex);
  std::erase(arena_->loops, &loop);
  arena_->changed.wait(lock, [&] { return loop.helpers == 0; });
}

}  // namespace thermocline
