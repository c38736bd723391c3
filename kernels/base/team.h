// Threads that watch for loops instead of sleeping between them. A step of a small model has a few
// hundred loops of some microseconds each: waking a thread for one costs as much as the loop.
//
// Pieces are taken from a counter, so a slow or preempted thread's share goes to the others. The
// leader waits only for pieces that somebody has begun: without watchers it does everything itself.
#pragma once

#include <atomic>
#include <cstddef>

namespace thermocline {

class Team {
 public:
  using Call = void (*)(const void* body, std::size_t first, std::size_t last) noexcept;

  explicit Team(int watchers) : most_(watchers) {}

  // How many threads are to be sent to watch(), for there to be `watchers`. They leave when each
  // summon() has been followed by a dismiss(), or they have waited for some milliseconds.
  int summon();
  void dismiss() { wanted_.fetch_sub(1, std::memory_order_release); }

  // A watcher's, once for each that summon() asked for: takes part in loops until it is to leave,
  // or does not come.
  void watch();
  void stay_away() { summoned_.fetch_sub(1, std::memory_order_acq_rel); }

  bool watched() const { return watchers_.load(std::memory_order_acquire) > 0; }
  // Inside a body of one of its loops, on this thread; and whether as their leader.
  static bool inside();
  static bool leading();

  // call(body, first, last) over [0, count) in ranges of at most `grain`; returns when all are
  // done. For the leader, or inside a body: then threads that wait at the end of the loop around it
  // help.
  void run(std::size_t count, std::size_t grain, Call call, const void* body);

 private:
  // Reused: whoever looks at it is counted, and it is written only when it is closed and nobody is.
  struct alignas(64) Loop {
    std::size_t count = 0, grain = 0;
    Call call = nullptr;
    const void* body = nullptr;
    alignas(64) std::atomic<bool> open{false};
    std::atomic<int> visitors{0};
    alignas(64) std::atomic<std::size_t> next{0};  // the first row that nobody has begun
    alignas(64) std::atomic<std::size_t> done{0};  // rows

    void take_pieces();
    bool visit();  // false where it is closed
  };

  void run_in(Loop* loop, std::size_t count, std::size_t grain, Call call, const void* body);

  Loop outer_, inner_;
  std::atomic<bool> inner_taken_{false};
  const int most_;
  std::atomic<int> wanted_{0};    // summoned so often more than dismissed
  std::atomic<int> summoned_{0};  // sent for, or here
  std::atomic<int> watchers_{0};  // here
};

}  // namespace thermocline
