// Which heads read everything: beside shares of attention in double.
#include "retrieval/select/roles.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "tests/unit/retrieval/sealed_keys.h"

namespace thermocline {
namespace {

constexpr HeadShape kShape{2, 32, 16};
constexpr std::uint32_t kHeads = 3, kSinks = 4, kRows = 500, kQueries = 20, kRecent = 50;

const CpuTable& table() { return **choose_cpu_table("auto"); }

// A segment behind sinks, and queries every 16th position that attend ever nearer rows from KV head
// to KV head: what lies far has less of their attention.
class Roles : public ::testing::Test {
 protected:
  Roles() : rows_(kShape, kHeads, kSinks + kRows, 5, 3) {
    std::mt19937 random(4);
    std::normal_distribution<float> normal;
    query_.resize(std::size_t{kHeads} * kQueries * kShape.heads * kShape.key_dim);
    for (float& x : query_) x = 0.1f * normal(random);
    for (std::uint32_t head = 0; head < kHeads; ++head)
      for (std::uint32_t r = 0; r < kSinks + kRows; ++r)  // along the text the first channel turns
        rows_.key(head, r)[0] = to_f16(static_cast<float>(r) * 0.02f * static_cast<float>(head));
    for (std::size_t i = 0; i < query_.size(); i += kShape.key_dim) query_[i] = 1.0f;
  }
  Sealing sealing(std::span<const std::uint32_t> which = {}) {
    Sealing made = rows_.sealing(kSinks, kRows);
    made.which = which;
    made.queries = kQueries;
    made.query = query_.data();
    made.first_query = kSinks + 150;
    made.query_stride = 16;
    made.recent = kRecent;
    made.sinks = rows_.sealing(0, kSinks).rows;
    return made;
  }
  // The share that the query head with most gives to what is far.
  double share(const Sealing& s, std::uint32_t head) const {
    double most = 0;
    for (std::uint32_t g = 0; g < kShape.heads; ++g) {
      double shares = 0;
      for (std::uint32_t q = 0; q < kQueries; ++q) {
        const std::uint32_t position = s.first_query + q * s.query_stride;
        const float* query =
            &query_[((std::size_t{head} * kQueries + q) * kShape.heads + g) * kShape.key_dim];
        const auto weight = [&](const f16* key) {
          double dot = 0;
          for (std::uint32_t d = 0; d < kShape.key_dim; ++d)
            dot += double{to_float(key[d])} * query[d];
          return std::exp(dot);
        };
        double all = 0, far = 0;
        for (std::uint32_t r = 0; r < kSinks; ++r) all += weight(s.sinks.key(head, r));
        for (std::uint32_t r = 0; r < s.rows.rows; ++r) {
          const std::uint32_t at =
              s.rows.first_position + (s.which.empty() ? r : s.which[head * s.rows.rows + r]);
          if (at > position) continue;
          all += weight(s.rows.key(head, r));
          if (at + kRecent <= position) far += weight(s.rows.key(head, r));
        }
        shares += far / all;
      }
      most = std::max(most, shares / kQueries);
    }
    return most;
  }
  static std::unique_ptr<RolesSelector> make(double far) {
    auto made = RolesSelector::create({far}, table());
    EXPECT_TRUE(made) << made.error().message;
    return std::move(*made);
  }
  // Whether a KV head reads everything of what was sealed: else it reads nothing.
  static bool reads(Selector& selector, const SealedRuns& sealed, std::uint32_t head) {
    ListQuery list;
    list.head = head;
    list.runs = sealed.runs();
    ReadList read;
    EXPECT_TRUE(selector.choose({LayerId{0}, kShape, {&list, 1}}, Workers(1), {&read, 1}));
    EXPECT_TRUE(read.reads.empty() || read.reads.size() == sealed.runs().size());
    for (const Read& one : read.reads) EXPECT_TRUE(one.everything);
    return !read.reads.empty();
  }
  static bool reads(Selector& selector, const Sealing& sealing, std::uint32_t head) {
    SealedRuns sealed;
    sealed.add(sealing, *selector.form(sealing, Workers(2)));
    return reads(selector, sealed, head);
  }

  SyntheticRows rows_;
  std::vector<float> query_;
};

TEST_F(Roles, AHeadThatAttendsFarBackReadsEverything) {
  const Sealing all = sealing();
  EXPECT_GT(share(all, 0), share(all, 1) + 0.1);
  EXPECT_GT(share(all, 1), share(all, 2) + 0.05);
  for (std::uint32_t head = 0; head < kHeads; ++head) {
    SCOPED_TRACE(head);
    EXPECT_TRUE(reads(*make(share(all, head) - 0.002), all, head));
    EXPECT_FALSE(reads(*make(share(all, head) + 0.002), all, head));
  }
}

// A retainer has left each head other ones.
TEST_F(Roles, RowsAreWhereTheyWere) {
  std::vector<std::uint32_t> which(std::size_t{kHeads} * kRows);
  for (std::uint32_t head = 0; head < kHeads; ++head)
    for (std::uint32_t r = 0; r < kRows; ++r)
      which[head * kRows + r] = r + (r > 60 + 100 * head ? 300 : 0);
  const Sealing some = sealing(which);
  for (std::uint32_t head = 0; head < kHeads; ++head) {
    SCOPED_TRACE(head);
    EXPECT_GT(std::abs(share(some, head) - share(sealing(), head)), 0.004);
    EXPECT_TRUE(reads(*make(share(some, head) - 0.002), some, head));
    EXPECT_FALSE(reads(*make(share(some, head) + 0.002), some, head));
  }
}

TEST_F(Roles, WhereNothingWasMeasuredEverythingIsRead) {
  const auto selector = make(1);
  Sealing none = sealing();
  none.queries = 0;
  EXPECT_TRUE(reads(*selector, none, 0));
  Sealing early = sealing();  // too early to see what is far
  early.first_query = kSinks;
  early.query_stride = 1;
  EXPECT_TRUE(reads(*selector, early, 0));
  Sealing late = sealing();  // of what comes after the segment
  late.first_query = kSinks + kRows;
  EXPECT_TRUE(reads(*selector, late, 0));
  EXPECT_FALSE(reads(*selector, sealing(), 0));
}

TEST_F(Roles, TheFirstSegmentThatWasMeasuredDecides) {
  const double between = (share(sealing(), 0) + share(sealing(), 2)) / 2;
  const auto selector = make(between);
  Sealing unknown = sealing();
  unknown.queries = 0;
  Sealing other = sealing();  // all heads' queries are as the last one's
  std::vector<float> turned(query_);
  for (std::size_t i = 0; i < turned.size(); i += kShape.key_dim) turned[i] = 3.0f;
  other.query = turned.data();
  SealedRuns sealed;
  for (const Sealing& one : {unknown, sealing(), other})
    sealed.add(one, *selector->form(one, Workers(1)));
  EXPECT_TRUE(reads(*selector, sealed, 0));
  EXPECT_FALSE(reads(*selector, sealed, 2));
}

TEST_F(Roles, WhatWasMeasuredIsKeptInAFile) {
  const auto selector = make((share(sealing(), 0) + share(sealing(), 2)) / 2);
  const Formation formed = *selector->form(sealing(), Workers(1));
  RecordWriter written;
  selector->save(formed, &written);
  std::vector<std::byte> bytes(written.bytes().begin(), written.bytes().end());
  RecordReader in(bytes, "file");
  const auto loaded = selector->load(kShape, kHeads, kRows, &in);
  ASSERT_TRUE(loaded) << loaded.error().message;
  ASSERT_TRUE(in.end());
  SealedRuns sealed;
  sealed.add(sealing(), *loaded);
  EXPECT_TRUE(reads(*selector, sealed, 0));
  EXPECT_FALSE(reads(*selector, sealed, 2));

  for (const float wrong : {-0.5f, 2.0f, std::numeric_limits<float>::quiet_NaN()}) {
    std::vector<std::byte> damaged(bytes);
    std::memcpy(damaged.data() + 64 + 4, &wrong, sizeof(wrong));
    RecordReader reader(damaged, "file");
    const auto refused = selector->load(kShape, kHeads, kRows, &reader);
    ASSERT_FALSE(refused) << wrong;
    EXPECT_EQ(refused.error().code, ErrorCode::corrupt);
    EXPECT_NE(refused.error().message.find("head 1"), std::string::npos);
  }
  bytes.pop_back();
  RecordReader shorter(bytes, "file");
  EXPECT_FALSE(selector->load(kShape, kHeads, kRows, &shorter));
}

}  // namespace
}  // namespace thermocline
