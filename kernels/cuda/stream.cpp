#include "kernels/cuda/stream.h"

#include "kernels/cuda/check.h"

namespace thermocline::cuda {

Result<Stream> Stream::create() {
  cudaStream_t stream = nullptr;
  TL_TRY(check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "creating a stream"));
  return Stream(stream);
}

Status Stream::wait() { return check(cudaStreamSynchronize(handle()), "waiting for a stream"); }

// What could fail here is an earlier kernel; whoever waited has been told.
void Stream::Destroy::operator()(cudaStream_t stream) const {
  static_cast<void>(check(cudaStreamDestroy(stream), "destroying a stream"));
}

}  // namespace thermocline::cuda
