// Every codec through the cache: what its rows take, and what attention over them loses.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "kernels/base/buffer.h"
#include "runtime/kv_cache.h"
#include "runtime/thermocline.h"
#include "tests/support/data_bytes.h"
#include "tests/support/temporary_folder.h"
#include "tests/support/written_rows.h"
#include "tiers/block.h"
#include "tiers/store/publication.h"

namespace thermocline {
namespace {

// A head size that is no multiple of a group's 32 channels, and one that is.
constexpr std::uint32_t kKvHeads = 2, kQueries = 3, kKeyDim = 48, kValueDim = 64;
constexpr std::uint32_t kSink = 4, kRecent = 32, kSeal = 512, kSealed = 3 * kSeal;
constexpr std::uint32_t kLength = kSink + kSealed + kRecent;

// What the keys, or the values, of a segment share, in bytes: `most`, of which so many are of
// outliers, that may be fewer; and of a step that reads every row of a layer, as many more at most.
struct FitSize {
  std::uint64_t most = 0, read = 0, outliers = 0;
  std::uint64_t layers = 1;  // that it is of, together

  std::uint64_t of_both_layers() const { return 2 / layers * most; }
};
constexpr std::uint64_t kGroups = kSealed / 32;  // of rows
// Of which all is read.
constexpr FitSize read_whole(std::uint64_t bytes) { return {bytes, bytes}; }
constexpr FitSize by_channel(std::uint64_t dim) {
  return read_whole(kKvHeads * kGroups * 2 * dim * 2);
}
constexpr FitSize orders(std::uint64_t dim) { return read_whole(kKvHeads * dim * 2); }
// Beside what queries asked for, if they were shown: no row is read by that.
constexpr FitSize with_queries(std::uint64_t read, std::uint64_t asked, std::uint64_t dim) {
  return {read + asked * kKvHeads * dim * 4, read};
}
constexpr FitSize channels_kept(std::uint64_t eighths, std::uint64_t dim, std::uint64_t asked) {
  return with_queries(kKvHeads * dim * eighths / 8 * 2, asked, dim);
}
constexpr FitSize bits_given(std::uint64_t dim, std::uint64_t asked) {
  return with_queries(kKvHeads * (16 + 6 * dim), asked, dim);
}
// The levels are read by each head; a group's outliers are a mean, rounded up.
constexpr FitSize levels(std::uint64_t ranges, std::uint64_t outliers) {
  const std::uint64_t of_heads = kKvHeads * (ranges * 4 + kGroups * 4 + outliers * 4);
  return {72 + of_heads + 4, kKvHeads * 72 + of_heads + kKvHeads * kGroups,
          kKvHeads * (outliers * 4 + kGroups)};
}
// Coefficients are of all heads, and read by each.
constexpr FitSize in_basis(std::uint64_t rank, std::uint64_t dim, std::uint64_t layers) {
  const std::uint64_t heads = layers * kKvHeads;
  return {8 + heads * rank * dim * 2 + 8 + kSealed * rank * 2 + (heads + 1) * 4,
          kKvHeads * (rank * dim * 2 + kSealed * rank * 2), 0, layers};
}

// Bytes of a side of a row; and, as a share of the largest of a normal row's channels, about how
// far attention over such rows may be from attention over f16.
struct CodedSide {
  std::uint32_t key_bytes, value_bytes;
  double off;
  FitSize keys = {}, values = {};
  // Of values, where both sides cannot have it.
  const char* beside = nullptr;
};
const std::map<std::string, CodedSide> kCoded = {
    {"raw", {96, 128, 0}},
    {"bf16", {96, 128, 0.01}},
    {"int8", {52, 68, 0.02}},
    {"q8_0", {68, 68, 0.02}},
    {"q5_1", {48, 48, 0.08}},
    {"q5_0", {44, 44, 0.10}},
    {"q4_1", {40, 40, 0.12}},
    {"q4_0", {36, 36, 0.15}},
    {"iq4_nl", {36, 36, 0.15}},
    {"kivi2", {24, 24, 1.0}},
    {"channels2", {12, 16, 1.0, by_channel(kKeyDim), by_channel(kValueDim)}},
    {"channels4", {24, 32, 0.2, by_channel(kKeyDim), by_channel(kValueDim)}},
    {"hadamard2", {24, 24, 1.0, orders(kKeyDim), orders(kValueDim)}},
    {"hadamard4", {40, 40, 0.2, orders(kKeyDim), orders(kValueDim)}},
    {"pruned5", {60, 80, 2.0, channels_kept(5, kKeyDim, 1), channels_kept(5, kValueDim, 0)}},
    {"pruned6", {72, 96, 2.0, channels_kept(6, kKeyDim, 1), channels_kept(6, kValueDim, 0)}},
    {"rotated2", {14, 18, 1.0}},
    {"rotated3", {20, 26, 0.4}},
    {"rotated4", {26, 34, 0.2}},
    {"allotted2", {10, 14, 1.0, bits_given(kKeyDim, 1), bits_given(kValueDim, 0)}},
    {"allotted3", {16, 22, 0.5, bits_given(kKeyDim, 1), bits_given(kValueDim, 0)}},
    {"allotted4", {22, 30, 0.3, bits_given(kKeyDim, 1), bits_given(kValueDim, 0)}},
    {"nuq4", {32, 32, 0.2, levels(kKeyDim, 16 * kKeyDim), levels(kValueDim, 16 * kValueDim)}},
    {"nuq4_rows", {32, 32, 0.2, levels(kSealed, kSealed), levels(kSealed, kSealed)}},
    {"lowrank", {0, 128, 2.0, in_basis(16, kKeyDim, 1), {}, "raw"}},
    {"lowrank_layers", {0, 128, 2.0, in_basis(32, kKeyDim, 2), {}, "raw"}},
};

class CodedRows : public ::testing::TestWithParam<std::string> {
 protected:
  CacheOptions options(const std::string& codec) const {
    CacheOptions made;
    made.layers.assign(2, plain_layer(kKvHeads, kQueries, kKeyDim, kValueDim));
    made.method_directory = std::string(THERMOCLINE_SOURCE_DIR) + "/configs/methods";
    const char* const beside = kCoded.at(codec).beside;
    made.method_overrides = {"keys.compress=" + codec,
                             "values.compress=" + (beside ? beside : codec)};
    made.max_positions = kLength + 1;
    return made;
  }
  // In how many bytes `purpose` is held in `tier`.
  static std::uint64_t bytes(const MemoryPlan& plan, const std::string& tier,
                             const std::string& purpose) {
    std::uint64_t sum = 0;
    for (const MemoryLine& line : plan.lines)
      if (line.tier == tier && line.purpose == purpose) sum += line.bytes;
    return sum;
  }
  std::uint64_t row_bytes() const {
    const CodedSide& side = kCoded.at(GetParam());
    return side.key_bytes + side.value_bytes;
  }

  std::pair<FitSize, FitSize> fits() const {
    const CodedSide& side = kCoded.at(GetParam());
    return {side.keys, side.values};
  }

  const test::TemporaryFolder temporary_{"coded"};
};

TEST_P(CodedRows, InMemoryTakeAndReadWhatIsAccounted) {
  const auto cache = KvCache::create(options(GetParam()), 1, "auto");
  ASSERT_TRUE(cache) << cache.error().message;
  const Timeline timeline = std::move(*(*cache)->start());
  ASSERT_TRUE(advance(cache->get(), timeline, kLength, Pass::prefill));
  const std::uint64_t rows = 2 * kKvHeads * kSealed;
  EXPECT_EQ(bytes((*cache)->usage(), "host", "rows"), rows * row_bytes());
  const MemoryPlan plan = *KvCache::plan(options(GetParam()), 1);
  EXPECT_EQ(bytes(plan, "host", "rows"), rows * row_bytes());
  // Beside them what they share, of either layer: planned as if they were sealed while decoding.
  const auto& [keys, values] = fits();
  const std::uint64_t shared = bytes((*cache)->usage(), "host", "index");
  const std::uint64_t most = keys.of_both_layers() + values.of_both_layers();
  EXPECT_LE(shared, most);
  EXPECT_GE(shared, most - keys.outliers - values.outliers);
  EXPECT_LE(shared, bytes(plan, "host", "index"));
  const CacheReport before = (*cache)->report();
  ASSERT_TRUE(advance(cache->get(), timeline, 1, Pass::decode));
  const CacheReport cost = difference((*cache)->report(), before);
  const std::uint64_t raw = 2 * kKvHeads * (kSink + kRecent + 1) * (kKeyDim + kValueDim) * 2;
  const std::uint64_t of_fits = cost.host_bytes_read - rows * row_bytes() - raw;
  EXPECT_LE(of_fits, 2 * (keys.read + values.read));
  EXPECT_GE(of_fits, 2 * (keys.read - keys.outliers + values.read - values.outliers));
}

TEST_P(CodedRows, OnTheDiskTakeWhatIsAccounted) {
  CacheOptions made = options(GetParam());
  made.session.path = temporary_.path() + "/s.tls";
  made.session.text_bytes = 4096;
  const auto cache = KvCache::create(made, 1, "auto");
  ASSERT_TRUE(cache) << cache.error().message;
  const Timeline timeline = std::move(*(*cache)->start());
  ASSERT_TRUE(advance(cache->get(), timeline, kLength, Pass::prefill));
  ASSERT_TRUE((*cache)->save(timeline, session_text(kLength)));
  const std::uint64_t head = kSealed * row_bytes();  // each from a page's start
  const std::uint64_t rows = 2 * kKvHeads * ((head + kPageBytes - 1) / kPageBytes * kPageBytes);
  const MemoryPlan usage = (*cache)->usage();
  EXPECT_EQ(bytes(usage, "disk", "rows"), rows);
  const std::uint64_t taken = test::data_bytes(made.session.path);
  // And each segment's record, with its fits.
  const auto& [keys, values] = fits();
  const std::uint64_t shared =
      keys.of_both_layers() + values.of_both_layers() - keys.outliers - values.outliers;
  EXPECT_GE(taken, rows + shared);
  EXPECT_GE(bytes(usage, "host", "index"), shared);
  EXPECT_LE(taken, usage.total("disk") + kSessionHeaderBytes);  // which nobody plans
}

TEST_P(CodedRows, AttendNearWhatF16RowsGive) {
  std::vector<float> answers[2];
  for (const bool coded : {false, true}) {
    const auto cache = KvCache::create(options(coded ? GetParam() : "raw"), 1, "auto");
    ASSERT_TRUE(cache) << cache.error().message;
    const Timeline timeline = std::move(*(*cache)->start());
    ASSERT_TRUE(advance(cache->get(), timeline, kLength, Pass::prefill));
    auto out = advance(cache->get(), timeline, 1, Pass::decode);
    ASSERT_TRUE(out);
    answers[coded] = std::move(*out);
  }
  double worst = 0, largest = 0;
  for (std::size_t i = 0; i < answers[0].size(); ++i) {
    worst = std::max(worst, std::abs(double{answers[1][i]} - double{answers[0][i]}));
    largest = std::max(largest, std::abs(double{answers[0][i]}));
  }
  const double bound = kCoded.at(GetParam()).off;
  EXPECT_LE(worst, bound * largest);
  EXPECT_GE(worst, bound * largest / 100);
}

// All that there are: one that is not in the table above fails.
std::vector<std::string> codecs() {
  std::vector<std::string> names;
  for (const CodecLine& codec : list_codecs()) names.push_back(codec.name);
  return names;
}
INSTANTIATE_TEST_SUITE_P(Codecs, CodedRows, ::testing::ValuesIn(codecs()),
                         [](const auto& suite) { return suite.param; });

}  // namespace
}  // namespace thermocline
