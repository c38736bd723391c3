// Work of a stream that comes back step after step. What is queued between two waits is gathered,
// and where that is, to the byte, what ran before, it runs as a graph: one launch in place of
// hundreds. What changes from step to step lies in memory that is copied, so that what is queued is
// the same. Nobody has to say what comes back: other work is other bytes, and is queued as it is;
// and so is what no graph can be made of.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <span>
#include <type_traits>
#include <vector>

#include "kernels/base/error.h"

namespace thermocline::cuda {

// One thread at a time.
class Recurring {
 public:
  using Queue = std::function<cudaError_t(cudaStream_t)>;

  // The next piece of work: `what` it is, all that `queue` depends on. `call` is named where it
  // fails, and outlives this.
  template <typename... What>
  void add(const char* call, Queue queue, const What&... what) {
    (note(what), ...);
    work_.push_back({call, std::move(queue)});
  }
  // Queues what was gathered.
  Status run(cudaStream_t stream);
  // So many times a graph ran.
  std::uint64_t replays() const { return replays_; }

 private:
  struct Work {
    const char* call;
    Queue queue;
  };
  struct DestroyGraph {
    void operator()(cudaGraphExec_t graph) const;
  };
  struct DestroyCaptured {
    void operator()(cudaGraph_t graph) const;
  };
  // What ran, the last one first.
  struct Known {
    std::vector<std::byte> what;
    std::unique_ptr<CUgraphExec_st, DestroyGraph> graph;  // once it has come back
  };
  // Of all that is known, beyond which what ran longest ago is forgotten, and its graph: a dozen of
  // whole steps, or a few hundred pieces of one.
  static constexpr std::size_t kMostKnownBytes = std::size_t{4} << 20;

  template <typename T>
  void note(const T& what) {
    static_assert(std::is_trivially_copyable_v<T>);
    const auto bytes = std::as_bytes(std::span(&what, 1));
    what_.insert(what_.end(), bytes.begin(), bytes.end());
  }
  Status queue_work(cudaStream_t stream) const;
  Status capture(cudaStream_t stream, Known* known) const;

  std::vector<std::byte> what_;
  std::vector<Work> work_;
  std::list<Known> known_;
  std::size_t known_bytes_ = 0;
  std::uint64_t replays_ = 0;
};

}  // namespace thermocline::cuda
