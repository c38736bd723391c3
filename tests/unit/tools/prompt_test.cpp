#include "tools/thermocline/prompt.h"

#include <gtest/gtest.h>

#include "tools/thermocline/suggestion.h"

namespace thermocline {
namespace {

TEST(Escapes, BecomeWhatTheyStandFor) {
  EXPECT_EQ(resolve_escapes("a\\nb\\t\\\\\\\"\\'"), "a\nb\t\\\"'");
  EXPECT_EQ(resolve_escapes("\\x41\\x6a"), "Aj");
  EXPECT_EQ(resolve_escapes("\\q \\x4 \\xzz \\"), "\\q \\x4 \\xzz \\");
}

TEST(Utf8, TheFirstWrongByteIsFound) {
  constexpr std::size_t kNone = std::string::npos;
  EXPECT_EQ(find_invalid_utf8(""), kNone);
  EXPECT_EQ(find_invalid_utf8("h\xc3\xa9, \xe6\x97\xa5, \xf0\x9f\x98\x80"), kNone);
  EXPECT_EQ(find_invalid_utf8("ab\xff"), 2u);
  EXPECT_EQ(find_invalid_utf8("\xc0\xaf"), 0u);          // overlong
  EXPECT_EQ(find_invalid_utf8("a\xed\xa0\x80"), 1u);     // a surrogate
  EXPECT_EQ(find_invalid_utf8("\xf4\x90\x80\x80"), 0u);  // beyond U+10FFFF
  EXPECT_EQ(find_invalid_utf8("abc\xe6\x97"), 3u);       // cut short
}

TEST(Suggestion, IsTheNearestWordOrNone) {
  const std::vector<std::string> known{"--temp", "--top-k", "--kv-host", "--kv-disk"};
  EXPECT_EQ(suggestion("--tmp", known), ": did you mean '--temp'?");
  EXPECT_EQ(suggestion("--temperature", known), ": did you mean '--temp'?");
  EXPECT_EQ(suggestion("--kv-hots", known), ": did you mean '--kv-host'?");
  EXPECT_EQ(suggestion("--bananas", known), "");
}

}  // namespace
}  // namespace thermocline
