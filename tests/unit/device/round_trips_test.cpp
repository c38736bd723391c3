// Blocks go to a device and come back, over and over: each as it went, and none where another is.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <random>
#include <span>
#include <vector>

#include "tests/unit/device/each_device.h"

namespace thermocline {
namespace {

constexpr std::size_t kBlocks = 300, kWords = 512, kWritten = 16;
// A device that this processor stands in for takes as long for each.
constexpr std::size_t kTrips = 1'000'000, kTripsEmulated = 20'000;

using Block = std::vector<std::uint64_t>;

// What no other block has, nor this one had before; what is around a block is another's.
void write_pattern(std::uint64_t block, std::uint64_t version, std::span<std::uint64_t> words) {
  std::uint64_t word = (block << 40) ^ (version << 12);
  for (std::uint64_t& w : words) w = word++ * 0x9e3779b97f4a7c15u;
}

class RoundTripsTest : public OnAGpu {
 protected:
  void SetUp() override {
    OnAGpu::SetUp();
    if (!device_) return;
    auto taken = device_->take(kBlocks * kBlockBytes);
    ASSERT_TRUE(taken) << taken.error().message;
    memory_ = *taken;
    for (std::size_t b = 0; b < kBlocks; ++b) ASSERT_TRUE(write(b));
  }
  void TearDown() override {
    if (memory_) device_->give(memory_);
  }

  Status write(std::size_t b) {
    write_pattern(b, ++version_[b], block_);
    return device_->write(memory_ + b * kBlockBytes, std::as_bytes(std::span(block_)));
  }
  // A stretch of words of one block, or of a block and the next one.
  ::testing::AssertionResult comes_back(std::size_t first, std::size_t words) {
    back_.assign(words, 0);
    if (Status read = device_->read(std::as_writable_bytes(std::span(back_)),
                                    memory_ + first * sizeof(std::uint64_t));
        !read)
      return ::testing::AssertionFailure() << read.error().message;
    if (Status done = device_->wait(); !done)
      return ::testing::AssertionFailure() << done.error().message;
    for (std::size_t at = 0; at < words;) {
      const std::size_t b = (first + at) / kWords, in_block = (first + at) % kWords;
      const std::size_t n = std::min(words - at, kWords - in_block);
      write_pattern(b, version_[b], block_);
      if (std::memcmp(&back_[at], &block_[in_block], n * sizeof(std::uint64_t)) != 0)
        return ::testing::AssertionFailure() << "block " << b << ", version " << version_[b];
      at += n;
    }
    return ::testing::AssertionSuccess();
  }
  std::size_t trips() const {
    return device_->name().find("stands in") == std::string::npos ? kTrips : kTripsEmulated;
  }

  static constexpr std::size_t kBlockBytes = kWords * sizeof(std::uint64_t);
  std::byte* memory_ = nullptr;
  std::vector<std::uint64_t> version_ = std::vector<std::uint64_t>(kBlocks);
  Block block_ = Block(kWords), back_;
};

TEST_F(RoundTripsTest, AMillionBlocksComeBackAsTheyWent) {
  std::mt19937 random(11);
  for (std::size_t trip = 0; trip < trips(); trip += kWritten) {
    for (std::size_t i = 0; i < kWritten; ++i) ASSERT_TRUE(write(random() % kBlocks));
    // As many blocks' worth, from anywhere on.
    const std::size_t words = kWritten * kWords;
    ASSERT_TRUE(comes_back(random() % (kBlocks * kWords - words + 1), words)) << "trip " << trip;
  }
  ASSERT_TRUE(comes_back(0, kBlocks * kWords)) << "at the end";
}

}  // namespace
}  // namespace thermocline
