// A test with a stream of the first device; skipped, with the runtime's reason, where there is
// none.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <utility>

#include "kernels/cuda/check.h"
#include "kernels/cuda/stream.h"

namespace thermocline::cuda {

class StreamTest : public ::testing::Test {
 protected:
  void SetUp() override {
    int devices = 0;
    const Status status = check(cudaGetDeviceCount(&devices), "cudaGetDeviceCount");
    if (!status) GTEST_SKIP() << status.error().message;
    if (devices == 0) GTEST_SKIP() << "the driver has no device";
    Result<Stream> stream = Stream::create();
    ASSERT_TRUE(stream.has_value()) << stream.error().message;
    stream_ = std::make_unique<Stream>(*std::move(stream));
  }

  std::unique_ptr<Stream> stream_;
};

}  // namespace thermocline::cuda
