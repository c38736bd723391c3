// A file of roles: untrusted text.
#include "retrieval/select/head_map.h"

#include <gtest/gtest.h>

#include <string>

#include "retrieval/select/mapped_roles.h"
#include "tests/unit/retrieval/sealed_keys.h"

namespace thermocline {
namespace {

TEST(HeadMap, SaysWhatEachHeadReads) {
  const auto map = HeadMap::parse("# a model\n0 1 0\r\n  0\t0 1 # first\n\n2 0 1", "m");
  ASSERT_TRUE(map) << map.error().message;
  EXPECT_EQ(map->heads(0), 2u);
  EXPECT_EQ(map->heads(1), 0u);
  EXPECT_EQ(map->heads(2), 1u);
  EXPECT_EQ(map->heads(3), 0u);
  EXPECT_TRUE(map->reads_everything(0, 0));
  EXPECT_FALSE(map->reads_everything(0, 1));
  EXPECT_TRUE(map->reads_everything(2, 0));
}

TEST(HeadMap, ItsFingerprintIsOfWhatItSays) {
  const auto of = [](const char* text) { return HeadMap::parse(text, "m")->fingerprint(); };
  EXPECT_EQ(of("0 0 1\n0 1 0\n"), of("# as before\n0 1 0\n0 0 1"));
  EXPECT_NE(of("0 0 1\n0 1 0\n"), of("0 0 1\n0 1 1\n"));
  EXPECT_NE(of("0 0 1\n1 0 1\n"), of("0 0 1\n0 1 1\n"));
}

TEST(HeadMap, WhatIsNotOneIsRefusedByLine) {
  struct Case {
    std::string text;
    const char* parts[2];
  };
  for (const Case& c :
       std::vector<Case>{{"", {"m: ", "names no head"}},
                         {"# nothing\n\n", {"m: ", "names no head"}},
                         {"0 0 1\n0 1\n", {"m:2: ", "'0 1'"}},
                         {"0 0 1 1\n", {"m:1: ", "'0 0 1 1'"}},
                         {"0 0 2\n", {"m:1: ", "0 or 1"}},
                         {"0 -1 0\n", {"m:1: ", "'0 -1 0'"}},
                         {"1024 0 0\n", {"m:1: ", "below 1024"}},
                         {"0 4294967296 0\n", {"m:1: ", "below 1024"}},
                         {"0 1x 0\n", {"m:1: ", "'0 1x 0'"}},
                         {"\n0 \x1b[2J 0\n", {"m:2: ", "'0 ?[2J 0'"}},
                         {std::string("0 0 1\n0\0 1 0\n", 13), {"m:2: ", "'0? 1 0'"}},
                         {std::string(5000, '7'), {"m:1: ", "777..."}},
                         {"0 0 1\n0 0 1\n", {"m:2: ", "layer 0, head 0"}},
                         {"0 0 1\n3 1 1\n", {"m: ", "layer 3 has no line for head 0"}},
                         {std::string((1 << 20) + 1, '\n'), {"m: ", "1048576 bytes"}}}) {
    const auto map = HeadMap::parse(c.text, "m");
    ASSERT_FALSE(map) << c.parts[1];
    EXPECT_EQ(map.error().code, ErrorCode::invalid_argument);
    EXPECT_LT(map.error().message.size(), 200u);
    for (const char* part : c.parts)
      EXPECT_NE(map.error().message.find(part), std::string::npos) << map.error().message;
  }
  const auto none = HeadMap::read("/nowhere/at/all");
  ASSERT_FALSE(none);
  EXPECT_EQ(none.error().code, ErrorCode::io);
  EXPECT_FALSE(HeadMap::read("/tmp"));
}

TEST(MappedRoles, HeadsReadWhatTheMapSays) {
  MappedRolesSelector selector(*HeadMap::parse("0 0 0\n0 1 1\n", "m"));
  const HeadShape shape{2, 32, 16};
  const SyntheticRows rows(shape, 2, 100, 5, 3);
  SealedRuns sealed;
  sealed.add(rows.sealing(), *selector.form(rows.sealing(), Workers(1)));
  ListQuery lists[2];
  for (std::uint32_t head = 0; head < 2; ++head) {
    lists[head].head = head;
    lists[head].runs = sealed.runs();
  }
  ReadList read[2];
  ASSERT_TRUE(selector.choose({LayerId{0}, shape, lists}, Workers(1), read));
  EXPECT_TRUE(read[0].reads.empty());
  ASSERT_EQ(read[1].reads.size(), 1u);
  EXPECT_TRUE(read[1].reads[0].everything);
}

TEST(MappedRoles, AMapOfAnotherModelIsRefused) {
  const MappedRolesSelector selector(*HeadMap::parse("0 0 0\n0 1 1\n0 2 1\n", "m"));
  const SyntheticRows rows({2, 32, 16}, 2, 100, 5, 3);
  const auto formed = selector.form(rows.sealing(), Workers(1));
  ASSERT_FALSE(formed);
  for (const char* part :
       {"m: it has 3 KV heads in layer 0", "the model 2", "select.heads=measured"})
    EXPECT_NE(formed.error().message.find(part), std::string::npos) << formed.error().message;
}

}  // namespace
}  // namespace thermocline
