// Random sequences of everything that a cache can be told, against full attention in double (exact)
// and against themselves in other weather (every method): where rows live must not show.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <optional>
#include <string>

#include "runtime/kv_cache.h"
#include "runtime/method.h"
#include "runtime/thermocline.h"
#include "tests/support/dense_oracle.h"
#include "tests/support/float_table.h"

namespace thermocline {
namespace {

constexpr double kBound = 4e-3;  // as in the unit tests: f16 rows, rounded on either side of a tie
constexpr std::uint32_t kMaxTimelines = 4, kMaxPositions = 1400;

struct Weather {
  const char* name;
  bool disk;
  std::uint32_t cached_permille;  // of the rows on the disk, kept in memory
  int threads;
  const char* backend;
  bool device = false;  // with room for half of the rows, or for those of the layer there is
  bool fetch = false;   // which it does not, since it does not attend
};
constexpr Weather kWeathers[] = {{"host, 1 thread", false, 0, 1, "auto"},
                                 {"host, 2 threads", false, 0, 2, "auto"},
                                 {"disk, 2 threads, uring", true, 0, 2, "auto"},
                                 {"disk, 1 thread, pread", true, 0, 1, "threads"},
                                 {"half on disk, 2 threads", true, 500, 2, "auto"},
                                 {"device and host", false, 0, 2, "auto", true},
                                 {"three tiers", true, 300, 2, "auto", true},
                                 {"three tiers, to fetch", true, 300, 2, "auto", true, true}};

class Chance {
 public:
  explicit Chance(unsigned seed) : random(seed) {}
  std::uint32_t below(std::uint32_t n) { return static_cast<std::uint32_t>(random() % n); }
  std::uint32_t between(std::uint32_t least, std::uint32_t most) {
    return least + below(most - least + 1);
  }
  std::mt19937 random;
};

LayerSpec random_layer(Chance& chance, bool windowed) {
  LayerSpec spec;
  spec.kv_heads = chance.between(1, 3);
  spec.q_heads = spec.kv_heads * chance.between(1, 4);
  spec.key_dim = 16 * chance.between(1, 5);
  spec.value_dim = 16 * chance.between(1, 5);
  spec.window = windowed ? chance.between(1, 200) : 0;
  spec.scale = 1.0f / std::sqrt(float(spec.key_dim));
  if (chance.below(4) > 0) {
    spec.rope.pairs = chance.below(2) ? RopePairs::halves : RopePairs::neighbours;
    const std::uint32_t pairs = chance.below(3) ? spec.key_dim / 2 : spec.key_dim / 4;
    for (std::uint32_t i = 0; i < pairs; ++i)
      spec.rope.inverse_frequency.push_back(std::pow(10000.0f, -float(i) / float(pairs)));
    if (chance.below(3) == 0) spec.rope.magnitude = 1.1f;
  }
  return spec;
}

const std::string kMethods = std::string(THERMOCLINE_SOURCE_DIR) + "/configs/methods";

CacheOptions random_cache(Chance& chance, const std::string& method) {
  CacheOptions options;
  options.method = method;
  options.method_directory = kMethods;
  options.max_positions = kMaxPositions;
  options.max_timelines = kMaxTimelines;
  options.tiers.directory = ::testing::TempDir() + "thermocline-property";
  options.layers.push_back(random_layer(chance, false));
  options.layers.push_back(random_layer(chance, chance.below(2)));
  const std::uint32_t sinks[] = {0, 4, 30}, recent[] = {1, 32, 100}, seal[] = {64, 100, 300};
  options.method_overrides = {"steady.sink=" + std::to_string(sinks[chance.below(3)]),
                              "steady.recent=" + std::to_string(recent[chance.below(3)]),
                              "steady.seal=" + std::to_string(seal[chance.below(3)])};
  // Texts are short: budgets that leave something unread.
  for (const std::string more : {"select.share=0.03", "select.min_rows=20"})
    if (load_method(method, kMethods, {&more, 1}, **choose_cpu_table("auto")))
      options.method_overrides.push_back(more);
  // Queries are unrelated: half of them are to be near those before.
  if (method == "tokenselect" || method == "louiskv")
    options.method_overrides.push_back("select.similarity=0");
  // Often enough for short texts.
  const std::uint32_t join[] = {0, 2, 5};
  options.method_overrides.push_back("steady.join=" + std::to_string(join[chance.below(3)]));
  if (method == "duoattention")  // and attend much of what is far
    options.method_overrides.push_back("select.far=0.6");
  if (method == "tidaldecode") {  // one layer reads what the other chose
    options.layers[1] = options.layers[0];
    for (const char* more : {"select.choose_in=0", "select.dense_layers=0"})
      options.method_overrides.push_back(more);
  }
  // And a sketch that asks few groups' means, and few clusters' rows: as in texts so long that it
  // looks at no more.
  if (chance.below(2))
    for (const std::string more : {"select.least_candidates=64", "select.candidates=1",
                                   "select.means=64", "select.cluster=4"})
      if (load_method(method, kMethods, {&more, 1}, **choose_cpu_table("auto")))
        options.method_overrides.push_back(more);
  return options;
}

// Exactly what the plan says that it takes, and nothing to spare but `permille` of the rows.
void set_weather(const Weather& weather, CacheOptions* options) {
  options->tiers.disk_bytes = weather.disk ? std::uint64_t{1} << 30 : 0;
  options->tiers.io_backend = weather.backend;
  options->tiers.host_bytes = kAutoBytes;
  if (weather.fetch) options->method_overrides.push_back("place.run=fetch");
  if (weather.device) {
    options->tiers.device = "host";
    options->tiers.device_bytes = std::uint64_t{1} << 28;
    const auto all = KvCache::plan(*options);
    ASSERT_TRUE(all) << all.error().message;
    options->tiers.device_bytes = std::max<std::uint64_t>(1, all->total("device") / 2);
    if (!KvCache::plan(*options)) options->tiers.device_bytes = all->total("device");
  }
  const auto plan = KvCache::plan(*options);
  ASSERT_TRUE(plan) << plan.error().message;
  std::uint64_t host = 0;
  for (const MemoryLine& line : plan->lines)
    if (line.tier == "disk")
      host += line.bytes * weather.cached_permille / 1000;
    else if (line.tier != "device" && line.purpose != "row_cache")
      host += line.bytes;
  options->tiers.host_bytes = host;
}

std::uint64_t used(const KvCache& cache, const std::string& tier, const std::string& purpose) {
  for (const MemoryLine& line : cache.usage().lines)
    if (line.tier == tier && line.purpose == purpose) return line.bytes;
  return 0;
}

// One run of a seed's commands in one weather. The commands depend on the seed and on what earlier
// ones did to lengths, never on the weather.
class Performance {
 public:
  Performance(const CacheOptions& options, const Weather& weather, unsigned seed, bool compare)
      : chance_(seed), rows_(seed + 1000), compare_(compare) {
    // What is held to full attention in double must round nothing; the same bits are the same
    // anywhere.
    auto made = KvCache::create(options, weather.threads,
                                options.method == "exact" ? test::float_isa() : "auto");
    if (!made) {
      ADD_FAILURE() << made.error().message;
      return;
    }
    cache_ = std::move(*made);
  }

  void go(int commands) {
    ASSERT_TRUE(cache_);
    const MemoryPlan before = cache_->usage();
    const std::uint64_t host_before = before.total("host");
    for (int i = 0; i < commands; ++i) {
      SCOPED_TRACE("command " + std::to_string(i));
      command();
      conserve();
      if (::testing::Test::HasFailure()) return;
    }
    texts_.clear();
    // The span's buffer stays for the next prefill; everything else is given back.
    const MemoryPlan after = cache_->usage();
    EXPECT_EQ(after.total("host") - used(*cache_, "host", "sealing"), host_before);
    EXPECT_EQ(after.total("disk"), 0u);
    EXPECT_EQ(used(*cache_, "host", "rows") + used(*cache_, "host", "index") +
                  used(*cache_, "host", "tail"),
              0u);
  }

  std::vector<float> outputs;  // of every row, in the order of the commands
  double worst = 0;
  std::uint64_t refused = 0, sealed = 0, disk_bytes = 0;

 private:
  struct Text {
    Timeline timeline;
    std::vector<DenseOracle> layers;
  };

  void command() {
    if (texts_.empty()) return start();
    Text& text = texts_[chance_.below(static_cast<std::uint32_t>(texts_.size()))];
    const std::uint32_t length = text.timeline.length();
    switch (chance_.below(12)) {
      case 0:
        return texts_.size() < kMaxTimelines ? start() : void();
      case 1:
        return texts_.size() < kMaxTimelines ? fork(text) : void();
      case 2:
        if (chance_.below(3) == 0) texts_.erase(texts_.begin() + (&text - texts_.data()));
        return;
      case 3:
        return truncate(text, chance_.below(2) ? chance_.below(length + 1)
                                               : length - chance_.below(std::min(length, 80u) + 1));
      case 4:
      case 5: {
        const std::uint32_t room = kMaxPositions - length;
        const std::uint32_t rows = chance_.between(1, chance_.below(3) ? 120 : 700);
        std::vector<std::size_t> which(std::min(rows, room),
                                       static_cast<std::size_t>(&text - texts_.data()));
        return which.empty() ? truncate(text, length / 2) : step(which, false);
      }
      case 6:
        return step(some_rows(), true);
      default:
        for (std::uint32_t steps = chance_.between(1, 30); steps > 0; --steps)
          step(some_rows(), false);
    }
  }

  // Up to kMaxStepRows rows of any timelines, in any order; a timeline's own are consecutive.
  std::vector<std::size_t> some_rows() {
    std::vector<std::uint32_t> ahead(texts_.size(), 0);
    std::vector<std::size_t> which;
    const std::uint32_t rows =
        chance_.below(3) ? chance_.between(1, 3) : chance_.between(1, kMaxStepRows);
    for (std::uint32_t r = 0; r < rows; ++r) {
      const std::size_t t = chance_.below(static_cast<std::uint32_t>(texts_.size()));
      if (texts_[t].timeline.length() + ahead[t] >= kMaxPositions) continue;
      ++ahead[t];
      which.push_back(t);
    }
    return which;
  }

  void start() {
    auto made = cache_->start();
    ASSERT_TRUE(made) << made.error().message;
    Text text;
    text.timeline = std::move(*made);
    for (const LayerSpec& spec : cache_->layers()) text.layers.emplace_back(spec);
    texts_.push_back(std::move(text));
  }

  void fork(const Text& text) {
    auto made = text.timeline.fork();
    ASSERT_TRUE(made) << made.error().message;
    EXPECT_EQ(made->length(), text.timeline.length());
    texts_.push_back({std::move(*made), std::vector<DenseOracle>(text.layers)});
  }

  void truncate(Text& text, std::uint32_t length) {
    const std::uint32_t before = text.timeline.length();
    const Status cut = text.timeline.truncate(length);
    if (!cut) {  // a sliding window that has moved on
      EXPECT_EQ(cut.error().code, ErrorCode::unsupported) << cut.error().message;
      EXPECT_EQ(text.timeline.length(), before);
      ++refused;
      return;
    }
    EXPECT_EQ(text.timeline.length(), length);
    for (DenseOracle& oracle : text.layers) oracle.truncate(length);
  }

  // Rows of one text may come in either pass.
  Pass pass_of(const std::vector<std::size_t>& which) {
    if (which.size() > kMaxStepRows) return Pass::prefill;
    const bool one_text = std::count(which.begin(), which.end(), which[0]) == std::ssize(which);
    return one_text && chance_.below(4) == 0 ? Pass::prefill : Pass::decode;
  }

  // `which`: of each row, the text. Given up somewhere, it must leave no trace.
  void step(const std::vector<std::size_t>& which, bool give_up) {
    if (which.empty()) return;
    std::vector<Token> at;
    std::vector<std::uint32_t> ahead(texts_.size(), 0);
    for (const std::size_t t : which)
      at.push_back({texts_[t].timeline.id(), texts_[t].timeline.length() + ahead[t]++});
    const Status begun = cache_->begin(at, pass_of(which));
    ASSERT_TRUE(begun) << begun.error().message;
    const auto layers = static_cast<std::uint32_t>(cache_->layers().size());
    const std::uint32_t last = give_up ? chance_.below(2 * layers + 1) : 2 * layers;
    std::optional<Timeline> meanwhile;
    if (texts_.size() < kMaxTimelines && chance_.below(8) == 0) {
      auto made = chance_.below(2) ? cache_->start() : texts_[which[0]].timeline.fork();
      ASSERT_TRUE(made) << made.error().message;
      meanwhile = std::move(*made);
    }
    for (std::uint32_t l = 0; l < layers; ++l) layer(LayerId{l}, which, at, last, give_up);
    if (give_up) {
      cache_->rollback();
    } else {
      const Status committed = cache_->commit();
      ASSERT_TRUE(committed) << committed.error().message;
    }
    for (std::size_t t = 0; t < texts_.size(); ++t) {
      if (ahead[t] == 0) continue;
      const std::uint32_t length =
          at[static_cast<std::size_t>(std::find(which.begin(), which.end(), t) - which.begin())]
              .position;
      EXPECT_EQ(texts_[t].timeline.length(), length + (give_up ? 0 : ahead[t]));
    }
  }

  void layer(LayerId l, const std::vector<std::size_t>& which, const std::vector<Token>& at,
             std::uint32_t last, bool give_up) {
    const LayerSpec& spec = cache_->layers()[index(l)];
    const std::size_t n = which.size();
    const std::size_t q_cols = spec.q_heads * spec.key_dim,
                      out_cols = spec.q_heads * spec.value_dim;
    const std::size_t k_cols = spec.kv_heads * spec.key_dim,
                      v_cols = spec.kv_heads * spec.value_dim;
    const auto k = random_rows(rows_, n * k_cols);
    const auto v = random_rows(rows_, n * v_cols);
    const auto q = random_rows(rows_, n * q_cols, 2.0f);
    std::vector<float> out(n * out_cols, -1.0f);
    if (2 * index(l) < last) {
      const Status appended = cache_->append(l, {k.data(), n, k_cols}, {v.data(), n, v_cols});
      ASSERT_TRUE(appended) << appended.error().message;
    }
    if (2 * index(l) + 1 < last) {
      const Status attended = cache_->attend(l, {q.data(), n, q_cols}, {out.data(), n, out_cols});
      ASSERT_TRUE(attended) << attended.error().message;
    }
    if (give_up) return;
    outputs.insert(outputs.end(), out.begin(), out.end());
    if (!compare_) return;
    for (std::size_t r = 0; r < n; ++r) {
      DenseOracle& oracle = texts_[which[r]].layers[index(l)];
      oracle.append(k.data() + r * k_cols, v.data() + r * v_cols);
      if (n > 4 && r % 41 != 0 && r + 1 != n) continue;
      const auto right = oracle.attend(q.data() + r * q_cols, at[r].position);
      for (std::size_t i = 0; i < out_cols; ++i)
        worst = std::max(worst, std::abs(out[r * out_cols + i] - right[i]));
    }
    ASSERT_LT(worst, kBound) << "layer " << index(l) << ", rows from " << at[0].position;
  }

  // The ledger agrees with what there is.
  void conserve() {
    const MemoryPlan usage = cache_->usage();
    for (const MemoryLine& line : usage.lines) EXPECT_LE(line.bytes, line.peak_bytes);
    const std::uint64_t tail = used(*cache_, "host", "tail");
    if (tail_of_one_ == 0 && texts_.size() == 1) tail_of_one_ = tail;
    if (tail_of_one_ > 0) {
      EXPECT_EQ(tail, tail_of_one_ * texts_.size());
    }
    const CacheReport report = cache_->report();
    sealed = report.rows_sealed;
    disk_bytes = report.disk_bytes_read;
  }

  Chance chance_;
  std::mt19937 rows_;
  bool compare_;
  std::unique_ptr<KvCache> cache_;
  std::vector<Text> texts_;  // gone before the cache: declared after it
  std::uint64_t tail_of_one_ = 0;
};

void same_in_all_weathers(const std::string& method, unsigned seed, int commands,
                          const std::vector<std::string>& codecs = {}) {
  SCOPED_TRACE(method + ", seed " + std::to_string(seed));
  Chance chance(seed);
  CacheOptions options = random_cache(chance, method);
  options.method_overrides.insert(options.method_overrides.end(), codecs.begin(), codecs.end());
  std::vector<float> first;
  for (const Weather& weather : kWeathers) {
    SCOPED_TRACE(weather.name);
    set_weather(weather, &options);
    if (::testing::Test::HasFatalFailure()) return;
    Performance run(options, weather, seed, method == "exact" && codecs.empty() && first.empty());
    run.go(commands);
    if (::testing::Test::HasFailure()) return;
    if (first.empty()) {
      first = run.outputs;
      EXPECT_GT(run.sealed, 0u);
      continue;
    }
    ASSERT_EQ(run.outputs.size(), first.size());
    for (std::size_t i = 0; i < first.size(); ++i)
      ASSERT_EQ(std::memcmp(&run.outputs[i], &first[i], sizeof(float)), 0)
          << "float " << i << " of " << first.size() << ": " << run.outputs[i] << ", not "
          << first[i];
  }
}

TEST(KvCacheProperty, ExactIsFullAttentionInAllWeathers) {
  for (unsigned seed = 1; seed <= 6; ++seed) {
    same_in_all_weathers("exact", seed, 45);
    if (HasFailure()) return;
  }
}

TEST(KvCacheProperty, SketchAnswersTheSameInAllWeathers) {
  for (unsigned seed = 101; seed <= 106; ++seed) {
    same_in_all_weathers("sketch", seed, 40);
    if (HasFailure()) return;
  }
}

TEST(KvCacheProperty, EveryMethodAnswersTheSameInAllWeathers) {
  for (const std::string& method : method_names(kMethods)) {
    if (method == "streaming") continue;  // it seals nothing
    SCOPED_TRACE(method);
    unsigned seed = 0;  // the method's own, whatever other files there are
    for (const char letter : method) seed = 31 * seed + static_cast<unsigned char>(letter);
    same_in_all_weathers(method, seed, 36);
    if (HasFailure()) return;
  }
}

TEST(KvCacheProperty, CodedRowsAnswerTheSameInAllWeathers) {
  const std::vector<CodecLine> codecs = list_codecs();
  for (std::size_t i = 0; i < codecs.size(); ++i) {
    const std::string keys = "keys.compress=" + codecs[i].name;
    const std::string values = "values.compress=" + codecs[(i + 3) % codecs.size()].name;
    SCOPED_TRACE(keys + ", " + values);
    same_in_all_weathers(i % 2 ? "exact" : "sketch", 201 + static_cast<unsigned>(i), 40,
                         {keys, values});
    if (HasFailure()) return;
  }
}

}  // namespace
}  // namespace thermocline
