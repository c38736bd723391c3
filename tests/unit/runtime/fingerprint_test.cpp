#include "runtime/model/fingerprint.h"

#include <gtest/gtest.h>

#include <functional>
#include <set>
#include <string>
#include <vector>

#include "tests/support/gguf_writer.h"

namespace thermocline {
namespace {

struct Content {
  std::string name = "Test", token = "a", tensor = "w", merges = "a b";
  std::uint32_t layers = 2;
  std::vector<std::uint64_t> dims = {64, 64};
  std::vector<float> values = std::vector<float>(4096, 0.5f);
};

struct Prints {
  std::string model, tokenizer;
};

Prints prints_of(const Content& content) {
  test::GgufWriter writer;
  const std::vector<std::string> tokens = {content.token, "b"};
  writer.add_string("general.architecture", "llama")
      .add_string("general.name", content.name)
      .add_u32("llama.block_count", content.layers)
      .add_strings("tokenizer.ggml.tokens", tokens)
      .add_string("tokenizer.ggml.pre", content.merges)
      .add_f32_tensor(content.tensor, content.dims, content.values);
  const auto bytes = writer.bytes();
  const auto file = GgufFile::parse(bytes, "test");
  EXPECT_TRUE(file) << file.error().message;
  return {model_fingerprint(*file), tokenizer_fingerprint(*file)};
}

TEST(Fingerprint, ModelAndTokenizerDifferByWhatEachIs) {
  const Prints plain = prints_of({});
  EXPECT_EQ(plain.model, prints_of({}).model);
  EXPECT_EQ(plain.tokenizer, prints_of({}).tokenizer);
  EXPECT_EQ(plain.model.substr(0, 6), "Test, ") << "people read it";

  std::set<std::string> models = {plain.model}, tokenizers = {plain.tokenizer};
  const auto change = [](const std::function<void(Content*)>& how) {
    Content content;
    how(&content);
    return prints_of(content);
  };
  for (const Prints& other :
       {change([](Content* c) { c->layers = 3; }), change([](Content* c) { c->tensor = "v"; }),
        change([](Content* c) { c->dims = {4096}; }),
        change([](Content* c) { c->values.front() = 0.25f; }),
        change([](Content* c) { c->values.back() = 0.25f; })}) {
    EXPECT_TRUE(models.insert(other.model).second) << other.model;
    EXPECT_EQ(other.tokenizer, plain.tokenizer);
  }
  for (const Prints& other : {change([](Content* c) { c->token = "x"; }),
                              change([](Content* c) { c->merges = "b a"; })}) {
    EXPECT_TRUE(tokenizers.insert(other.tokenizer).second) << other.tokenizer;
    EXPECT_EQ(other.model, plain.model);
  }
}

}  // namespace
}  // namespace thermocline
