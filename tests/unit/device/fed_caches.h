// Caches that are fed the same random rows, and how near their answers are to each other: what a
// device attends, against the host, or against itself with rows elsewhere.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <limits>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "runtime/kv_cache.h"
#include "tests/support/float_table.h"
#include "tests/support/written_rows.h"

namespace thermocline {

inline CacheOptions options_for(const std::string& method, std::uint32_t positions) {
  CacheOptions options;
  options.layers = {plain_layer(2, 3, 64, 64), plain_layer(1, 2, 32, 32, 100),
                    plain_layer(2, 2, 32, 32)};
  options.method = method;
  options.method_directory = "configs/methods";
  options.max_positions = positions;
  return options;
}

// With settings that a device chooses under.
inline std::vector<std::pair<std::string, std::vector<std::string>>>
methods_that_a_device_chooses_by() {
  return {{"sketch", {}},
          {"sketch", {"keys.compress=int8", "values.compress=int8"}},
          {"sketch", {"select.bits=4", "select.share=0.2"}},
          {"sketch", {"select.min_rows=5000"}},  // more than there are
          {"ladder2", {}},
          {"ladder4", {"values.compress=raw"}},
          {"sketch", {"retain.keep=snapkv", "retain.share=0.5"}},
          {"sketch", {"retain.keep=h2o"}},
          {"quest", {}},
          {"quest", {"select.share=0.3", "select.block=48", "select.group=vote"}},
          {"moments", {"keys.compress=int8", "values.compress=int8"}},
          {"shadowkv_landmarks", {"select.outliers=0.05"}},
          {"shadowkv", {"select.outliers=0.05"}},
          {"shadowkv", {"keys.rank=0.5", "values.compress=int8"}},
          {"sketch", {"keys.compress=lowrank"}},  // whose rows lie in an order of their own
          {"retroinfer", {}},
          {"retroinfer", {"select.min_rows=5000"}},
          {"retroinfer", {"select.estimate=0", "select.group=max"}}};
}

inline CacheOptions on_device(CacheOptions options, const char* device) {
  options.tiers.device = device;
  options.tiers.device_bytes = std::uint64_t{64} << 20;
  return options;
}

// All rows at home on a disk: without a row cache in host memory, or with one for `cached` bytes.
inline CacheOptions on_disk(CacheOptions options, const std::string& folder, std::uint64_t cached) {
  options.tiers.directory = folder;
  options.tiers.disk_bytes = std::uint64_t{256} << 20;
  options.method_overrides.push_back("place.rows=lowest");
  const auto plan = KvCache::plan(options);
  if (!plan) throw std::runtime_error(plan.error().message);
  options.tiers.host_bytes = cached;
  for (const MemoryLine& line : plan->lines)
    if (line.tier == "host" && line.purpose != "row_cache") options.tiers.host_bytes += line.bytes;
  return options;
}

// The file in which a cache keeps rows in `folder`, opened once more, to be damaged; -1: none.
inline int open_rows_in(const std::string& folder) {
  for (const auto& one : std::filesystem::directory_iterator("/proc/self/fd")) {
    std::error_code gone;
    if (std::filesystem::read_symlink(one, gone).string().starts_with(folder + "/"))
      return ::open(one.path().c_str(), O_RDWR);
  }
  return -1;
}

// What a plan's lines of a purpose come to in a tier, or a cache has held of them at most.
inline std::uint64_t peak_of(const MemoryPlan& plan, const std::string& tier,
                             const std::string& purpose) {
  std::uint64_t bytes = 0;
  for (const MemoryLine& line : plan.lines)
    if (line.tier == tier && line.purpose == purpose) bytes += line.peak_bytes;
  return bytes;
}

// With less device memory than any layer takes a plan is refused, and says how much one does.
inline void expect_the_least_is_said(CacheOptions options) {
  options.tiers.device_bytes = 1;
  const auto none = KvCache::plan(options);
  ASSERT_FALSE(none);
  const std::string said = none.error().message, raise = "raise --kv-device to ";
  ASSERT_NE(said.find(raise), std::string::npos) << said;
  const std::uint64_t least = std::stoull(said.substr(said.find(raise) + raise.size())) << 10;
  options.tiers.device_bytes = least;
  const auto one = KvCache::plan(options);
  ASSERT_TRUE(one) << one.error().message;
  EXPECT_GT(one->total("device"), 0u);
  options.tiers.device_bytes = least - 1024;
  EXPECT_FALSE(KvCache::plan(options));
}

// How far two ways to attend in floats may be apart, by the roundings that either makes: scores of
// `dim` products whose sum is at most `score`, weights that are as far off as their scores, and
// sums of `rows` weighted values, none larger than `value`.
inline double bound_of(double score, double value, double dim, double rows) {
  const double u = std::ldexp(1.0, -24);
  const double weight = 2 * (dim + 8) * u * score + 8 * u;
  return 2 * value * (2 * weight + 2 * (rows + 16) * u);
}

// And of a prefill whose operands one of the two rounds to the 11 bits of f16: queries and coded
// rows, so that scores are off and with them weights and their sum; weights, and values once more.
inline double rounded_bound_of(double score, double value) {
  const double u = std::ldexp(1.0, -11);
  return value * (2 * std::expm1(2 * 2 * u * score) + 2 * 2 * u);
}

// Several caches, each with a text, that are fed the same random rows.
class Fed {
 public:
  explicit Fed(const std::vector<CacheOptions>& options) {
    for (const CacheOptions& one : options) add(one, 2);
  }
  void add(const CacheOptions& options, int threads) {
    auto made = KvCache::create(options, threads, test::float_isa());
    if (!made) throw std::runtime_error(made.error().message);
    if (std::ranges::count(options.method_overrides, "keys.balance=queries") > 0)
      for (const LayerSpec& layer : options.layers)
        for (const int power : layer.query_powers)
          most_kept_ = std::max(most_kept_, std::ldexp(1.0, power));
    caches.push_back(std::move(*made));
    texts.push_back(std::move(*caches.back()->start()));
  }

  // The outputs of all layers, cache by cache, of so many rows.
  std::vector<std::vector<float>> advance(std::uint32_t count, Pass pass) {
    std::vector<std::vector<float>> outputs(caches.size());
    const std::uint32_t seed = random_();
    for (std::size_t c = 0; c < caches.size(); ++c) {
      std::mt19937 same(seed);
      std::vector<Token> at;
      for (std::uint32_t r = 0; r < count; ++r)
        at.push_back({texts[c].id(), texts[c].length() + r});
      check(caches[c]->begin(at, pass));
      for (std::uint32_t l = 0; l < caches[c]->layers().size(); ++l) {
        const LayerSpec& spec = caches[c]->layers()[l];
        const std::size_t n = at.size();
        const auto k = random_floats(same, n * spec.kv_heads * spec.key_dim);
        const auto v = random_floats(same, n * spec.kv_heads * spec.value_dim);
        const auto q = random_floats(same, n * spec.q_heads * spec.key_dim);
        std::vector<float> out(n * spec.q_heads * spec.value_dim);
        check(caches[c]->append(LayerId{l}, {k.data(), n, k.size() / n},
                                {v.data(), n, v.size() / n}));
        check(caches[c]->attend(LayerId{l}, {q.data(), n, q.size() / n},
                                {out.data(), n, out.size() / n}));
        outputs[c].insert(outputs[c].end(), out.begin(), out.end());
        for (std::size_t r = 0; r < q.size() / spec.key_dim; ++r)
          longest_query_ = std::max(
              longest_query_, spec.scale * length_of(q.data() + r * spec.key_dim, spec.key_dim));
        for (std::size_t r = 0; r < k.size() / spec.key_dim; ++r)
          longest_key_ =
              std::max(longest_key_, length_of(k.data() + r * spec.key_dim, spec.key_dim));
        for (const float x : v) largest_value_ = std::max(largest_value_, std::abs(double{x}));
      }
      check(caches[c]->commit());
    }
    return outputs;
  }

  // The last cache's text saved, and resumed by another one in its place.
  void reopen_last(const CacheOptions& session) {
    check(caches.back()->save(texts.back(), {}));
    texts.pop_back();
    caches.pop_back();
    auto made = KvCache::create(session, 2, test::float_isa());
    if (!made) throw std::runtime_error(made.error().message);
    caches.push_back(std::move(*made));
    auto text = caches.back()->resume();
    if (!text) throw std::runtime_error(text.error().message);
    texts.push_back(std::move(*text));
  }

  // Keys that are rebuilt are sums, too, of as many products as their rank: within the length of a
  // position's keys as they are kept, two heads' together, times that of all basis vectors.
  double bound() const {
    double sums = 64;
    for (const RankReport& of : caches.front()->ranks(texts.front()))
      sums = std::max(sums, 64 + most_kept_ * of.rank * std::sqrt(2.0 * of.rank));
    return bound_of(longest_query_ * longest_key_, largest_value_, sums, texts.front().length());
  }
  double prefill_bound() const {
    return bound() + rounded_bound_of(longest_query_ * longest_key_, largest_value_);
  }
  double largest_value() const { return largest_value_; }
  static void check(const Status& status) {
    if (!status) throw std::runtime_error(status.error().message);
  }

  std::vector<std::unique_ptr<KvCache>> caches;
  std::vector<Timeline> texts;  // one a cache

 private:
  // Between -2 and 2: without outliers, which would make the bound as wide as they are.
  static std::vector<float> random_floats(std::mt19937& random, std::size_t count) {
    std::vector<float> floats(count);
    for (float& x : floats) x = static_cast<float>(random() % 4001) / 1000.0f - 2.0f;
    return floats;
  }
  static double length_of(const float* x, std::size_t n) {
    double squares = 0;
    for (std::size_t i = 0; i < n; ++i) squares += double{x[i]} * double{x[i]};
    return std::sqrt(squares);
  }

  std::mt19937 random_{7};
  double longest_query_ = 0, longest_key_ = 0, largest_value_ = 0;
  double most_kept_ = 1;  // times which a channel of a key is kept
};

inline double farthest(const std::vector<float>& one, const std::vector<float>& other) {
  double most = one.size() == other.size() ? 0 : std::numeric_limits<double>::infinity();
  for (std::size_t i = 0; most < 1e30 && i < one.size(); ++i)
    most = std::max(most, std::abs(double{one[i]} - double{other[i]}));
  return most;
}

inline bool same_bits(const std::vector<float>& one, const std::vector<float>& other) {
  return one.size() == other.size() &&
         std::memcmp(one.data(), other.data(), one.size() * sizeof(float)) == 0;
}

}  // namespace thermocline
