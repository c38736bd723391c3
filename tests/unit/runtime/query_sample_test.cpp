// Which of a prefill's queries a selector sees.
#include "runtime/query_sample.h"

#include <gtest/gtest.h>

namespace thermocline {
namespace {

TEST(QuerySample, IsOfPositionsOnAGridAndNoMoreThanWerePlanned) {
  for (const std::uint32_t from : {0u, 1u, 4u, 15u, 16u, 17u, 8196u, 100000u})
    for (const std::uint32_t rows : {0u, 1u, 15u, 16u, 17u, 500u, 8191u, 8192u, 8193u, 32768u}) {
      const std::uint32_t end = from + rows;
      const QuerySample sample = QuerySample::of(from, end);
      EXPECT_LE(sample.count, QuerySample::most(rows)) << from << " " << rows;
      EXPECT_LE(sample.count, QuerySample::kMost);
      EXPECT_EQ(sample.count, QuerySample::of(from, end).count);
      for (std::uint32_t i = 0; i < sample.count; ++i) {
        EXPECT_EQ(sample.position(i) % QuerySample::kLeastStride, 0u);
        EXPECT_GE(sample.position(i), from);
        EXPECT_LT(sample.position(i), end);
      }
      // All over the text: nothing longer than two strides is without one.
      if (rows >= 2 * sample.stride) {
        ASSERT_GT(sample.count, 0u);
        EXPECT_LT(sample.position(0), from + sample.stride);
        EXPECT_GE(sample.position(sample.count - 1) + sample.stride, end);
      }
    }
}

}  // namespace
}  // namespace thermocline
