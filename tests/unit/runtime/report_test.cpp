#include "runtime/report.h"

#include <gtest/gtest.h>

#include <set>

namespace thermocline {
namespace {

// Each counter by itself, so that none is forgotten or taken for another.
TEST(CacheReport, EveryCounterIsNamedSubtractedAndSummed) {
  std::set<std::string_view> names;
  for (const CacheCounter& counter : cache_counters()) {
    EXPECT_TRUE(names.insert(counter.name).second) << counter.name;
    CacheReport before, after;
    std::visit(
        [&](auto member) {
          before.*member = 3;
          after.*member = 10;
        },
        counter.member);
    const CacheReport between = difference(after, before), both = sum(after, before);
    for (const CacheCounter& other : cache_counters())
      std::visit(
          [&](auto member) {
            const bool same = other.name == counter.name;
            EXPECT_EQ(static_cast<double>(between.*member), same ? 7.0 : 0.0) << other.name;
            EXPECT_EQ(static_cast<double>(both.*member), same ? 13.0 : 0.0) << other.name;
          },
          other.member);
  }
  EXPECT_EQ(names.size(), sizeof(CacheReport) / sizeof(std::uint64_t));
}

}  // namespace
}  // namespace thermocline
