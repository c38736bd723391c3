// How near the recommended method comes to full attention on a real model, both fed the same text.
#include <gtest/gtest.h>

#include <cstdio>
#include <span>
#include <string>
#include <vector>

#include "tests/support/models.h"
#include "tests/support/reader.h"
#include "tools/thermocline/fidelity.h"

namespace thermocline {
namespace {

constexpr const char* kModel = "SmolLM2-135M-Instruct.Q4_1.gguf";
constexpr std::size_t kSteps = 64;

// A copied passage: what goes wrong first when the wrong rows are read, or the unread ones are not
// estimated. Prose hides both.
TEST(Fidelity, SketchOnACopiedPassage) {
  const auto path = test::find_model(kModel);
  if (!path) GTEST_SKIP() << test::model_missing(kModel);
  test::Reader full(*path, 4096), sketch(*path, 4096, "sketch");
  const std::vector<int> tokens = full.tokens(test::read_prompt("copy_4k"));
  const std::size_t fed = tokens.size() - 1, before = fed - kSteps;
  std::vector<std::vector<float>> expected;
  full.prefill(std::span(tokens).first(before));
  full.decode(std::span(tokens).subspan(before, kSteps),
              [&](std::size_t, std::span<const float> logits) {
                expected.emplace_back(logits.begin(), logits.end());
              });
  sketch.prefill(std::span(tokens).first(before));
  const CacheReport start = sketch.report();
  double divergence = 0;
  std::size_t near = 0;
  sketch.decode(std::span(tokens).subspan(before, kSteps),
                [&](std::size_t position, std::span<const float> logits) {
                  const StepFidelity step =
                      compare_logits(expected[position - before], logits, tokens[position + 1]);
                  divergence += step.divergence / kSteps;
                  near += step.regret <= 0.1;
                });
  const CacheReport end = sketch.report();
  const double read = static_cast<double>(end.rows_attended - start.rows_attended) /
                      static_cast<double>(end.rows_held - start.rows_held);
  std::printf("KL %.4f, within 0.1 nats of the best %zu of %zu, rows read %.4f\n", divergence, near,
              kSteps, read);
  EXPECT_LT(divergence, 0.01);  // measured: 0.004; without the estimate: 0.022
  EXPECT_GE(near, kSteps - 3);
  EXPECT_LT(read, 0.06);
}

}  // namespace
}  // namespace thermocline
