#include "kernels/base/workers.h"

#include <algorithm>
#include <utility>

#include <oneapi/tbb/blocked_range.h>
#include <oneapi/tbb/info.h>
#include <oneapi/tbb/parallel_for.h>
#include <oneapi/tbb/task_arena.h>
#include <oneapi/tbb/task_group.h>

#include "kernels/base/team.h"

namespace thermocline {

struct Workers::Arena {
  explicit Arena(int threads) : arena(threads) { arena.initialize(); }
  tbb::task_arena arena;
  tbb::task_group watchers;
};

// Threads beyond the processor's would only take turns, and oneTBB would print a warning of them.
int Workers::usable(int threads) {
  const int most = tbb::info::default_concurrency();
  return threads > 0 ? std::min(threads, most) : most;
}

Workers::Workers(int threads)
    : arena_(std::make_unique<Arena>(usable(threads))),
      team_(std::make_unique<Team>(usable(threads) - 1)),
      threads_(usable(threads)) {}

// A watcher that is late would find nobody. Whoever waits takes those that no thread has begun.
Workers::~Workers() {
  arena_->arena.execute([this] { arena_->watchers.wait(); });
}

namespace {

// Inside a loop of the arena's: in a body, or, for who began it, waiting for its end.
thread_local bool busy = false;

class Busy {
 public:
  Busy() : before_(std::exchange(busy, true)) {}
  ~Busy() { busy = before_; }
  Busy(const Busy&) = delete;
  Busy& operator=(const Busy&) = delete;

 private:
  const bool before_;
};

}  // namespace

// A watcher is a task of the arena's, in which the caller's slot is reserved for the caller. Who
// waits for the end of a loop may be given the task, but has to go on as soon as the loop ends.
Workers::Attention::Attention(const Workers& workers) : team_(*workers.team_) {
  Arena& arena = *workers.arena_;
  for (int missing = team_.summon(); missing > 0; --missing)
    arena.arena.enqueue(arena.watchers.defer([&team = team_] {
      if (busy)
        team.stay_away();
      else
        team.watch();
    }));
}
Workers::Attention::~Attention() { team_.dismiss(); }

bool Workers::watched() const { return team_->watched(); }

std::size_t Workers::slot() {
  if (Team::leading()) return 0;
  const int slot = tbb::this_task_arena::current_thread_index();
  return slot < 0 ? 0 : static_cast<std::size_t>(slot);
}

void Workers::run(std::size_t count, std::size_t grain, Call call, const void* body) const {
  if (count == 0) return;
  if (Team::inside() || (!busy && team_->watched())) {
    team_->run(count, grain, call, body);
    return;
  }
  const bool within = busy;
  const Busy here;
  if (threads_ == 1 || count <= grain) {
    arena_->arena.execute([&] { call(body, 0, count); });
    return;
  }
  const auto loop = [&] {
    tbb::parallel_for(
        tbb::blocked_range<std::size_t>(0, count, grain),
        [&](const tbb::blocked_range<std::size_t>& range) {
          const Busy there;
          call(body, range.begin(), range.end());
        },
        tbb::simple_partitioner{});
  };
  arena_->arena.execute([&] {
    // A loop inside of a body is isolated: who waits at its end takes no other body of the loop
    // around it. Who waits at the end of that one may well help with a loop inside.
    if (within)
      tbb::this_task_arena::isolate(loop);
    else
      loop();
  });
}

}  // namespace thermocline
