#include "tools/thermocline/passage.h"

#include <gtest/gtest.h>

#include <numeric>

namespace thermocline {
namespace {

Result<Passage> cut(const EvalText& text, std::uint32_t depth, std::uint32_t steps,
                    std::uint32_t context) {
  return cut_passage(text, depth, steps, context, "--steps " + std::to_string(steps));
}

EvalText text_of(std::size_t tokens) {
  EvalText text{"book.txt", std::vector<int>(tokens)};
  std::iota(text.tokens.begin(), text.tokens.end(), 0);
  return text;
}

TEST(Passage, IsReadAndThenDecodedWithATokenLeft) {
  const EvalText text = text_of(100);
  const auto passage = cut(text, 60, 10, 1000);
  ASSERT_TRUE(passage);
  EXPECT_EQ(passage->read().size(), 60u);
  EXPECT_EQ(passage->token(0), 60);
  EXPECT_EQ(passage->next(9), 70);
  const auto all = cut(text, 0, 10, 1000);
  ASSERT_TRUE(all);
  EXPECT_EQ(all->depth, 89u);
  EXPECT_EQ(all->next(9), 99);
  EXPECT_EQ(cut(text, 0, 10, 64)->depth, 54u) << "as far as the context goes";
}

TEST(Passage, SaysWhatIsTooShort) {
  const EvalText text = text_of(100);
  EXPECT_TRUE(cut(text, 89, 10, 1000));
  const auto beyond = cut(text, 90, 10, 1000);
  ASSERT_FALSE(beyond);
  for (const char* part : {"book.txt", "100 tokens", "101", "--depth 90", "--steps 10"})
    EXPECT_NE(beyond.error().message.find(part), std::string::npos) << part;
  for (const auto& none : {cut(text, 0, 100, 1000), cut(text, 0, 64, 64)}) {
    ASSERT_FALSE(none);
    EXPECT_EQ(none.error().message.find("--depth"), std::string::npos) << none.error().message;
  }
  EXPECT_TRUE(cut(text, 54, 10, 64));
  EXPECT_NE(cut(text, 55, 10, 64).error().message.find("-c"), std::string::npos);
  EXPECT_FALSE(cut(text, 0, 64, 64));
  EXPECT_FALSE(cut(text_of(3), 0, 2, 64)->depth == 0);
}

}  // namespace
}  // namespace thermocline
