// What every device is held to alike: host memory that stands in for one, and a GPU where there is
// one; and what a GPU alone is. Without one that is skipped, with what is missing.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>

#include "kernels/device.h"
#include "tiers/store/device_memory.h"

namespace thermocline {

class EachDevice : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    if (!is_gpu()) return;
    const auto device = open_device(*device_number(GetParam()));
    if (!device) GTEST_SKIP() << device.error().message;
  }
  // Whether its memory is out of the host's reach.
  static bool is_gpu() { return device_number(GetParam()).has_value(); }
};

class OnAGpu : public testing::Test {
 protected:
  void SetUp() override {
    auto opened = open_device(0);
    if (!opened) GTEST_SKIP() << opened.error().message;
    device_ = std::move(*opened);
  }
  std::unique_ptr<Device> device_;
};

inline std::string name_of_device(const testing::TestParamInfo<const char*>& info) {
  return info.param;
}
#define THERMOCLINE_EACH_DEVICE(suite) \
  INSTANTIATE_TEST_SUITE_P(Each, suite, testing::Values("host", "cuda"), name_of_device)

}  // namespace thermocline
