// How near methods come to full attention on a real model, fed the same text: those by sketch, and
// those that hold the whole cache in fewer bytes.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "tests/support/models.h"
#include "tests/support/reader.h"
#include "tools/thermocline/fidelity.h"
#include "tools/thermocline/measured_run.h"

namespace thermocline {
namespace {

constexpr const char* kModel = "SmolLM2-135M-Instruct.Q4_1.gguf";
constexpr const char* kNormsQueries = "gemma-3-270m-q4_k_m.gguf";

// What a method's steps at the end of a passage are like, beside full attention's.
struct Fidelity {
  double divergence = 0, read = 0;  // mean KL(full || method) in nats; share of rows
  std::size_t near = 0;             // steps whose first token full attention rates within 0.1 nats
};

// A passage, read by full attention once up to its last steps, whose rows each method takes.
class Passage {
 public:
  Passage(const std::string& model, const std::string& name, std::size_t count)
      : count_(count),
        engine_(std::move(*Engine::open({.model_path = model, .threads = 2}))),
        tokens_(
            *engine_->encode(test::read_prompt(name), Engine::Special::parse, Engine::Start::add)),
        full_(open("exact", {})) {
    EXPECT_TRUE(full_.read(std::span(tokens_).first(before())));
    MeasuredRun ahead = std::move(*full_.fork());
    for (const int token : steps()) {
      EXPECT_TRUE(ahead.step(token));
      expected_.emplace_back(ahead.logits().begin(), ahead.logits().end());
    }
  }

  std::span<const int> steps() const { return std::span(tokens_).subspan(before(), count_); }

  Fidelity of(const std::string& method, const std::vector<std::string>& overrides) const {
    MeasuredRun run = open(method, overrides);
    EXPECT_TRUE(run.take(full_));
    const CacheReport start = run.cache().report();
    Fidelity fidelity;
    for (std::size_t i = 0; i < count_; ++i) {
      EXPECT_TRUE(run.step(steps()[i]));
      const StepFidelity step =
          compare_logits(expected_[i], run.logits(), tokens_[before() + i + 1]);
      fidelity.divergence += step.divergence / count_;
      fidelity.near += step.regret <= 0.1;
    }
    const CacheReport cost = difference(run.cache().report(), start);
    fidelity.read = static_cast<double>(cost.rows_read) / static_cast<double>(cost.rows_held);
    return fidelity;
  }

 private:
  MeasuredRun open(const std::string& method, const std::vector<std::string>& overrides) const {
    CacheOptions options;
    options.method = method;
    options.method_overrides = overrides;
    options.method_directory = THERMOCLINE_SOURCE_DIR "/configs/methods";
    options.max_positions = 8192;
    options.max_timelines = 2;
    return std::move(*MeasuredRun::open(*engine_, options, method, ProgressStyle::none));
  }
  std::size_t before() const { return tokens_.size() - 1 - count_; }

  std::size_t count_;  // of steps
  std::unique_ptr<Engine> engine_;
  std::vector<int> tokens_;
  MeasuredRun full_;
  std::vector<std::vector<float>> expected_;
};

class OnAPassage : public testing::TestWithParam<const char*> {};

// A method's mean KL at most, the share of rows that it reads at most, and in how many steps it may
// choose otherwise.
struct Near {
  const char* method;
  std::vector<std::string> overrides;
  double divergence, read;
  std::size_t missed;
};

void check(const Passage& passage, std::span<const Near> methods) {
  for (const Near& near : methods) {
    const Fidelity at = passage.of(near.method, near.overrides);
    std::printf("%s: KL %.5f, within 0.1 nats of the best %zu of %zu, rows read %.4f\n",
                near.method, at.divergence, at.near, passage.steps().size(), at.read);
    EXPECT_LE(at.divergence, near.divergence) << near.method;
    EXPECT_LE(at.read, near.read) << near.method;
    EXPECT_GE(at.near, passage.steps().size() - near.missed) << near.method;
  }
}

// Methods as they ship, and `sketch` at 5 % read. A list of keys and values whose entries are asked
// again and a copied passage are what goes wrong first when the wrong rows are read or the unread
// ones are not estimated (0.022 on 4K tokens copied); prose hides both. Measured on AVX-512 with
// BF16, of keys, copy, code and license: `sketch` at 2 % 0.0051, 0.0070, 0.0062, 0.0032; on the
// copy alone `sketch2` 0.0121, `ladder2` 0.0045, `ladder4` 0.0007.
TEST_P(OnAPassage, MethodsStayNearFullAttention) {
  const auto path = test::find_model(kModel);
  if (!path) GTEST_SKIP() << test::model_missing(kModel);
  const Passage passage(*path, GetParam(), 128);
  const Near methods[] = {{"sketch", {}, 0.008, 0.0201, 5},
                          {"sketch", {"select.share=0.05"}, 0.003, 0.0501, 2},
                          {"sketch2", {}, 0.024, 0.0201, 5},
                          {"ladder2", {}, 0.0068, 0.0135, 5},
                          {"ladder4", {}, 0.0015, 0.0105, 2}};
  check(passage, methods);
}

std::string name_of(const testing::TestParamInfo<const char*>& info) { return info.param; }
std::vector<const char*> passages() {
  std::vector<const char*> passages = {"copy_7k"};
  if (test::every_prompt()) passages.insert(passages.end(), {"keys_7k", "code_7k", "license_7k"});
  return passages;
}
INSTANTIATE_TEST_SUITE_P(Fidelity, OnAPassage, testing::ValuesIn(passages()), name_of);

// Of a model that norms its queries, whose channels weigh differently in scores, keys are balanced
// before they are coded: one bit a channel shows best what that is worth. Layers with windows read
// all that they see. Measured on AVX-512 with BF16, in brackets on AVX2: 0.0015 (0.0012), 0.0026
// (0.0027) and 0.0014 (0.0014); were keys not balanced the last two 0.0134 (0.0083) and 0.0028
// (0.0027).
TEST(Fidelity, MethodsStayNearFullAttentionOfAModelThatNormsQueries) {
  const auto path = test::find_model(kNormsQueries);
  if (!path) GTEST_SKIP() << test::model_missing(kNormsQueries);
  const Passage passage(*path, "keys_4k", 128);
  const Near methods[] = {{"sketch", {}, 0.0022, 0.44, 3},
                          {"sketch", {"select.bits=1"}, 0.005, 0.44, 4},
                          {"ladder2", {}, 0.0020, 0.44, 3}};
  check(passage, methods);
}

// What a cache gives back of the rows that were read, in some of SmolLM2's layers.
struct ReadBack {
  std::vector<float> keys, values;

  explicit ReadBack(MeasuredRun& run) {
    constexpr std::uint32_t kLayers[] = {0, 9, 18, 29}, kWidth = 3 * 64;
    const std::size_t rows = run.timeline().length(), size = rows * kWidth;
    for (const std::uint32_t layer : kLayers) {
      keys.resize(keys.size() + size);
      values.resize(keys.size());
      const Status read = run.cache().read(run.timeline(), LayerId{layer}, 0,
                                           {keys.data() + keys.size() - size, rows, kWidth},
                                           {values.data() + values.size() - size, rows, kWidth});
      EXPECT_TRUE(read) << (read ? "" : read.error().message);
    }
  }
};

// The share of the squares that is lost.
double lost(const std::vector<float>& was, const std::vector<float>& is) {
  double missed = 0, all = 0;
  for (std::size_t i = 0; i < was.size(); ++i) {
    missed += std::pow(double{is[i]} - double{was[i]}, 2);
    all += std::pow(double{was[i]}, 2);
  }
  return missed / all;
}

// A method that holds the cache in fewer bytes as its file says, and at most its mean KL and what
// of the squares of keys and of values is not given back: those would be more if rows were coded or
// read a tenth too large, which KL over few steps does not tell of all of them. Bits that are
// allotted by what a prefill's queries ask lose more of the squares of keys than bits that go by
// those squares, which stay within 0.0071 and 0.0020 with 3 and 4 of them.
struct Coded {
  const char* method;
  double divergence, keys, values;
};
constexpr Coded kCoded[] = {{"kivi2", 0.28, 0.037, 0.168},      {"kivi4", 0.02, 0.00147, 0.0067},
                            {"allot3", 0.031, 0.0105, 0.037},   {"allot4", 0.003, 0.0031, 0.0102},
                            {"kvquant", 0.02, 0.00165, 0.0056}, {"rotatekv4", 0.01, 0.0031, 0.0067},
                            {"xkv", 0.12, 0.0071, 0},           {"shadowkv", 0.35, 0.021, 0}};

TEST(Fidelity, CodecsStayAsNearFullAttentionAsTheyWere) {
  constexpr std::size_t kFirst = 1000, kAgain = 400, kLast = 48;
  const auto path = test::find_model(kModel);
  if (!path) GTEST_SKIP() << test::model_missing(kModel);
  const auto engine = Engine::open({.model_path = *path, .threads = 2});
  ASSERT_TRUE(engine) << engine.error().message;
  CacheOptions options;
  options.method_directory = THERMOCLINE_SOURCE_DIR "/configs/methods";
  options.max_positions = kFirst + kAgain;
  options.max_timelines = 2;
  auto tokens =
      (*engine)->encode(test::read_prompt("code_7k"), Engine::Special::parse, Engine::Start::add);
  ASSERT_TRUE(tokens);
  std::copy_n(tokens->begin(), kAgain, tokens->begin() + kFirst);
  const std::span<const int> text(tokens->data(), kFirst + kAgain);
  const std::span<const int> last = text.last(kLast + 1);

  auto full = MeasuredRun::open(**engine, options, "full", ProgressStyle::none);
  ASSERT_TRUE(full) << full.error().message;
  ASSERT_TRUE(full->read(text.first(text.size() - last.size())));
  const ReadBack raw(*full);
  auto ahead = full->fork();
  ASSERT_TRUE(ahead);
  std::vector<std::vector<float>> expected;
  for (const int token : last.first(kLast)) {
    ASSERT_TRUE(ahead->step(token));
    expected.emplace_back(ahead->logits().begin(), ahead->logits().end());
  }
  for (const Coded& coded : kCoded) {
    options.method = coded.method;
    auto run = MeasuredRun::open(**engine, options, coded.method, ProgressStyle::none);
    ASSERT_TRUE(run) << run.error().message;
    const auto watched = watched_by(coded.method, options.method_directory, {});
    ASSERT_TRUE(watched) << watched.error().message;
    if (watched->empty()) {
      ASSERT_TRUE(run->take(*full));
    } else {  // by a prefill's queries, which only who reads the text sees
      ASSERT_TRUE(run->read(text.first(text.size() - last.size())));
    }
    const ReadBack rows(*run);
    const double keys = lost(raw.keys, rows.keys), values = lost(raw.values, rows.values);
    double divergence = 0;
    for (std::size_t i = 0; i < kLast; ++i) {
      ASSERT_TRUE(run->step(last[i]));
      divergence += compare_logits(expected[i], run->logits(), last[i + 1]).divergence / kLast;
    }
    std::printf("%s: KL %.5f, lost of keys %.6f, of values %.6f\n", coded.method, divergence, keys,
                values);
    EXPECT_LE(divergence, coded.divergence) << coded.method;
    EXPECT_LE(keys, coded.keys) << coded.method;
    EXPECT_LE(values, coded.values) << coded.method;
  }
}

}  // namespace
}  // namespace thermocline
