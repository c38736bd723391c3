// A queue of work for the device, owned.
#pragma once

#include <cuda_runtime_api.h>

#include <memory>

#include "kernels/base/error.h"

namespace thermocline::cuda {

// Move-only; one thread at a time. Work on a stream runs in the order in which it was queued, and
// beside the work of other streams (it does not wait for the legacy default stream). Destruction
// does not wait: work that is queued still runs, so its memory must outlive it.
class Stream {
 public:
  // On the calling thread's current device. not_found: no device, or no driver.
  static Result<Stream> create();

  // Never null, which would be the legacy default stream: a moved-from Stream has no handle.
  cudaStream_t handle() const {
    TL_CHECK(stream_ != nullptr);
    return stream_.get();
  }

  // Blocks until all that was queued is done; returns the error of any of it.
  Status wait();

 private:
  struct Destroy {
    void operator()(cudaStream_t stream) const;
  };
  explicit Stream(cudaStream_t stream) : stream_(stream) {}

  std::unique_ptr<CUstream_st, Destroy> stream_;
};

}  // namespace thermocline::cuda
