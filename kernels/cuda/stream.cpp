#include "kernels/cuda/stream.h"

#include "kernels/cuda/check.h"

namespace thermocline::cuda {

Result<Stream> Stream::create() {
  cudaStream_t stream = nullptr;
  TL_TRY(check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "creating a stream"));
  return Stream(stream);
}

Result<Stream> Stream::create_recurring() {
  TL_TRY_ASSIGN(Stream stream, create());
  stream.recurring_ = std::make_unique<Recurring>();
  return stream;
}

Status Stream::copy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind,
                    const char* call) {
  if (bytes == 0) return {};
  if (!recurring_) return check(cudaMemcpyAsync(to, from, bytes, kind, handle()), call);
  recurring_->add(
      call, [=](cudaStream_t stream) { return cudaMemcpyAsync(to, from, bytes, kind, stream); }, to,
      from, bytes, kind);
  return {};
}

Status Stream::copy_once(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind,
                         const char* call) {
  TL_TRY(flush());
  return check(cudaMemcpyAsync(to, from, bytes, kind, handle()), call);
}

Status Stream::flush() { return recurring_ ? recurring_->run(handle()) : Status(); }

Status Stream::wait() {
  TL_TRY(flush());
  return check(cudaStreamSynchronize(handle()), "waiting for a stream");
}

// What could fail here is an earlier kernel; whoever waited has been told.
void Stream::Destroy::operator()(cudaStream_t stream) const {
  static_cast<void>(check(cudaStreamDestroy(stream), "destroying a stream"));
}

}  // namespace thermocline::cuda
