// A place in a stream's work, owned: another stream, or the host, waits until it is reached.
#pragma once

#include <cuda_runtime_api.h>

#include <memory>

#include "kernels/cuda/check.h"
#include "kernels/cuda/stream.h"

namespace thermocline::cuda {

// Move-only; one that was never put into a stream has been reached. Destruction does not wait: what
// waits for it has been waited for.
class Event {
 public:
  static Result<Event> create() {
    cudaEvent_t event = nullptr;
    TL_TRY(check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "creating an event"));
    return Event(event);
  }

  // Behind what is queued there now, in place of where it was.
  Status record(Stream& stream) {
    return check(cudaEventRecord(event_.get(), stream.handle()), "recording an event");
  }
  // What is queued there from now on comes after it.
  Status hold_back(Stream& stream) const {
    return check(cudaStreamWaitEvent(stream.handle(), event_.get(), 0),
                 "having a stream wait for an event");
  }
  // Blocks the host; returns the error of any work before it.
  Status wait() const { return check(cudaEventSynchronize(event_.get()), "waiting for an event"); }

 private:
  struct Destroy {
    void operator()(cudaEvent_t event) const {
      static_cast<void>(check(cudaEventDestroy(event), "destroying an event"));
    }
  };
  explicit Event(cudaEvent_t event) : event_(event) {}

  std::unique_ptr<CUevent_st, Destroy> event_;
};

}  // namespace thermocline::cuda
