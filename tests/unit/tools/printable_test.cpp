#include "tools/thermocline/printable.h"

#include <gtest/gtest.h>

#include <string>

namespace thermocline {
namespace {

TEST(Printable, WhatATerminalActsOnIsEscaped) {
  EXPECT_EQ(printable(""), "");
  EXPECT_EQ(printable("h\xc3\xa9, \xe6\x97\xa5 \"quoted\" C:\\x"),
            "h\xc3\xa9, \xe6\x97\xa5 \"quoted\" C:\\x");
  EXPECT_EQ(printable("\033[31mred\a"), "\\x1b[31mred\\x07");
  EXPECT_EQ(printable(std::string("a\0b\x7f", 4)), "a\\x00b\\x7f");
  EXPECT_EQ(printable("two\nlines\tand\r"), "two\\nlines\\tand\\x0d");
  EXPECT_EQ(printable("\xc2\x9b\x31m"), "\\xc2\\x9b1m");    // CSI as one character
  EXPECT_EQ(printable("\xc2\xa0"), "\xc2\xa0");             // the first one after C1
  EXPECT_EQ(printable("\xe2\x80\xa8"), "\\xe2\\x80\\xa8");  // a line separator
  EXPECT_EQ(printable("\x9b\xff\xe6\x97"), "\\x9b\\xff\\xe6\\x97");
}

}  // namespace
}  // namespace thermocline
