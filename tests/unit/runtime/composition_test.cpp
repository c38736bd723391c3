// Every choice of retainer, selector and place with every other, under codecs that take turns so
// that each meets each selector on either side, all with balanced keys: a combination works, in
// host memory, over a disk and from a session alike, or is refused by name.
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <map>
#include <set>

#include "retrieval/index/faiss_index.h"
#include "runtime/kv_cache.h"
#include "runtime/method.h"
#include "runtime/thermocline.h"
#include "tests/support/dense_oracle.h"

namespace thermocline {
namespace {

// A choice for each question, in the order of method_questions().
using Combination = std::vector<std::string>;

bool has(const Combination& combination, const std::string& choice) {
  return std::count(combination.begin(), combination.end(), choice) > 0;
}

// A row of a side is of all heads together.
std::string spanning(const Combination& c, const std::string& side) {
  for (const char* codec : {"lowrank", "lowrank_layers"})
    if (has(c, side + ".compress=" + codec)) return side + ".compress = " + codec;
  return "";
}

bool drops(const Combination& c) {
  return has(c, "retain.keep=snapkv") || has(c, "retain.keep=h2o");
}

// What is known not to go together, by what its refusal names; empty: nothing. A row needs bytes at
// home; a method that seals nothing says nothing of sealed rows; heads that drop other rows have no
// rows of all heads together.
std::string refusal_of(const Combination& c) {
  const std::string keys = spanning(c, "keys"), values = spanning(c, "values");
  if (!keys.empty() && !values.empty()) return values;
  const bool alone = has(c, "select.by=nothing") && has(c, "keys.compress=raw") &&
                     has(c, "values.compress=raw") && has(c, "place.rows=spill");
  if (has(c, "retain.keep=steady") && !alone) return "retain.keep = steady";
  return !drops(c) ? "" : !keys.empty() ? keys : values;
}

Combination combination_of(const std::string& keys, const std::string& values,
                           const Combination& others) {
  Combination all = {"keys.compress=" + keys, "values.compress=" + values};
  all.insert(all.end(), others.begin(), others.end());
  return all;
}

// Of the codecs that a selector may have on a side, whose turn it is: one that it has met least.
class Turns {
 public:
  explicit Turns(std::vector<std::string> codecs) : codecs_(std::move(codecs)) {}

  template <typename Goes>
  const std::string& next(const std::string& side, const std::string& selector, const Goes& goes) {
    std::map<std::string, int>& met = met_[side + selector];
    const std::string* least = nullptr;
    for (const std::string& codec : codecs_)
      if (goes(codec) && (!least || met[codec] < met[*least])) least = &codec;
    ++met[*least];
    return *least;
  }

 private:
  std::vector<std::string> codecs_;
  std::map<std::string, std::map<std::string, int>> met_;
};

// All choices of the others: with rows as they are, with the codecs whose rows are of several heads
// or layers, and with pairs in turn, as many as let each codec meet each selector.
std::vector<Combination> all_combinations() {
  std::vector<Combination> others = {{}};
  std::vector<std::string> codecs;
  std::size_t selectors = 0;
  for (const MethodQuestion& question : method_questions()) {
    if (question.key == "keys.compress" || question.key == "values.compress") {
      codecs = question.choices;
      continue;
    }
    if (question.key == "select.by") selectors = question.choices.size();
    std::vector<Combination> longer;
    for (const Combination& so_far : others)
      for (const std::string& choice : question.choices) {
        longer.push_back(so_far);
        longer.back().push_back(question.key + "=" + choice);
      }
    others = std::move(longer);
  }
  const auto goes = [](const std::string& keys, const std::string& values,
                       const Combination& other) {
    return refusal_of(combination_of(keys, values, other)).empty();
  };
  const auto may_turn =
      static_cast<std::size_t>(std::count_if(others.begin(), others.end(), [&](const auto& other) {
        return goes("int8", "int8", other);
      }));
  const std::size_t pairs = (codecs.size() * selectors + may_turn - 1) / may_turn;
  Turns turns(codecs);
  std::vector<Combination> all = {combination_of("lowrank", "lowrank_layers", others.front())};
  for (const Combination& other : others) {
    all.push_back(combination_of("raw", "raw", other));
    for (const char* codec : {"lowrank", "lowrank_layers"}) {
      all.push_back(combination_of(codec, "raw", other));
      all.push_back(combination_of("raw", codec, other));
    }
    if (!goes("int8", "int8", other)) continue;
    for (std::size_t pair = 0; pair < pairs; ++pair) {
      const std::string& keys =
          turns.next("keys", other[1], [&](const auto& k) { return goes(k, "raw", other); });
      const std::string& values =
          turns.next("values", other[1], [&](const auto& v) { return goes(keys, v, other); });
      all.push_back(combination_of(keys, values, other));
    }
  }
  return all;
}

CacheOptions options_for(const Combination& combination, bool disk) {
  CacheOptions options;
  LayerSpec spec;
  spec.q_heads = 4;
  spec.kv_heads = 2;
  spec.key_dim = 32;
  spec.value_dim = 48;
  spec.scale = 0.2f;
  for (std::uint32_t i = 0; i < spec.key_dim / 2; ++i)  // codecs turn keys back, and again
    spec.rope.inverse_frequency.push_back(std::pow(10000.0f, -2.0f * float(i) / 32.0f));
  for (std::uint32_t d = 0; d < spec.key_dim; ++d)
    spec.query_powers.push_back(static_cast<std::int8_t>(d % 16 * 7 % 6) - 3);
  options.layers = {spec};
  for (const char* side : {"keys", "values"})
    if (spanning(combination, side).ends_with("layers")) options.layers = {spec, spec, spec};
  options.method_directory = std::string(THERMOCLINE_SOURCE_DIR) + "/configs/methods";
  options.method_overrides = combination;
  options.method_overrides.push_back("steady.seal=64");
  if (!has(combination, "retain.keep=steady"))
    options.method_overrides.push_back("keys.balance=queries");
  options.max_positions = 500;
  options.tiers.directory = ::testing::TempDir() + "thermocline-composition";
  options.tiers.disk_bytes = disk ? std::uint64_t{16} << 20 : 0;
  return options;
}

// A prefill, decoding through a seal, a cut where nothing is gone, and more of the same. With a
// session each of them goes on from the file.
std::vector<float> answers(const CacheOptions& options) {
  auto cache = KvCache::create(options, 2, "auto");
  EXPECT_TRUE(cache) << (cache ? "" : cache.error().message);
  if (!cache) return {};
  Timeline timeline = std::move(*(*cache)->start());
  const auto go_on_from_file = [&] {
    if (options.session.path.empty()) return;
    const Status saved = (*cache)->save(timeline, {});
    EXPECT_TRUE(saved) << (saved ? "" : saved.error().message);
    timeline = Timeline();
    cache->reset();
    cache = KvCache::create(options, 2, "auto");
    ASSERT_TRUE(cache);
    auto resumed = (*cache)->resume();
    ASSERT_TRUE(resumed) << resumed.error().message;
    timeline = std::move(*resumed);
  };
  std::mt19937 random(11);
  std::vector<float> all;
  const auto advance = [&](std::uint32_t n) {
    std::vector<Token> at;
    for (std::uint32_t r = 0; r < n; ++r) at.push_back({timeline.id(), timeline.length() + r});
    std::vector<float> out(n * 192);
    EXPECT_TRUE((*cache)->begin(at, n > 1 ? Pass::prefill : Pass::decode));
    for (std::uint32_t l = 0; l < options.layers.size(); ++l) {
      const auto k = random_rows(random, n * 64), v = random_rows(random, n * 96);
      const auto q = random_rows(random, n * 128, 2.0f);
      EXPECT_TRUE((*cache)->append(LayerId{l}, {k.data(), n, 64}, {v.data(), n, 96}));
      EXPECT_TRUE((*cache)->attend(LayerId{l}, {q.data(), n, 128}, {out.data(), n, 192}));
      all.insert(all.end(), out.begin(), out.end());
    }
    EXPECT_TRUE((*cache)->commit());
  };
  advance(300);
  go_on_from_file();
  for (int i = 0; i < 76; ++i) advance(1);
  go_on_from_file();
  EXPECT_TRUE(timeline.truncate(364));
  for (int i = 0; i < 10; ++i) advance(1);
  return all;
}

TEST(Composition, EveryCombinationWorksInEveryTierOrIsRefusedByName) {
  std::size_t works = 0, refused = 0;
  std::set<std::pair<std::string, std::string>> met;  // a side's codec and a selector
  for (const Combination& combination : all_combinations()) {
    std::string named;
    for (const std::string& choice : combination) named += choice + " ";
    SCOPED_TRACE(named);
    const bool faiss = named.find("select.by=faiss_") != std::string::npos;
    if (faiss && !check_faiss()) continue;
    // And a retainer that drops some rows of a prompt.
    const bool in_files = !faiss && !drops(combination);
    if (const std::string refusal = refusal_of(combination); !refusal.empty()) {
      const auto cache = KvCache::create(options_for(combination, false), 1, "auto");
      ASSERT_FALSE(cache);
      EXPECT_EQ(cache.error().code, ErrorCode::unsupported);
      EXPECT_NE(cache.error().message.find(refusal), std::string::npos) << cache.error().message;
      EXPECT_NE(cache.error().message.find(", not "), std::string::npos) << cache.error().message;
      ++refused;
      continue;
    }
    const std::vector<float> host = answers(options_for(combination, false));
    for (const float x : host) ASSERT_TRUE(std::isfinite(x));
    EXPECT_EQ(answers(options_for(combination, true)), host);
    if (!has(combination, "place.rows=host")) {
      CacheOptions kept = options_for(combination, false);
      kept.session.path = ::testing::TempDir() + "composition-" + std::to_string(::getpid());
      if (in_files) {
        EXPECT_EQ(answers(kept), host);
      } else {
        const auto cache = KvCache::create(kept, 1, "auto");
        ASSERT_FALSE(cache);
        EXPECT_EQ(cache.error().code, ErrorCode::unsupported);
        EXPECT_NE(cache.error().message.find("leave --session out"), std::string::npos);
      }
      std::filesystem::remove(kept.session.path);
    }
    ++works;
    for (const std::size_t side : {0, 1}) met.emplace(combination[side], combination[3]);
  }
  const std::size_t selectors = method_questions()[3].choices.size() - (check_faiss() ? 0 : 3);
  EXPECT_EQ(met.size(), 2 * list_codecs().size() * selectors);
  EXPECT_GT(works, 1u);
  EXPECT_GT(refused, 1u);
}

}  // namespace
}  // namespace thermocline
