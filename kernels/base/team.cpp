#include "kernels/base/team.h"

#include <algorithm>
#include <chrono>
#include <thread>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace thermocline {
namespace {

thread_local bool inside_a_body = false;
thread_local bool leads = false;

void pause() {
#if defined(__x86_64__)
  _mm_pause();
#else
  std::this_thread::yield();
#endif
}

// Waits by turns: some tens of microseconds of pauses, then the processor goes to whoever wants it.
class Patience {
 public:
  void wait() {
    if (turns_ < kPauses) {
      if (++turns_ == kPauses) end_ = Clock::now() + kLongest;
      pause();
    } else {
      std::this_thread::yield();
    }
  }
  // By the clock: on a busy machine a yield takes as long as the others like.
  bool at_end() const { return turns_ == kPauses && Clock::now() > end_; }
  void renew() { turns_ = 0; }

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr int kPauses = 1000;
  static constexpr std::chrono::milliseconds kLongest{2};
  int turns_ = 0;
  Clock::time_point end_;
};

}  // namespace

bool Team::inside() { return inside_a_body; }
bool Team::leading() { return leads; }

void Team::Loop::take_pieces() {
  const bool before = std::exchange(inside_a_body, true);
  while (true) {
    const std::size_t first = next.fetch_add(grain, std::memory_order_relaxed);
    if (first >= count) break;
    const std::size_t last = std::min(first + grain, count);
    call(body, first, last);
    done.fetch_add(last - first, std::memory_order_release);
  }
  inside_a_body = before;
}

// Whoever is counted and then finds the loop open is waited for before it is written again: both
// sides' pairs of accesses are in one order (seq_cst), so one of them sees the other.
bool Team::Loop::visit() {
  if (!open.load(std::memory_order_relaxed)) return false;
  visitors.fetch_add(1, std::memory_order_seq_cst);
  const bool found = open.load(std::memory_order_seq_cst);
  if (found) take_pieces();
  visitors.fetch_sub(1, std::memory_order_release);
  return found;
}

int Team::summon() {
  wanted_.fetch_add(1, std::memory_order_release);
  const int missing = most_ - summoned_.load(std::memory_order_acquire);
  summoned_.fetch_add(missing, std::memory_order_acq_rel);
  return missing;
}

void Team::watch() {
  watchers_.fetch_add(1, std::memory_order_acq_rel);
  Patience patience;
  while (wanted_.load(std::memory_order_acquire) > 0) {
    const bool at_end = patience.at_end();  // before a last look
    const bool outer = outer_.visit();
    const bool inner = inner_.visit();
    if (outer || inner)
      patience.renew();
    else if (at_end)
      break;
    patience.wait();
  }
  watchers_.fetch_sub(1, std::memory_order_acq_rel);
  stay_away();
}

void Team::run_in(Loop* loop, std::size_t count, std::size_t grain, Call call, const void* body) {
  loop->count = count;
  loop->grain = grain;
  loop->call = call;
  loop->body = body;
  loop->next.store(0, std::memory_order_relaxed);
  loop->done.store(0, std::memory_order_relaxed);
  loop->open.store(true, std::memory_order_seq_cst);
  loop->take_pieces();
  for (Patience patience; loop->done.load(std::memory_order_acquire) != count; patience.wait())
    if (loop == &outer_) inner_.visit();
  loop->open.store(false, std::memory_order_seq_cst);
  for (Patience patience; loop->visitors.load(std::memory_order_seq_cst) != 0; patience.wait()) {
  }
}

void Team::run(std::size_t count, std::size_t grain, Call call, const void* body) {
  if (!inside_a_body) {
    leads = true;
    run_in(&outer_, count, grain, call, body);
    leads = false;
    return;
  }
  if (count <= grain || inner_taken_.exchange(true, std::memory_order_acquire)) {
    call(body, 0, count);  // the others have a loop to share already
    return;
  }
  run_in(&inner_, count, grain, call, body);
  inner_taken_.store(false, std::memory_order_release);
}

}  // namespace thermocline
