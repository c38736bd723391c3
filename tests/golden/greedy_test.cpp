// Our greedy choices, and how surprised we are by a text, beside llama.cpp's in float32 (README.md
// says how they were made). The continuation of every prompt is fed as recorded and checked at
// every step, by prefill and by decoding: one close step does not hide those after it.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "tests/support/float_table.h"
#include "tests/support/models.h"
#include "tests/support/reader.h"

namespace thermocline {
namespace {

using nlohmann::json;

struct Golden {
  const char* name;                      // of greedy_NAME.json
  const char* file;                      // of the model
  std::vector<const char*> few, others;  // long prompts: of every run, and of all
};

const Golden kSmolLm2{
    "smollm2",
    "SmolLM2-135M-Instruct.Q4_1.gguf",
    {"prose_2k", "license_4k", "code_heap_4k", "keys_4k", "languages_4k", "copy_7k"},
    {"manual_4k", "code_shell_4k", "copy_4k", "log_4k", "table_4k", "chat_4k", "license_7k",
     "code_7k", "keys_7k"}};
const Golden kGemma3{
    "gemma3", "gemma-3-270m-q4_k_m.gguf", {"keys_4k", "code_heap_4k"}, {"prose_2k", "license_4k"}};

std::vector<const char*> all_long_prompts(const Golden& golden) {
  std::vector<const char*> all = golden.few;
  all.insert(all.end(), golden.others.begin(), golden.others.end());
  return all;
}
std::vector<const char*> long_prompts(const Golden& golden) {
  return test::every_prompt() ? all_long_prompts(golden) : golden.few;
}

// A step whose margin is smaller than the error of our logits can go either way: the 99.9th
// percentile that logit_error.json states for this model and for how the prefill rounds.
struct Errors {
  double prefill, decode;

  Errors(const Golden& golden, const std::string& rounding) {
    const json ours = test::read_expectations("logit_error.json")
                          .at("thermocline")
                          .at("models")
                          .at(golden.file)
                          .at(rounding);
    prefill = ours.at("prefill").at("logit").at("p99.9");
    decode = ours.at("decode").at("logit").at("p99.9");
  }
};

json recorded(const Golden& golden) {
  return test::read_expectations(std::string("greedy_") + golden.name + ".json").at("prompts");
}

// How the recorded steps went.
struct Tally {
  std::size_t prompts = 0, steps = 0, close = 0;

  void print(const char* what) const {
    std::printf("%s: %zu prompts, %zu steps equal, %zu too close to call\n", what, prompts, steps,
                close);
  }
};

// Compares the choice after each position from `first` on with the recorded one.
test::Reader::OnLogits compare(const json& entry, std::size_t first, double error,
                               const std::string& where, Tally* tally) {
  const auto greedy = entry.at("greedy").get<std::vector<std::size_t>>();
  const auto margin = entry.at("margin").get<std::vector<double>>();
  return [=](std::size_t position, std::span<const float> logits) {
    const std::size_t i = position - first;
    if (margin.at(i) < error) {
      ++tally->close;
      return;
    }
    EXPECT_EQ(test::best_of(logits), greedy.at(i))
        << where << ", step " << i << ", margin " << margin[i];
    ++tally->steps;
  };
}

// The prompt's last token and the continuation without its own last one: what the recorded choices
// came after.
void check_continuation(test::Reader* reader, const std::string& name, const json& entry,
                        int last_of_prompt, std::size_t first, const Errors& errors, Tally* tally) {
  std::vector<int> fed{last_of_prompt};
  const auto greedy = entry.at("greedy").get<std::vector<int>>();
  fed.insert(fed.end(), greedy.begin(), greedy.end() - 1);
  reader->mark();
  reader->prefill(fed, compare(entry, first, errors.prefill, name + " by prefill", tally));
  reader->rewind();
  reader->decode(fed, compare(entry, first, errors.decode, name + " by decoding", tally));
  ++tally->prompts;
}

void check_short_prompts(const Golden& golden, const std::string& isa,
                         const std::string& rounding) {
  const auto path = test::find_model(golden.file);
  if (!path) GTEST_SKIP() << test::model_missing(golden.file);
  test::Reader reader(*path, 512, "exact", {}, isa);
  const Errors errors(golden, rounding);
  const json prompts = recorded(golden);
  Tally tally;
  for (const auto& [name, entry] : prompts.items()) {
    if (!entry.contains("tokens")) continue;
    const auto tokens = entry.at("tokens").get<std::vector<int>>();
    EXPECT_EQ(reader.tokens(test::read_prompt(name)), tokens) << name;
    reader.start();
    reader.prefill(std::span(tokens).first(tokens.size() - 1));
    check_continuation(&reader, name, entry, tokens.back(), tokens.size() - 1, errors, &tally);
  }
  EXPECT_GT(tally.steps, (rounding == "f32" ? 10 : 4) * tally.close);
  tally.print(golden.file);
}

TEST(Greedy, SmolLm2ShortPrompts) {
  check_short_prompts(kSmolLm2, "auto", test::prefill_rounding());
}
TEST(Greedy, Gemma3ShortPrompts) { check_short_prompts(kGemma3, "auto", test::prefill_rounding()); }
TEST(Greedy, SmolLm2ShortPromptsInFloats) {
  check_short_prompts(kSmolLm2, test::float_isa(), "f32");
}
TEST(Greedy, Gemma3ShortPromptsInFloats) { check_short_prompts(kGemma3, test::float_isa(), "f32"); }

// Each is a test of its own, so that two run at once and a failure has the prompt's name.
class LongPrompt : public testing::TestWithParam<const char*> {
 protected:
  void check(const Golden& golden) {
    const auto path = test::find_model(golden.file);
    if (!path) GTEST_SKIP() << test::model_missing(golden.file);
    const std::string name = GetParam();
    const json entry = recorded(golden).at(name);
    test::Reader reader(*path, 8192);
    const std::vector<int> tokens = reader.tokens(test::read_prompt(name));
    ASSERT_EQ(test::hash_of(tokens), entry.at("tokens_xxh128")) << "other tokens";
    const json nll = test::read_expectations("nll.json").at("models");
    const bool surprising =
        nll.contains(golden.file) && nll.at(golden.file).at("prompts").contains(name);
    double surprise = 0;
    const auto add = [&](std::size_t position, std::span<const float> logits) {
      surprise += test::surprise_of(logits, tokens[position + 1]);
    };
    reader.prefill(std::span(tokens).first(tokens.size() - 1),
                   surprising ? add : test::Reader::OnLogits());
    if (surprising) {
      const double expected = nll.at(golden.file).at("prompts").at(name).at("mean_nll");
      const double ours = surprise / static_cast<double>(tokens.size() - 1);
      EXPECT_NEAR(ours, expected, expected * kNllShare);
      std::printf("%s: mean NLL %.6f, reference %.6f\n", name.c_str(), ours, expected);
    }
    Tally tally;
    check_continuation(&reader, name, entry, tokens.back(), tokens.size() - 1,
                       Errors(golden, test::prefill_rounding()), &tally);
    EXPECT_GT(tally.steps, 0u);
    tally.print(name.c_str());
  }

  static constexpr double kNllShare = 0.005;
};

std::string name_of(const testing::TestParamInfo<const char*>& info) { return info.param; }

class SmolLm2 : public LongPrompt {};
TEST_P(SmolLm2, LongPrompt) { check(kSmolLm2); }
INSTANTIATE_TEST_SUITE_P(Greedy, SmolLm2, testing::ValuesIn(long_prompts(kSmolLm2)), name_of);

class Gemma3 : public LongPrompt {};
TEST_P(Gemma3, LongPrompt) { check(kGemma3); }
INSTANTIATE_TEST_SUITE_P(Greedy, Gemma3, testing::ValuesIn(long_prompts(kGemma3)), name_of);

TEST(Greedy, EveryRecordedLongPromptIsATest) {
  for (const Golden* golden : {&kSmolLm2, &kGemma3}) {
    const auto all = all_long_prompts(*golden);
    std::set<std::string> names(all.begin(), all.end()), found;
    const json prompts = recorded(*golden);
    for (const auto& [name, entry] : prompts.items())
      if (!entry.contains("tokens")) found.insert(name);
    EXPECT_EQ(names, found) << golden->name;
  }
}

// The same text, its last tokens one after the other.
TEST(Nll, SmolLm2ByDecoding) {
  const auto path = test::find_model(kSmolLm2.file);
  if (!path) GTEST_SKIP() << test::model_missing(kSmolLm2.file);
  const std::string name = "manual_4k";
  const double expected = test::read_expectations("nll.json")
                              .at("models")
                              .at(kSmolLm2.file)
                              .at("prompts")
                              .at(name)
                              .at("mean_nll");
  test::Reader reader(*path, 8192);
  const std::vector<int> tokens = reader.tokens(test::read_prompt(name));
  constexpr std::size_t kDecoded = 512;
  double surprise = 0;
  const auto add = [&](std::size_t position, std::span<const float> logits) {
    surprise += test::surprise_of(logits, tokens[position + 1]);
  };
  const auto asked = std::span(tokens).first(tokens.size() - 1);
  reader.prefill(asked.first(asked.size() - kDecoded), add);
  reader.decode(asked.last(kDecoded), add);
  const double ours = surprise / static_cast<double>(tokens.size() - 1);
  EXPECT_NEAR(ours, expected, expected * 0.000625);  // an eighth of it is of decoding
  std::printf("%s: mean NLL %.6f, reference %.6f\n", name.c_str(), ours, expected);
}

}  // namespace
}  // namespace thermocline
