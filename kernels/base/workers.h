// The threads: one oneTBB arena that every room computes in. Work is cut by the caller into pieces
// that do not depend on the number of threads, so neither does any result.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>

#include "kernels/base/error.h"

namespace thermocline {

class Team;

class Workers {
 public:
  // 0 threads: as many as this process may run on; never more than that.
  explicit Workers(int threads = 0);
  ~Workers();  // once no thread watches any more, nor is on its way to
  Workers(const Workers&) = delete;
  Workers& operator=(const Workers&) = delete;

  int threads() const { return threads_; }
  // How many threads Workers(threads) has.
  static int usable(int threads);

  // body(first, last) over [0, count) in ranges of at most `grain`, or all of it at once where
  // there is nobody to share with; returns when all are done. One caller at a time from outside; a
  // body may call it too, and must then keep nothing in scratch of its slot() over that call which
  // those bodies use. A slow or preempted thread's share is taken over by the others. A body that
  // throws ends the process (std::terminate): others may be in the loop that it would leave.
  template <typename Body>
  void parallel(std::size_t count, std::size_t grain, const Body& body) const {
    run(
        count, grain,
        [](const void* b, std::size_t first, std::size_t last) noexcept {
          (*static_cast<const Body*>(b))(first, last);
        },
        &body);
  }

  // While one lives, the other threads watch for loops (team.h): for work that has many short ones.
  // They leave when they have waited for milliseconds; a new one brings them again, and may live
  // within another. Of the thread that calls parallel(); its Workers outlive it.
  class Attention {
   public:
    explicit Attention(const Workers& workers);
    ~Attention();
    Attention(const Attention&) = delete;
    Attention& operator=(const Attention&) = delete;

   private:
    Team& team_;
  };
  bool watched() const;  // whether a thread watches now; for tests

  // Which of [0, threads) the calling thread is, inside a body: for per-thread scratch.
  static std::size_t slot();

 private:
  using Call = void (*)(const void* body, std::size_t first, std::size_t last) noexcept;
  void run(std::size_t count, std::size_t grain, Call call, const void* body) const;

  struct Arena;
  std::unique_ptr<Arena> arena_;
  std::unique_ptr<Team> team_;
  int threads_;
};

}  // namespace thermocline
