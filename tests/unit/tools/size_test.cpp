#include "tools/thermocline/size.h"

#include <gtest/gtest.h>

#include "runtime/thermocline.h"

namespace thermocline {
namespace {

TEST(Size, ReadsUnitsOfBothKinds) {
  EXPECT_EQ(parse_size("0", "--kv-host").value(), 0u);
  EXPECT_EQ(parse_size("1000000", "--kv-host").value(), 1000000u);
  EXPECT_EQ(parse_size("64k", "--kv-host").value(), 65536u);
  EXPECT_EQ(parse_size("512MiB", "--kv-host").value(), 512u << 20);
  EXPECT_EQ(parse_size("512 mib", "--kv-host").value(), 512u << 20);
  EXPECT_EQ(parse_size("1.5G", "--kv-host").value(), 3ull << 29);
  EXPECT_EQ(parse_size("2GB", "--kv-host").value(), 2000000000u);
  EXPECT_EQ(parse_size("1T", "--kv-host").value(), 1ull << 40);
  EXPECT_EQ(parse_size("auto", "--kv-host").value(), kAutoBytes);
}

TEST(Size, RefusesTheRestAndNamesTheFlag) {
  for (const char* text : {"", "x", "-1", "1X", "1GiBB", "GiB", "nan", "inf", "1e3", "5000T", "1 2",
                           "0x10", "AUTO!"}) {
    const auto result = parse_size(text, "--kv-disk");
    ASSERT_FALSE(result.has_value()) << text;
    EXPECT_NE(result.error().message.find("--kv-disk"), std::string::npos) << text;
  }
}

TEST(Size, IsWrittenWithTheDigitsThatMatter) {
  EXPECT_EQ(format_size(0), "0 B");
  EXPECT_EQ(format_size(1023), "1023 B");
  EXPECT_EQ(format_size(1024), "1.00 KiB");
  EXPECT_EQ(format_size(640 << 10), "640 KiB");
  EXPECT_EQ(format_size((1 << 20) - 1), "1.00 MiB");
  EXPECT_EQ(format_size(3ull << 29), "1.50 GiB");
  EXPECT_EQ(format_size(~0ull), "16.0 EiB");
  EXPECT_EQ(format_count(7), "7");
  EXPECT_EQ(format_count(7701), "7,701");
  EXPECT_EQ(format_count(1234567), "1,234,567");
  EXPECT_EQ(format_counted(0, "token"), "0 tokens");
  EXPECT_EQ(format_counted(1, "token"), "1 token");
  EXPECT_EQ(format_counted(7701, "token"), "7,701 tokens");
}

}  // namespace
}  // namespace thermocline
