// Segments whose keys are fitted, in a cache: a text of any length, cut and forked, in every tier.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <map>

#include "runtime/kv_cache.h"
#include "tests/support/dense_oracle.h"

namespace thermocline {
namespace {

constexpr std::uint32_t kKvHeads = 2, kDim = 32, kQHeads = 4, kWidth = kKvHeads * kDim;

LayerSpec layer_of_test() {
  LayerSpec spec;
  spec.q_heads = kQHeads;
  spec.kv_heads = kKvHeads;
  spec.key_dim = spec.value_dim = kDim;
  spec.scale = 0.05f;
  for (std::size_t i = 0; i < kDim / 2; ++i)
    spec.rope.inverse_frequency.push_back(
        static_cast<float>(std::pow(10000.0, -2.0 * static_cast<double>(i) / kDim)));
  return spec;
}

CacheOptions options_for(const char* method, std::vector<std::string> overrides) {
  CacheOptions options;
  options.layers = {layer_of_test()};
  options.method = method;
  options.method_directory = std::string(THERMOCLINE_SOURCE_DIR) + "/configs/methods";
  options.method_overrides = std::move(overrides);
  options.max_positions = 2000;
  options.max_timelines = 2;
  options.tiers.directory = ::testing::TempDir() + "thermocline-fit";
  return options;
}

// A text whose keys, before they are rotated, are sums of 12 directions and a little beside them:
// from `turn` on of 12 others.
struct Text {
  std::vector<float> directions;
  std::uint32_t turn;

  explicit Text(std::uint32_t at) : directions(24 * kWidth), turn(at) {
    std::mt19937 random(3);
    std::normal_distribution<float> normal;
    for (float& x : directions) x = normal(random);
  }

  struct Row {
    std::vector<float> key, value, query;
  };
  Row row(std::uint32_t position) const {
    std::mt19937 random(position + 17);
    std::normal_distribution<float> normal;
    Row row{std::vector<float>(kWidth), std::vector<float>(kWidth),
            std::vector<float>(kQHeads * kDim)};
    for (float& x : row.key) x = 0.02f * normal(random);
    for (std::uint32_t k = 0; k < 12; ++k) {
      const float much = normal(random);
      const float* from = &directions[(position < turn ? k : 12 + k) * kWidth];
      for (std::uint32_t i = 0; i < kWidth; ++i) row.key[i] += much * from[i];
    }
    for (float& x : row.value) x = normal(random);
    for (float& x : row.query) x = normal(random);
    return row;
  }
};

// A timeline that is written from a text, and what full attention says of it.
struct Writer {
  std::unique_ptr<KvCache> cache;
  Timeline timeline;
  DenseOracle oracle{layer_of_test()};
  const Text& text;
  std::vector<float> answers;
  double worst = 0;  // difference to full attention so far

  Writer(const CacheOptions& options, const Text& of, int threads = 2) : text(of) {
    auto made = KvCache::create(options, threads, "auto");
    EXPECT_TRUE(made) << (made ? "" : made.error().message);
    cache = std::move(*made);
    timeline = std::move(*cache->start());
  }

  void write(std::uint32_t rows, Pass pass) {
    std::vector<Token> at;
    std::vector<float> keys, values, queries, out(std::size_t{rows} * kQHeads * kDim);
    for (std::uint32_t r = 0; r < rows; ++r) {
      at.push_back({timeline.id(), timeline.length() + r});
      const Text::Row row = text.row(timeline.length() + r);
      keys.insert(keys.end(), row.key.begin(), row.key.end());
      values.insert(values.end(), row.value.begin(), row.value.end());
      queries.insert(queries.end(), row.query.begin(), row.query.end());
      oracle.append(row.key.data(), row.value.data());
    }
    ASSERT_TRUE(cache->begin(at, pass));
    ASSERT_TRUE(
        cache->append(LayerId{0}, {keys.data(), rows, kWidth}, {values.data(), rows, kWidth}));
    ASSERT_TRUE(cache->attend(LayerId{0}, {queries.data(), rows, kQHeads * kDim},
                              {out.data(), rows, kQHeads * kDim}));
    ASSERT_TRUE(cache->commit());
    for (std::uint32_t r = 0; r < rows; ++r) {
      const std::vector<double> full = oracle.attend(&queries[r * kQHeads * kDim], at[r].position);
      for (std::size_t i = 0; i < full.size(); ++i)
        worst = std::max(worst, std::abs(full[i] - out[r * kQHeads * kDim + i]));
    }
    answers.insert(answers.end(), out.begin(), out.end());
  }
  void generate(std::uint32_t rows) {
    for (std::uint32_t r = 0; r < rows; ++r) write(1, Pass::decode);
  }
};

// Every byte of fits has its place in the plan, whatever the text makes of them.
void expect_no_more_than_planned(const CacheOptions& options, const KvCache& cache) {
  const Result<MemoryPlan> plan = KvCache::plan(options, 2);
  ASSERT_TRUE(plan);
  const auto of = [](const MemoryPlan& lines, std::uint64_t MemoryLine::*bytes) {
    std::map<std::string, std::uint64_t> sums;
    for (const MemoryLine& line : lines.lines) sums[line.tier + " " + line.purpose] += line.*bytes;
    return sums;
  };
  auto planned = of(*plan, &MemoryLine::bytes);
  for (const auto& [what, peak] : of(cache.usage(), &MemoryLine::peak_bytes))
    EXPECT_LE(peak, planned[what]) << what;
}

const std::vector<std::string> kAllRows = {"keys.rank=0.25", "select.share=1", "steady.seal=128"};

TEST(KvFit, GeneratedTextKeepsToItsBasisOrGetsAnother) {
  const Text text(700);
  const CacheOptions in_memory = options_for("shadowkv", kAllRows);
  Writer host(in_memory, text);
  host.write(300, Pass::prefill);
  host.generate(350);
  auto ranks = host.cache->ranks(host.timeline);
  ASSERT_EQ(ranks.size(), 1u);
  EXPECT_EQ(ranks[0].side, "keys");
  EXPECT_EQ(ranks[0].rank, 16u);
  EXPECT_EQ(ranks[0].channels, 64u);
  EXPECT_EQ(ranks[0].bases, 1u);
  EXPECT_GE(ranks[0].segments, 3u);
  EXPECT_LT(host.worst, 0.03);
  host.generate(350);
  ranks = host.cache->ranks(host.timeline);
  EXPECT_GE(ranks[0].bases, 2u);
  EXPECT_LT(ranks[0].bases, ranks[0].segments);
  EXPECT_GT(ranks[0].captured, 0.97);
  expect_no_more_than_planned(in_memory, *host.cache);
  // Where one content passes into the other, a segment has more directions than its basis.
  EXPECT_LT(host.worst, 0.1);

  CacheOptions on_disk = options_for("shadowkv", kAllRows);
  on_disk.tiers.disk_bytes = std::uint64_t{16} << 20;
  Writer disk(on_disk, text, 1);
  disk.write(300, Pass::prefill);
  disk.generate(700);
  EXPECT_EQ(disk.answers, host.answers);
}

TEST(KvFit, TextThatIsCutAndForkedGoesOnAsNear) {
  const Text text(100'000);
  for (const char* method :
       {"shadowkv", "shadowkv_int8", "kivi4", "kvquant", "rotatekv4", "allot3"}) {
    std::vector<std::string> overrides = {"steady.seal=128"};
    if (std::string(method).starts_with("shadowkv")) overrides = kAllRows;
    Writer writer(options_for(method, overrides), text);
    writer.write(500, Pass::prefill);
    writer.generate(200);
    const double before = writer.worst;
    Timeline fork = std::move(*writer.timeline.fork());
    ASSERT_TRUE(writer.timeline.truncate(333)) << method;  // inside a segment
    writer.oracle.truncate(333);
    writer.generate(150);
    EXPECT_LT(writer.worst, 2 * before + 0.01) << method;
    // What the other holds is its own still.
    std::swap(writer.timeline, fork);
    writer.oracle = DenseOracle(layer_of_test());
    for (std::uint32_t r = 0; r < 700; ++r) {
      const Text::Row row = text.row(r);
      writer.oracle.append(row.key.data(), row.value.data());
    }
    writer.generate(10);
    EXPECT_LT(writer.worst, 2 * before + 0.01) << method;
  }
}

TEST(KvFit, ASessionGoesOnToTheBit) {
  const Text text(250);
  CacheOptions options = options_for("shadowkv", kAllRows);
  options.session.path = ::testing::TempDir() + "fit-" + std::to_string(::getpid());
  std::vector<float> answers;
  {
    Writer writer(options, text);
    writer.write(500, Pass::prefill);
    writer.generate(150);
    EXPECT_GE(writer.cache->ranks(writer.timeline)[0].bases, 1u);
    ASSERT_TRUE(writer.cache->save(writer.timeline, {}));
    writer.answers.clear();
    writer.generate(200);
    answers = writer.answers;
    expect_no_more_than_planned(options, *writer.cache);
  }
  Writer writer(options, text);
  writer.timeline = std::move(*writer.cache->resume());
  for (std::uint32_t position = 0; position < writer.timeline.length(); ++position) {
    const Text::Row row = text.row(position);
    writer.oracle.append(row.key.data(), row.value.data());
  }
  writer.generate(200);
  EXPECT_EQ(writer.answers, answers);
  std::filesystem::remove(options.session.path);
}

}  // namespace
}  // namespace thermocline
