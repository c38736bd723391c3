#include "kernels/base/utf8.h"

#include <gtest/gtest.h>

#include <set>
#include <string>

namespace thermocline {
namespace {

using Kind = Utf8Step::Kind;

bool surrogate(std::uint32_t code) { return code >= 0xd800 && code <= 0xdfff; }

TEST(Utf8, WhatATextBeginsWith) {
  const struct {
    std::string_view what, text;
    Kind kind;
    std::size_t bytes;
    std::uint32_t code = 0;
  } cases[] = {
      {"a letter", "ab", Kind::character, 1, 'a'},
      {"zero", std::string_view("\0", 1), Kind::character, 1, 0},
      {"the last of one byte", "\x7f", Kind::character, 1, 0x7f},
      {"the first of two", "\xc2\x80", Kind::character, 2, 0x80},
      {"the last of two", "\xdf\xbf", Kind::character, 2, 0x7ff},
      {"the first of three", "\xe0\xa0\x80", Kind::character, 3, 0x800},
      {"the last before the surrogates", "\xed\x9f\xbf", Kind::character, 3, 0xd7ff},
      {"the first after the surrogates", "\xee\x80\x80", Kind::character, 3, 0xe000},
      {"the last of three", "\xef\xbf\xbf", Kind::character, 3, 0xffff},
      {"the first of four", "\xf0\x90\x80\x80", Kind::character, 4, 0x10000},
      {"the last there is", "\xf4\x8f\xbf\xbf", Kind::character, 4, 0x10ffff},
      {"the first surrogate", "\xed\xa0\x80", Kind::invalid, 1},
      {"the last surrogate", "\xed\xbf\xbf", Kind::invalid, 1},
      {"an overlong zero", "\xc0\x80", Kind::invalid, 1},
      {"an overlong slash", "\xc0\xaf", Kind::invalid, 1},
      {"an overlong DEL", "\xc1\xbf", Kind::invalid, 1},
      {"two bytes' last in three", "\xe0\x9f\xbf", Kind::invalid, 1},
      {"three bytes' last in four", "\xf0\x8f\xbf\xbf", Kind::invalid, 1},
      {"the first beyond U+10FFFF", "\xf4\x90\x80\x80", Kind::invalid, 1},
      {"far beyond", "\xf5\x80\x80\x80", Kind::invalid, 1},
      {"a lead of five bytes", "\xf8\x88\x80\x80\x80", Kind::invalid, 1},
      {"never in UTF-8", "\xff", Kind::invalid, 1},
      {"no lead", "\x80", Kind::invalid, 1},
      {"cut after one of two", "\xc3", Kind::incomplete, 1},
      {"cut after one of three", "\xed", Kind::incomplete, 1},
      {"cut after two of three", "\xe6\x97", Kind::incomplete, 2},
      {"cut after three of four", "\xf0\x9f\x98", Kind::incomplete, 3},
      {"a letter instead of the second", "\xe6z", Kind::invalid, 1},
      {"a letter instead of the third", "\xe6\x97z", Kind::invalid, 2},
      {"a lead instead of the fourth", "\xf0\x9f\x98\xc3", Kind::invalid, 3},
      {"a surrogate that is cut", "\xed\xa0", Kind::invalid, 1},
  };
  for (const auto& each : cases) {
    SCOPED_TRACE(each.what);
    const Utf8Step step = utf8_step(each.text);
    EXPECT_EQ(step.kind, each.kind);
    EXPECT_EQ(step.bytes, each.bytes);
    EXPECT_EQ(step.code, each.code);
    EXPECT_EQ(find_invalid_utf8(std::string("x\xc3\xa9").append(each.text).append("z")),
              each.kind == Kind::character ? std::string::npos : 3u);
  }
  EXPECT_EQ(find_invalid_utf8(""), std::string::npos);
  EXPECT_EQ(find_invalid_utf8("abc\xe6\x97"), 3u);
}

TEST(Utf8, EveryCharacterComesBack) {
  for (std::uint32_t code = 0; code <= 0x10ffff; ++code) {
    std::string text;
    append_utf8(code, &text);
    const Utf8Step step = utf8_step(text);
    if (surrogate(code)) {
      ASSERT_EQ(step.kind, Kind::invalid) << code;
      continue;
    }
    ASSERT_EQ(step.kind, Kind::character) << code;
    ASSERT_EQ(step.bytes, text.size()) << code;
    ASSERT_EQ(step.code, code);
  }
}

// All texts of two bytes and all of three that begin with a lead: what may begin a character is
// what some character begins with.
TEST(Utf8, NothingElseIsACharacter) {
  std::set<std::string> characters, beginnings;
  for (std::uint32_t code = 0; code <= 0x10ffff; ++code) {
    if (surrogate(code)) continue;
    std::string text;
    append_utf8(code, &text);
    if (text.size() < 4) characters.insert(text);
    for (std::size_t bytes = 1; bytes < text.size(); ++bytes)
      beginnings.insert(text.substr(0, bytes));
  }
  const auto check = [&](const std::string& text) {
    std::size_t begun = 0;
    while (begun < text.size() && beginnings.contains(text.substr(0, begun + 1))) ++begun;
    const Utf8Step step = utf8_step(text);
    const std::string whole = text.substr(0, begun + 1);
    if (begun == text.size()) {
      ASSERT_EQ(step.kind, Kind::incomplete);
      ASSERT_EQ(step.bytes, begun);
    } else if (characters.contains(whole)) {
      ASSERT_EQ(step.kind, Kind::character);
      ASSERT_EQ(step.bytes, whole.size());
    } else if (whole.size() < 4) {
      ASSERT_EQ(step.kind, Kind::invalid);
      ASSERT_EQ(step.bytes, std::max<std::size_t>(begun, 1));
    }
  };
  for (int first = 0; first < 256; ++first)
    for (int second = 0; second < 256; ++second) {
      const std::string two{static_cast<char>(first), static_cast<char>(second)};
      check(two);
      if (first >= 0xe0 && beginnings.contains(two))
        for (int third = 0; third < 256; ++third) check(two + static_cast<char>(third));
      if (HasFatalFailure()) FAIL() << "after " << first << ", " << second;
    }
}

}  // namespace
}  // namespace thermocline
