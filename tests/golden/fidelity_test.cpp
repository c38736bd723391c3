// How near the recommended method comes to full attention on a real model, both fed the same text.
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <span>
#include <string>
#include <vector>

#include "tests/support/models.h"
#include "tests/support/reader.h"
#include "tools/thermocline/fidelity.h"

namespace thermocline {
namespace {

constexpr const char* kModel = "SmolLM2-135M-Instruct.Q4_1.gguf";
constexpr std::size_t kSteps = 128;

// What a method's steps at the end of a passage are like, beside full attention's.
struct Fidelity {
  double divergence = 0, read = 0;  // mean KL(full || method) in nats; share of rows
  std::size_t near = 0;             // steps whose first token full attention rates within 0.1 nats
};

// A passage of 7K tokens, read by full attention once.
class Passage {
 public:
  Passage(const std::string& model, const std::string& name) : model_(model) {
    test::Reader full(model, kPositions);
    tokens_ = full.tokens(test::read_prompt(name));
    full.prefill(std::span(tokens_).first(before()));
    full.decode(steps(), [&](std::size_t, std::span<const float> logits) {
      expected_.emplace_back(logits.begin(), logits.end());
    });
  }

  Fidelity of(const std::string& method, const std::vector<std::string>& overrides) const {
    test::Reader reader(model_, kPositions, method, overrides);
    reader.prefill(std::span(tokens_).first(before()));
    const CacheReport start = reader.report();
    Fidelity fidelity;
    reader.decode(steps(), [&](std::size_t position, std::span<const float> logits) {
      const StepFidelity step =
          compare_logits(expected_[position - before()], logits, tokens_[position + 1]);
      fidelity.divergence += step.divergence / kSteps;
      fidelity.near += step.regret <= 0.1;
    });
    const CacheReport end = reader.report();
    fidelity.read = static_cast<double>(end.rows_read - start.rows_read) /
                    static_cast<double>(end.rows_held - start.rows_held);
    return fidelity;
  }

 private:
  static constexpr std::uint32_t kPositions = 8192;
  std::size_t before() const { return tokens_.size() - 1 - kSteps; }
  std::span<const int> steps() const { return std::span(tokens_).subspan(before(), kSteps); }

  std::string model_;
  std::vector<int> tokens_;
  std::vector<std::vector<float>> expected_;
};

class OnAPassage : public testing::TestWithParam<const char*> {};

// The method as it ships, and at 5 % read. A list of keys and values whose entries are asked again
// and a copied passage are what goes wrong first when the wrong rows are read or the unread ones
// are not estimated (0.022 on 4K tokens copied); prose hides both. Measured on AVX-512 with BF16,
// in this order: 0.0048, 0.0071, 0.0064, 0.0032 at 2 %.
TEST_P(OnAPassage, SketchStaysNearFullAttention) {
  const auto path = test::find_model(kModel);
  if (!path) GTEST_SKIP() << test::model_missing(kModel);
  const Passage passage(*path, GetParam());
  const Fidelity two = passage.of("sketch", {}), five = passage.of("sketch", {"select.share=0.05"});
  for (const Fidelity& at : {two, five})
    std::printf("KL %.4f, within 0.1 nats of the best %zu of %zu, rows read %.4f\n", at.divergence,
                at.near, kSteps, at.read);
  EXPECT_LE(two.divergence, 0.008);
  EXPECT_LE(two.read, 0.0201);
  EXPECT_GE(two.near, kSteps - 5);
  EXPECT_LE(five.divergence, 0.003);
  EXPECT_LE(five.read, 0.0501);
  EXPECT_GE(five.near, kSteps - 2);
}

std::string name_of(const testing::TestParamInfo<const char*>& info) { return info.param; }
// Those that go wrong first in every run; all of them where every prompt is asked for.
std::vector<const char*> passages() {
  std::vector<const char*> passages = {"keys_7k", "copy_7k"};
  if (std::getenv("THERMOCLINE_EVERY_PROMPT"))
    passages.insert(passages.end(), {"code_7k", "license_7k"});
  return passages;
}
INSTANTIATE_TEST_SUITE_P(Fidelity, OnAPassage, testing::ValuesIn(passages()), name_of);

}  // namespace
}  // namespace thermocline
