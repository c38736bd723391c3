// Work that comes back: as graphs, and to the same effect.
#include "kernels/cuda/stream.h"

#include <array>
#include <cstddef>
#include <memory>
#include <optional>

#include "kernels/cuda/dense.h"
#include "kernels/cuda/pinned_bytes.h"
#include "tests/unit/cuda/on_device.h"
#include "tests/unit/cuda/stream_test.h"

namespace thermocline::cuda {
namespace {

class RecurringTest : public StreamTest {
 protected:
  void SetUp() override {
    StreamTest::SetUp();
    if (IsSkipped() || HasFatalFailure()) return;
    Result<Stream> stream = Stream::create_recurring();
    ASSERT_TRUE(stream) << stream.error().message;
    stream_ = std::make_unique<Stream>(*std::move(stream));
    Result<PinnedBytes> memory = take_pinned_bytes(sizeof *pinned_);
    ASSERT_TRUE(memory) << memory.error().message;
    memory_ = std::move(*memory);
    x_.emplace(std::vector<float>(64));
    sum_.emplace(std::vector<float>(64));
    pinned_ = reinterpret_cast<std::array<float, 64>*>(memory_.get());
  }
  // sum += what is in pinned memory, `times` times.
  void queue(int times) {
    ASSERT_TRUE(stream_->copy(x_->data(), pinned_->data(), sizeof *pinned_, cudaMemcpyHostToDevice,
                              "copying there"));
    const MatView<float> x(x_->data(), 1, 64), sum(sum_->data(), 1, 64);
    for (int i = 0; i < times; ++i) ASSERT_TRUE(add(*stream_, x, sum));
  }
  float sum() { return sum_->copy()[63]; }

  PinnedBytes memory_;
  std::array<float, 64>* pinned_ = nullptr;
  std::optional<OnDevice<float>> x_, sum_;  // once there is a device
};

TEST_F(RecurringTest, WhatComesBackRunsAsAGraphOverWhatIsInMemoryThen) {
  float expected = 0;
  for (int step = 0; step < 5; ++step) {
    pinned_->fill(static_cast<float>(step + 1));
    queue(3);
    EXPECT_EQ(sum(), expected) << "before it is waited for";
    ASSERT_TRUE(stream_->wait());
    expected += 3.0f * static_cast<float>(step + 1);
    EXPECT_EQ(sum(), expected);
    EXPECT_EQ(stream_->recurring()->replays(), static_cast<unsigned>(step));
  }
}

TEST_F(RecurringTest, OtherWorkIsOtherWork) {
  float expected = 0;
  pinned_->fill(1.0f);
  for (const int times : {2, 3, 2, 4, 3, 2}) {
    queue(times);
    ASSERT_TRUE(stream_->wait());
    expected += static_cast<float>(times);
    EXPECT_EQ(sum(), expected);
  }
  EXPECT_EQ(stream_->recurring()->replays(), 3u);  // 2, 3 and 2 again
}

// What is not gathered is in order with what is.
TEST_F(RecurringTest, ACopyThatIsMadeOnceComesAfterWhatWasGathered) {
  for (int step = 0; step < 3; ++step) {
    pinned_->fill(1.0f);
    queue(1);
    std::array<float, 64> here{};
    ASSERT_TRUE(stream_->copy_once(here.data(), sum_->data(), sizeof here, cudaMemcpyDeviceToHost,
                                   "copying back"));
    queue(1);
    ASSERT_TRUE(stream_->wait());
    EXPECT_EQ(here[0], static_cast<float>(2 * step + 1));
    EXPECT_EQ(sum(), static_cast<float>(2 * step + 2));
  }
  EXPECT_EQ(stream_->recurring()->replays(), 5u);
}

// And an error of what is gathered is that of the wait, after which other work runs.
TEST_F(RecurringTest, AnErrorIsSaidWhenItIsWaitedFor) {
  for (int step = 0; step < 3; ++step) {
    stream_->recurring()->add("asking too much",
                              [](cudaStream_t) { return cudaErrorInvalidConfiguration; });
    const Status failed = stream_->wait();
    ASSERT_FALSE(failed);
    EXPECT_NE(failed.error().message.find("asking too much"), std::string::npos)
        << failed.error().message;
    pinned_->fill(1.0f);
    queue(1);
    ASSERT_TRUE(stream_->wait());
    EXPECT_EQ(sum(), static_cast<float>(step + 1));
  }
}

// Where a graph cannot be made, here since what is queued fails while it is captured, the work
// runs.
TEST_F(RecurringTest, WhatNoGraphCanBeMadeOfRunsAsItIs) {
  int calls = 0;
  for (int step = 1; step <= 4; ++step) {
    stream_->recurring()->add("refusing every other time", [&calls](cudaStream_t) {
      return ++calls % 2 == 0 ? cudaErrorInvalidValue : cudaSuccess;
    });
    pinned_->fill(1.0f);
    queue(1);
    ASSERT_TRUE(stream_->wait());
    EXPECT_EQ(sum(), static_cast<float>(step));
  }
  EXPECT_EQ(calls, 7);  // at first once; then in vain, and once more
  EXPECT_EQ(stream_->recurring()->replays(), 0u);
}

// What ran long ago is forgotten, lest graphs come to take all memory.
TEST_F(RecurringTest, NotEverythingIsRemembered) {
  struct Large {
    std::array<std::byte, std::size_t{1} << 20> bytes{};
  };
  const auto what = std::make_unique<Large>();
  const auto run = [&](std::byte which) {
    what->bytes[0] = which;
    stream_->recurring()->add(
        "nothing", [](cudaStream_t) { return cudaSuccess; }, *what);
    ASSERT_TRUE(stream_->wait());
  };
  for (const int which : {1, 2, 1, 2}) run(static_cast<std::byte>(which));
  EXPECT_EQ(stream_->recurring()->replays(), 2u);
  for (int which = 3; which < 9; ++which) run(static_cast<std::byte>(which));
  run(std::byte{1});
  EXPECT_EQ(stream_->recurring()->replays(), 2u);
}

}  // namespace
}  // namespace thermocline::cuda
