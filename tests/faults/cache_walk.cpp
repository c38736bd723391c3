#include "tests/faults/cache_walk.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <random>

namespace thermocline {
namespace {

std::vector<float> random_floats(std::mt19937& random, std::size_t n) {
  std::vector<float> values(n);
  for (float& value : values) value = static_cast<float>(random() % 2001) / 1000.0f - 1.0f;
  return values;
}

}  // namespace

CacheOptions cache_options(const std::string& backend, const std::string& method,
                           std::uint64_t cached_bytes) {
  CacheOptions options;
  for (const std::uint32_t heads : {2u, 1u}) {
    LayerSpec spec;
    spec.q_heads = 2 * heads;
    spec.kv_heads = heads;
    spec.key_dim = 32;
    spec.value_dim = 48;
    spec.scale = 0.2f;
    options.layers.push_back(spec);
  }
  options.method = method;
  options.method_directory = std::string(THERMOCLINE_SOURCE_DIR) + "/configs/methods";
  options.method_overrides = {"steady.seal=64", "steady.recent=16"};
  if (method == "sketch") options.method_overrides.push_back("select.min_rows=40");
  options.max_positions = 900;
  options.max_timelines = 2;
  options.tiers.directory = ::testing::TempDir() + "thermocline-faults";
  options.tiers.disk_bytes = std::uint64_t{64} << 20;
  options.tiers.io_backend = backend;
  const auto plan = KvCache::plan(options);
  EXPECT_TRUE(plan) << (plan ? "" : plan.error().message);
  options.tiers.host_bytes = cached_bytes;
  for (const MemoryLine& line : plan->lines)
    if (line.tier == "host" && line.purpose != "row_cache") options.tiers.host_bytes += line.bytes;
  return options;
}

Walk::Walk(const CacheOptions& options, int threads, const std::string& isa) {
  auto made = KvCache::create(options, threads, isa);
  if (!made) {
    ADD_FAILURE() << made.error().message;
    return;
  }
  cache_ = std::move(*made);
  text_ = std::move(*cache_->start());
}
Status Walk::step(int number, std::vector<float>* outputs) {
  if (number == 0) {
    TL_TRY_ASSIGN(Timeline other, cache_->start());
    TL_TRY(advance(other, 400, 5, outputs));
  }
  if (number % 8 == 5) fork_ = {};
  if (number % 8 == 3) {
    fork_ = {};
    TL_TRY_ASSIGN(fork_, text_.fork());
  }
  held_before_ = held_bytes();
  if (number % 16 == 9 && text_.length() > 470) TL_TRY(text_.truncate(450));
  held_before_ = held_bytes();
  const std::uint32_t rows = number == 0 ? 400 : number % 7 == 6 ? 70 : 3;
  return advance(text_, rows, static_cast<unsigned>(number) + 77, outputs);
}
std::uint64_t Walk::held_bytes() const {
  std::uint64_t bytes = 0;
  for (const MemoryLine& line : cache_->usage().lines)
    if (line.purpose != "sealing" && (line.tier == "host" || line.tier == "disk"))
      bytes += line.bytes;
  return bytes;
}
void Walk::forget_texts() {
  fork_ = {};
  text_ = {};
}

Status Walk::advance(const Timeline& text, std::uint32_t rows, unsigned seed,
                     std::vector<float>* outputs) {
  std::mt19937 random(seed);
  std::vector<Token> at;
  for (std::uint32_t r = 0; r < rows; ++r) at.push_back({text.id(), text.length() + r});
  TL_TRY(cache_->begin(at, rows > kMaxStepRows ? Pass::prefill : Pass::decode));
  std::vector<float> all;
  const auto carry_out = [&]() -> Status {
    for (std::uint32_t l = 0; l < cache_->layers().size(); ++l) {
      const LayerSpec& spec = cache_->layers()[l];
      const std::size_t k = spec.kv_heads * spec.key_dim, v = spec.kv_heads * spec.value_dim;
      const std::size_t q = spec.q_heads * spec.key_dim, o = spec.q_heads * spec.value_dim;
      const auto keys = random_floats(random, rows * k), values = random_floats(random, rows * v);
      const auto queries = random_floats(random, rows * q);
      std::vector<float> out(rows * o);
      TL_TRY(cache_->append(LayerId{l}, {keys.data(), rows, k}, {values.data(), rows, v}));
      TL_TRY(cache_->attend(LayerId{l}, {queries.data(), rows, q}, {out.data(), rows, o}));
      all.insert(all.end(), out.begin(), out.end());
    }
    return cache_->commit();
  };
  if (Status done = carry_out(); !done) {
    cache_->rollback();
    return done;
  }
  *outputs = std::move(all);
  return {};
}

bool same(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

Undisturbed walk_undisturbed(const CacheOptions& options) {
  Undisturbed right;
  Walk walk(options);
  for (int s = 0; s < kSteps; ++s) {
    right.outputs.emplace_back();
    const Status done = walk.step(s, &right.outputs.back());
    EXPECT_TRUE(done) << s << ": " << (done ? "" : done.error().message);
    right.held.push_back(walk.held_bytes());
    right.most_on_disk = std::max(right.most_on_disk, walk.cache().usage().total("disk"));
  }
  EXPECT_GT(walk.cache().report().disk_reads, 200u);
  EXPECT_EQ(walk.cache().report().pages_read_again, 0u);
  walk.forget_texts();
  right.held_at_end = walk.held_bytes();
  EXPECT_EQ(walk.cache().usage().total("disk"), 0u);
  return right;
}

}  // namespace thermocline
