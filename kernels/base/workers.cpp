#include "kernels/base/workers.h"

#include <algorithm>

#include <oneapi/tbb/blocked_range.h>
#include <oneapi/tbb/info.h>
#include <oneapi/tbb/parallel_for.h>
#include <oneapi/tbb/task_arena.h>

namespace thermocline {

struct Workers::Arena {
  explicit Arena(int threads) : arena(threads) { arena.initialize(); }
  tbb::task_arena arena;
};

namespace {
// Threads beyond the processor's would only take turns, and oneTBB would print a warning of them.
int usable_threads(int asked) {
  const int most = tbb::info::default_concurrency();
  return asked > 0 ? std::min(asked, most) : most;
}
}  // namespace

Workers::Workers(int threads)
    : arena_(std::make_unique<Arena>(usable_threads(threads))), threads_(usable_threads(threads)) {}

Workers::~Workers() = default;

std::size_t Workers::slot() {
  const int slot = tbb::this_task_arena::current_thread_index();
  return slot < 0 ? 0 : static_cast<std::size_t>(slot);
}

void Workers::run(std::size_t count, std::size_t grain, Call call, const void* body) const {
  if (count == 0) return;
  if (threads_ == 1 || count <= grain) {
    arena_->arena.execute([&] { call(body, 0, count); });
    return;
  }
  arena_->arena.execute([&] {
    // Isolated: a thread that waits for the others takes no task from outside of this loop, so a
    // loop inside of another one's body is over when its own work is.
    tbb::this_task_arena::isolate([&] {
      tbb::parallel_for(
          tbb::blocked_range<std::size_t>(0, count, grain),
          [&](const tbb::blocked_range<std::size_t>& range) {
            call(body, range.begin(), range.end());
          },
          tbb::simple_partitioner{});
    });
  });
}

}  // namespace thermocline
