// Layers that are fitted together, in a cache whose layers are of several kinds: as near to full
// attention as their contents are alike, in every tier, and cut, forked, saved and copied together.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>

#include "runtime/kv_cache.h"
#include "tests/support/dense_oracle.h"
#include "tests/support/session_parts.h"
#include "tests/support/temporary_folder.h"
#include "tests/support/written_rows.h"
#include "tiers/block.h"
#include "tiers/segment_record.h"

namespace thermocline {
namespace {

LayerSpec layer(std::uint32_t kv_heads, std::uint32_t dim, std::uint32_t window = 0,
                double rope_base = 10000) {
  LayerSpec spec;
  spec.q_heads = 2 * kv_heads;
  spec.kv_heads = kv_heads;
  spec.key_dim = spec.value_dim = dim;
  spec.window = window;
  spec.scale = 0.05f;
  for (std::size_t i = 0; i < dim / 2; ++i)
    spec.rope.inverse_frequency.push_back(
        static_cast<float>(std::pow(rope_base, -2.0 * static_cast<double>(i) / dim)));
  return spec;
}

// Groups of three: layers 0, 1 and 3; 4, which is rotated otherwise; 5 and 6; 7, of another shape.
std::vector<LayerSpec> layers_of_test() {
  return {layer(2, 32),         layer(2, 32), layer(2, 32, 100), layer(2, 32),
          layer(2, 32, 0, 500), layer(2, 32), layer(2, 32),      layer(1, 48)};
}

// A text whose keys, before they are rotated, are sums of a few directions of each layer and a
// little beside them; how much of each is the same in all layers. From `turn` on of others.
class Text {
 public:
  static constexpr std::uint32_t kShared = 24;  // directions in the first four layers

  explicit Text(std::uint32_t turn) : turn_(turn) {
    std::mt19937 random(3);
    std::normal_distribution<float> normal;
    for (const LayerSpec& spec : layers_of_test()) {
      directions_.emplace_back(2 * kShared * spec.kv_heads * spec.key_dim);
      for (float& x : directions_.back()) x = normal(random);
    }
  }

  // Of a layer's row: keys and values of all KV heads, queries of all heads.
  struct Row {
    std::vector<float> key, value, query;
  };
  Row row(std::uint32_t l, std::uint32_t position) const {
    const LayerSpec spec = layers_of_test()[l];
    const std::uint32_t width = spec.kv_heads * spec.key_dim, count = l < 4 ? kShared : 12;
    std::mt19937 same(position + 17), random(position * 31 + l);
    std::normal_distribution<float> normal;
    Row row{std::vector<float>(width), std::vector<float>(width), std::vector<float>(2 * width)};
    for (float& x : row.key) x = 0.02f * normal(random);
    for (std::uint32_t k = 0; k < count; ++k) {
      const float much = normal(same);
      const float* from = &directions_[l][(position < turn_ ? k : kShared + k) * width];
      for (std::uint32_t i = 0; i < width; ++i) row.key[i] += much * from[i];
    }
    for (float& x : row.value) x = normal(random);
    for (float& x : row.query) x = normal(random);
    return row;
  }

 private:
  std::vector<std::vector<float>> directions_;
  std::uint32_t turn_;
};

CacheOptions options_for(std::vector<std::string> more = {}, const char* method = "xkv") {
  CacheOptions options;
  options.layers = layers_of_test();
  options.method = method;
  options.method_directory = std::string(THERMOCLINE_SOURCE_DIR) + "/configs/methods";
  options.method_overrides = {"select.share=1", "steady.seal=128"};
  if (options.method == "xkv") options.method_overrides.emplace_back("keys.layers=3");
  if (options.method == "exact") options.method_overrides = {"steady.seal=128"};
  options.method_overrides.insert(options.method_overrides.end(), more.begin(), more.end());
  options.max_positions = 2000;
  options.max_timelines = 2;
  options.tiers.directory = ::testing::TempDir() + "thermocline-gather";
  return options;
}

// A timeline that is written from a text, and what full attention says of it.
struct Writer {
  std::unique_ptr<KvCache> cache;
  Timeline timeline;
  std::vector<DenseOracle> oracles;
  const Text& text;
  std::vector<float> answers;
  std::vector<double> worst;  // by layer: difference to full attention so far

  Writer(const CacheOptions& options, const Text& of, int threads = 2) : text(of) {
    auto made = KvCache::create(options, threads, "auto");
    EXPECT_TRUE(made) << (made ? "" : made.error().message);
    cache = std::move(*made);
    timeline = std::move(*cache->start());
    read_along(0);
  }

  // Full attention of what the text has up to there.
  void read_along(std::uint32_t length) {
    oracles.clear();
    for (const LayerSpec& spec : layers_of_test()) oracles.emplace_back(spec);
    worst.resize(oracles.size());
    for (std::uint32_t l = 0; l < oracles.size(); ++l)
      for (std::uint32_t position = 0; position < length; ++position) {
        const Text::Row row = text.row(l, position);
        oracles[l].append(row.key.data(), row.value.data());
      }
  }
  std::vector<Token> next(std::uint32_t rows) const {
    std::vector<Token> at;
    for (std::uint32_t r = 0; r < rows; ++r) at.push_back({timeline.id(), timeline.length() + r});
    return at;
  }
  Status put(std::uint32_t l, std::uint32_t rows) {
    const std::uint32_t width = layers_of_test()[l].kv_heads * layers_of_test()[l].key_dim;
    std::vector<float> keys, values, queries, out(std::size_t{rows} * 2 * width);
    for (std::uint32_t r = 0; r < rows; ++r) {
      const Text::Row row = text.row(l, timeline.length() + r);
      keys.insert(keys.end(), row.key.begin(), row.key.end());
      values.insert(values.end(), row.value.begin(), row.value.end());
      queries.insert(queries.end(), row.query.begin(), row.query.end());
    }
    TL_TRY(cache->append(LayerId{l}, {keys.data(), rows, width}, {values.data(), rows, width}));
    TL_TRY(cache->attend(LayerId{l}, {queries.data(), rows, 2 * width},
                         {out.data(), rows, 2 * width}));
    for (std::uint32_t r = 0; r < rows; ++r) {
      oracles[l].append(&keys[std::size_t{r} * width], &values[std::size_t{r} * width]);
      const std::vector<double> full =
          oracles[l].attend(&queries[std::size_t{r} * 2 * width], timeline.length() + r);
      for (std::size_t i = 0; i < full.size(); ++i)
        worst[l] = std::max(worst[l], std::abs(full[i] - out[r * std::size_t{2} * width + i]));
    }
    answers.insert(answers.end(), out.begin(), out.end());
    return {};
  }
  void write(std::uint32_t rows, Pass pass) {
    ASSERT_TRUE(cache->begin(next(rows), pass));
    for (std::uint32_t l = 0; l < oracles.size(); ++l) {
      const Status done = put(l, rows);
      ASSERT_TRUE(done) << done.error().message;
    }
    ASSERT_TRUE(cache->commit());
  }
  void generate(std::uint32_t rows) {
    for (std::uint32_t r = 0; r < rows; ++r) write(1, Pass::decode);
  }
  double farthest() const { return *std::max_element(worst.begin(), worst.end()); }
};

std::map<std::string, std::uint64_t> by_line(const MemoryPlan& lines,
                                             std::uint64_t MemoryLine::*bytes) {
  std::map<std::string, std::uint64_t> sums;
  for (const MemoryLine& line : lines.lines) sums[line.tier + " " + line.purpose] += line.*bytes;
  return sums;
}

void expect_no_more_than_planned(const CacheOptions& options, const KvCache& cache) {
  const Result<MemoryPlan> plan = KvCache::plan(options, 2);
  ASSERT_TRUE(plan);
  auto planned = by_line(*plan, &MemoryLine::bytes);
  for (const auto& [what, peak] : by_line(cache.usage(), &MemoryLine::peak_bytes))
    EXPECT_LE(peak, planned[what]) << what;
}

TEST(KvGather, LayersThatAreAlikeNeedOneListOfCoefficients) {
  const Text text(700);
  const CacheOptions in_memory = options_for();
  Writer host(in_memory, text);
  host.write(300, Pass::prefill);
  host.generate(350);
  auto ranks = host.cache->ranks(host.timeline);
  const std::uint32_t due[][4] = {{0, 3, 32, 192}, {4, 1, 16, 64}, {5, 2, 16, 128}, {7, 1, 16, 48}};
  ASSERT_EQ(ranks.size(), std::size(due));
  for (std::size_t i = 0; i < ranks.size(); ++i) {
    EXPECT_EQ(ranks[i].layer, due[i][0]);
    EXPECT_EQ(ranks[i].layers, due[i][1]);
    EXPECT_EQ(ranks[i].rank, due[i][2]);
    EXPECT_EQ(ranks[i].channels, due[i][3]);
    EXPECT_EQ(ranks[i].segments, 3u);
    EXPECT_EQ(ranks[i].bases, 1u);
    EXPECT_GT(ranks[i].captured, 0.99);
  }
  EXPECT_LT(host.farthest(), 0.05);

  // A text that turns to other directions gets another basis, in all of the layers.
  host.generate(450);
  ranks = host.cache->ranks(host.timeline);
  for (const RankReport& of : ranks) {
    EXPECT_GE(of.bases, 2u) << of.layer;
    EXPECT_LT(of.bases, of.segments) << of.layer;
  }
  expect_no_more_than_planned(in_memory, *host.cache);

  CacheOptions on_disk = options_for();
  on_disk.tiers.disk_bytes = std::uint64_t{16} << 20;
  Writer disk(on_disk, text, 1);
  disk.write(300, Pass::prefill);
  disk.generate(800);
  EXPECT_EQ(disk.answers, host.answers);
  expect_no_more_than_planned(on_disk, *disk.cache);

  // By itself each of those layers has fewer vectors than its keys have directions.
  Writer alone(options_for({"keys.compress=lowrank", "keys.rank=0.167"}, "shadowkv"), text);
  alone.write(300, Pass::prefill);
  alone.generate(350);
  EXPECT_EQ(alone.cache->ranks(alone.timeline)[0].rank, 16u);
  for (const std::uint32_t l : {0, 1, 3}) EXPECT_GT(alone.worst[l], 0.1) << l;
}

TEST(KvGather, ValuesAreFittedTogetherAsWell) {
  const Text text(100'000);
  const CacheOptions options =
      options_for({"values.compress=lowrank_layers", "values.layers=3", "values.rank=1"}, "exact");
  Writer writer(options, text);
  writer.write(300, Pass::prefill);
  writer.generate(200);
  EXPECT_EQ(writer.cache->ranks(writer.timeline)[0].side, "values");
  EXPECT_LT(writer.farthest(), 0.03);
  expect_no_more_than_planned(options, *writer.cache);
}

// Rows that every step reads stay as they are: of every layer's heads, and no others.
TEST(KvGather, RowsThatAreAlwaysReadAreKeptAsByTheLayerAlone) {
  const Text text(100'000);
  const auto kept_bytes = [&](const std::string& method, const std::vector<std::string>& more) {
    std::uint64_t bytes[2] = {};
    for (const bool many : {false, true}) {
      std::vector<std::string> overrides = more;
      overrides.push_back(many ? "select.outliers=0.2" : "select.outliers=0.1");
      Writer writer(options_for(overrides, method.c_str()), text);
      writer.write(600, Pass::prefill);
      bytes[many] = by_line(writer.cache->usage(), &MemoryLine::bytes)["host index"];
    }
    return bytes[1] - bytes[0];
  };
  const std::uint64_t alone = kept_bytes("shadowkv", {"keys.rank=0.167"});
  EXPECT_GT(alone, 7u * 16 * 33 * 2);  // two chunks of eight in each of seven layers, at least
  EXPECT_EQ(kept_bytes("xkv", {}), alone);
}

TEST(KvGather, OrdersOfLayersMayDiffer) {
  const Text text(100'000);
  const std::vector<std::string> ours = {"keys.compress=lowrank_layers", "keys.layers=3",
                                         "select.by=clusters", "select.share=1"};
  for (const CacheOptions& options :
       {options_for({"select.outliers=0.2"}), options_for(ours, "exact")}) {
    Writer writer(options, text);
    writer.write(400, Pass::prefill);
    writer.generate(150);
    EXPECT_LT(writer.farthest(), 0.05) << options.method;
    expect_no_more_than_planned(options, *writer.cache);
  }
}

TEST(KvGather, TextThatIsCutAndForkedGoesOnAsNear) {
  const Text text(100'000);
  Writer writer(options_for(), text);
  writer.write(500, Pass::prefill);
  writer.generate(200);
  const double before = writer.farthest();
  Timeline fork = std::move(*writer.timeline.fork());
  for (const std::uint32_t length : {601u, 601u, 400u}) {
    ASSERT_TRUE(writer.timeline.truncate(length)) << length;
    writer.read_along(length);
    writer.generate(150);
    EXPECT_LT(writer.farthest(), 2 * before + 0.01) << length;
  }
  // What the other holds is its own still.
  std::swap(writer.timeline, fork);
  writer.read_along(700);
  writer.generate(10);
  EXPECT_LT(writer.farthest(), 2 * before + 0.01);
}

// A step that ends in the middle of a group leaves nothing behind.
TEST(KvGather, AStepThatIsRolledBackIsForgotten) {
  const Text text(100'000);
  Writer one(options_for(), text), other(options_for(), text);
  one.write(300, Pass::prefill);
  other.write(300, Pass::prefill);
  ASSERT_TRUE(one.cache->begin(one.next(400), Pass::prefill));
  ASSERT_TRUE(one.put(0, 400));
  ASSERT_TRUE(one.put(1, 400));
  one.cache->rollback();
  EXPECT_EQ(by_line(one.cache->usage(), &MemoryLine::bytes)["host index"],
            by_line(other.cache->usage(), &MemoryLine::bytes)["host index"]);
  one.read_along(300);
  one.answers = other.answers;
  one.write(400, Pass::prefill);
  other.write(400, Pass::prefill);
  one.generate(3);
  other.generate(3);
  EXPECT_EQ(one.answers, other.answers);
}

TEST(KvGather, APrefillTakesLayersInTheirOrder) {
  const Text text(100'000);
  Writer writer(options_for(), text);
  ASSERT_TRUE(writer.cache->begin(writer.next(300), Pass::prefill));
  ASSERT_TRUE(writer.put(0, 300));
  const Status refused = writer.put(3, 300);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::invalid_argument);
  EXPECT_EQ(refused.error().message,
            "append() of layer 3 before layer 1: with lowrank_layers a prefill takes the layers in "
            "their order");
}

TEST(KvGather, AnotherCacheSealsThemAsIfItHadReadThem) {
  const Text text(100'000);
  Writer exact(options_for({}, "exact"), text);
  exact.write(700, Pass::prefill);
  Writer read(options_for(), text), copied(options_for(), text);
  read.write(700, Pass::prefill);
  const Status done = copied.cache->copy(exact.timeline, copied.timeline);
  ASSERT_TRUE(done) << done.error().message;
  copied.read_along(700);
  read.answers.clear();
  read.generate(5);
  copied.generate(5);
  EXPECT_EQ(copied.answers, read.answers);
  Writer back(options_for({}, "exact"), text);
  ASSERT_TRUE(back.cache->copy(read.timeline, back.timeline));
  back.read_along(705);
  back.generate(5);
  EXPECT_LT(back.farthest(), 0.05);
}

// A prefill leaves several segments a layer that wait for the next layer's, a copy one after the
// other: each is fitted with its own.
TEST(KvGather, SegmentsOfOneStepAreToldApart) {
  CacheOptions from = options_for({}, "exact"), into = options_for();
  from.layers = into.layers = {plain_layer(1, 1, 16, 16), plain_layer(1, 1, 16, 16)};
  from.max_positions = into.max_positions = 3 * kSegmentRows;
  const auto exact = KvCache::create(from, 2, "auto"), sealed = KvCache::create(into, 2, "auto");
  ASSERT_TRUE(exact && sealed);
  const Timeline written = std::move(*(*exact)->start());
  const Timeline read = std::move(*(*sealed)->start()), copied = std::move(*(*sealed)->start());
  constexpr std::uint32_t kRows = 2 * kSegmentRows + 100;
  ASSERT_TRUE(advance(exact->get(), written, kRows, Pass::prefill));
  ASSERT_TRUE(advance(sealed->get(), read, kRows, Pass::prefill));
  ASSERT_TRUE((*sealed)->copy(written, copied));
  EXPECT_EQ((*sealed)->ranks(read)[0].segments, 2u);
  EXPECT_EQ(*advance(sealed->get(), copied, 1, Pass::decode),
            *advance(sealed->get(), read, 1, Pass::decode));
}

class KvGatherSession : public ::testing::Test {
 protected:
  CacheOptions options(const std::string& file) const {
    CacheOptions made = options_for();
    made.session.path = temporary_.path() + "/" + file;
    return made;
  }
  const test::TemporaryFolder temporary_{"gather"};
};

TEST_F(KvGatherSession, GoesOnToTheBit) {
  const Text text(450);
  std::vector<float> answers;
  const auto go_on = [](Writer* writer) {
    writer->answers.clear();
    writer->generate(200);
    ASSERT_TRUE(writer->timeline.truncate(640));  // groups are formed anew
    writer->read_along(640);
    writer->generate(150);
  };
  {
    Writer writer(options("s.tls"), text);
    writer.write(500, Pass::prefill);
    writer.generate(150);
    ASSERT_GE(writer.cache->ranks(writer.timeline)[0].segments, 2u);
    ASSERT_TRUE(writer.cache->save(writer.timeline, {}));
    go_on(&writer);
    answers = writer.answers;
    expect_no_more_than_planned(options("s.tls"), *writer.cache);
  }
  Writer writer(options("s.tls"), text);
  writer.timeline = std::move(*writer.cache->resume());
  writer.read_along(650);
  go_on(&writer);
  EXPECT_EQ(writer.answers, answers);
}

// What only somebody who means harm would write.
TEST_F(KvGatherSession, FitsThatAreNotWhereTheyAreDueAreRefused) {
  const Text text(100'000);
  {
    Writer writer(options("s.tls"), text);
    writer.write(500, Pass::prefill);
    writer.generate(150);
    ASSERT_TRUE(writer.cache->save(writer.timeline, {}));
  }
  const auto sound = test::SessionParts::read(temporary_.path() + "/s.tls");
  const auto refusal = [&](const test::SessionParts& parts) {
    parts.write(temporary_.path() + "/c.tls");
    Writer writer(options("c.tls"), text);
    const auto resumed = writer.cache->resume();
    return resumed ? "accepted" : resumed.error().message;
  };
  ASSERT_EQ(refusal(sound), "accepted");
  // Four bytes of `more`, from its begin on, in the record of a layer's run.
  const auto put = [&](std::uint32_t l, std::size_t run, std::uint32_t value) {
    test::SessionParts parts = sound;
    const PageTable::Record& record = parts.manifest.layers[l].runs[run];
    const auto bytes = std::span(parts.bytes).subspan(record.offset, record.bytes);
    const auto whole = SegmentRecord::decode(bytes, "record");
    EXPECT_TRUE(whole);
    const auto at = std::search(bytes.begin(), bytes.end(), whole->more.begin(), whole->more.end());
    EXPECT_NE(at, bytes.end());
    std::memcpy(&*at, &value, sizeof value);
    return parts;
  };
  EXPECT_NE(refusal(put(0, 0, 1)).find("fit is of kind 1, in a layer whose fit is in the record"),
            std::string::npos);
  EXPECT_NE(refusal(put(3, 1, 3)).find("fit is of kind 3, in a layer whose fit is its own"),
            std::string::npos);
  EXPECT_NE(refusal(put(3, 0, 2)).find("fit is of kind 2, in a segment without one before it"),
            std::string::npos);
  EXPECT_NE(refusal(put(4, 0, 3)).find("fit is of kind 3"), std::string::npos);
  // Layers that are cut otherwise than the first: two of its segments are not one of theirs.
  test::SessionParts parts = sound;
  std::vector<PageTable::Record>& runs = parts.manifest.layers[0].runs;
  std::swap(runs[0], runs[1]);
  EXPECT_NE(refusal(parts).find("layer 0 has a run of"), std::string::npos) << refusal(parts);
}

}  // namespace
}  // namespace thermocline
