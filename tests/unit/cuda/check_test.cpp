#include "kernels/cuda/check.h"

#include <gtest/gtest.h>

#include <string>
#include <type_traits>
#include <utility>

#include "kernels/cuda/attend.h"

namespace thermocline::cuda {
namespace {

TEST(Check, SuccessIsOk) { EXPECT_TRUE(check(cudaSuccess, "nothing").has_value()); }

TEST(Check, FailureNamesTheCallAndTheCause) {
  const Status status = check(cudaErrorMemoryAllocation, "taking 3 MiB");
  ASSERT_FALSE(status.has_value());
  EXPECT_EQ(status.error().code, ErrorCode::exhausted);
  EXPECT_EQ(status.error().message, "taking 3 MiB: cudaErrorMemoryAllocation: out of memory");
}

TEST(Check, TakesTheThreadsLastErrorBack) {
  // Without a driver every call fails alike, those that read the last error too.
  int devices = 0;
  const Status found = check(cudaGetDeviceCount(&devices), "cudaGetDeviceCount");
  if (!found) GTEST_SKIP() << found.error().message;
  const cudaError_t code = cudaSetDevice(12345);
  ASSERT_NE(code, cudaSuccess);
  ASSERT_NE(cudaPeekAtLastError(), cudaSuccess);
  const Status status = check(code, "choosing device 12345");
  ASSERT_FALSE(status.has_value());
  EXPECT_EQ(status.error().code, ErrorCode::not_found);
  EXPECT_EQ(cudaPeekAtLastError(), cudaSuccess);
}

TEST(Stream, MovesAndIsNeverCopied) {
  static_assert(std::is_nothrow_move_constructible_v<Stream>);
  static_assert(std::is_nothrow_move_assignable_v<Stream>);
  static_assert(!std::is_copy_constructible_v<Stream>);
  static_assert(!std::is_default_constructible_v<Stream>);
  Result<Stream> stream = Stream::create();
  if (!stream) GTEST_SKIP() << stream.error().message;
  const cudaStream_t handle = stream->handle();
  EXPECT_NE(handle, nullptr);
  Stream moved = std::move(*stream);
  EXPECT_EQ(moved.handle(), handle);
  EXPECT_TRUE(moved.wait().has_value());
}

TEST(Stream, IsAnErrorWithoutADevice) {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) == cudaSuccess && devices > 0)
    GTEST_SKIP() << "there is a device";
  const Result<Stream> stream = Stream::create();
  ASSERT_FALSE(stream.has_value());
  EXPECT_EQ(stream.error().code, ErrorCode::not_found) << stream.error().message;
  EXPECT_NE(stream.error().message.find("creating a stream: "), std::string::npos);
}

}  // namespace
}  // namespace thermocline::cuda
