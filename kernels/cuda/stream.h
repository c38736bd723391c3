// A queue of work for the device, owned.
#pragma once

#include <cuda_runtime_api.h>

#include <memory>

#include "kernels/base/error.h"
#include "kernels/cuda/recurring.h"
#include "kernels/device_queue.h"

namespace thermocline::cuda {

// Move-only; one thread at a time. Work on a stream runs in the order in which it was queued, and
// beside the work of other streams (it does not wait for the legacy default stream). Destruction
// does not wait: work that is queued still runs, so its memory must outlive it.
class Stream final : public DeviceQueue {
 public:
  // On the calling thread's current device. not_found: no device, or no driver.
  static Result<Stream> create();
  // One whose work comes back, step after step: launches and copies run when it is waited for, or
  // at flush(), as a graph where they are what they were before.
  static Result<Stream> create_recurring();

  // Never null, which would be the legacy default stream: a moved-from Stream has no handle. What
  // is queued by it is not in order with what is gathered, before flush().
  cudaStream_t handle() const {
    TL_CHECK(stream_ != nullptr);
    return stream_.get();
  }
  Recurring* recurring() const { return recurring_.get(); }  // null: nothing is gathered

  // Queues a copy, of which the host's side is pinned. `call` is named where it fails.
  Status copy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind, const char* call);
  // The same after flush(): of memory that is any, or of what comes back never.
  Status copy_once(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind,
                   const char* call);
  // Queues what is gathered.
  Status flush();
  // Blocks until all that was queued is done; returns the error of any of it.
  Status wait();

 private:
  struct Destroy {
    void operator()(cudaStream_t stream) const;
  };
  explicit Stream(cudaStream_t stream) : stream_(stream) {}

  std::unique_ptr<CUstream_st, Destroy> stream_;
  std::unique_ptr<Recurring> recurring_;
};

}  // namespace thermocline::cuda
