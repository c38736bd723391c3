#include "tools/thermocline/range.h"

#include <gtest/gtest.h>

namespace thermocline {
namespace {

using Numbers = std::vector<std::uint32_t>;

TEST(Range, ReadsNumbersListsAndRanges) {
  EXPECT_EQ(parse_range_list("512", "-p").value(), (Numbers{512}));
  EXPECT_EQ(parse_range_list("0,2048,8192", "-p").value(), (Numbers{0, 2048, 8192}));
  EXPECT_EQ(parse_range_list("1-4", "-p").value(), (Numbers{1, 2, 3, 4}));
  EXPECT_EQ(parse_range_list("0-8192+2048", "-p").value(), (Numbers{0, 2048, 4096, 6144, 8192}));
  EXPECT_EQ(parse_range_list("512-8192*2", "-p").value(), (Numbers{512, 1024, 2048, 4096, 8192}));
  EXPECT_EQ(parse_range_list("0,5-5*1,7", "-p").value(), (Numbers{0, 5, 7}));
}

TEST(Range, StopsAtTheLastValueThatIsNotAboveItsEnd) {
  EXPECT_EQ(parse_range_list("10-25+10", "-p").value(), (Numbers{10, 20}));
  EXPECT_EQ(parse_range_list("3-20*2", "-p").value(), (Numbers{3, 6, 12}));
}

TEST(Range, RefusesWhatIsNoRangeAndNamesTheFlag) {
  for (const char* text : {"", ",", "1,", "a", "1-", "-1", "4-1", "1-4+", "1-4*x", "1.5", "1-4-6",
                           "99999999999", "1 ", "1-4+-1"}) {
    const auto result = parse_range_list(text, "--depth");
    ASSERT_FALSE(result.has_value()) << text;
    EXPECT_EQ(result.error().code, ErrorCode::invalid_argument) << text;
    EXPECT_NE(result.error().message.find("--depth"), std::string::npos) << text;
  }
}

TEST(Range, RefusesOnesThatNeverEndOrAreTooLong) {
  for (const char* text : {"1-4+0", "0-4*2", "1-4*1", "1-4*0", "0-1000000"})
    EXPECT_FALSE(parse_range_list(text, "-p").has_value()) << text;
}

TEST(List, SplitsAtCommas) {
  EXPECT_EQ(parse_list("exact,sketch", "--method").value(),
            (std::vector<std::string>{"exact", "sketch"}));
  EXPECT_FALSE(parse_list("exact,,sketch", "--method").has_value());
}

}  // namespace
}  // namespace thermocline
