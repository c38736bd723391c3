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

TEST(Suggestion, IsTheNearestWordOrNone) {
  const std::vector<std::string> known{"--temp", "--top-k", "--kv-host", "--kv-disk"};
  EXPECT_EQ(suggestion("--tmp", known), ": did you mean '--temp'?");
  EXPECT_EQ(suggestion("--temperature", known), ": did you mean '--temp'?");
  EXPECT_EQ(suggestion("--kv-hots", known), ": did you mean '--kv-host'?");
  EXPECT_EQ(suggestion("--bananas", known), "");
}

}  // namespace
}  // namespace thermocline
