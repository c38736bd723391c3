#include "runtime/model/model.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <numbers>
#include <set>

#include "runtime/model/gguf.h"
#include "runtime/model/weights.h"
#include "tests/support/tiny_model.h"

namespace thermocline {
namespace {

using test::Bytes;
using test::TinyModel;

EngineOptions scaled(RopeScaling scaling, float scale) {
  EngineOptions options;
  options.rope_scaling = scaling;
  options.rope_freq_scale = scale;
  return options;
}

Result<ModelSpec> read_spec(const TinyModel& model, const EngineOptions& options = {}) {
  const Bytes bytes = model.bytes();
  TL_TRY_ASSIGN(const GgufFile file, GgufFile::parse(bytes, "tiny.gguf"));
  return ModelSpec::read(file, options);
}

// As an engine reads a model: the metadata, then the weights.
Status read_all(const TinyModel& model) {
  const Bytes bytes = model.bytes();
  TL_TRY_ASSIGN(const GgufFile file, GgufFile::parse(bytes, "tiny.gguf"));
  TL_TRY_ASSIGN(const ModelSpec spec, ModelSpec::read(file, {}));
  TL_TRY(Weights::read(file, spec));
  return {};
}

TEST(Model, EveryArchitectureOfTheTableIsRead) {
  for (const Architecture& architecture : architectures()) {
    const TinyModel tiny = TinyModel::make(std::string(architecture.name));
    const auto spec = read_spec(tiny);
    ASSERT_TRUE(spec) << spec.error().message;
    EXPECT_EQ(spec->architecture, &architecture);
    EXPECT_EQ(spec->width, 64u);
    EXPECT_EQ(spec->feed_forward, 96u);
    EXPECT_EQ(spec->context, 256u);
    EXPECT_EQ(spec->layers[0].q_heads, 4u);
    EXPECT_EQ(spec->layers[0].kv_heads, 2u);
    EXPECT_EQ(spec->layers[0].key_dim, 16u);
    EXPECT_FLOAT_EQ(spec->layers[0].scale, 0.25f);
    const Status whole = read_all(tiny);
    EXPECT_TRUE(whole) << whole.error().message;
  }
}

TEST(Model, WeightsAreCountedAndTied) {
  TinyModel tiny = TinyModel::make("llama");
  const Bytes bytes = tiny.bytes();
  const auto file = GgufFile::parse(bytes, "tiny.gguf");
  const auto spec = ModelSpec::read(*file, {});
  const auto tied = Weights::read(*file, *spec);
  ASSERT_TRUE(tied) << tied.error().message;
  EXPECT_EQ(tied->output.data, tied->embedding.data);
  EXPECT_EQ(tied->vocabulary(), 40u);
  const std::uint64_t layer = 64 * (64 + 32 + 32 + 64 + 3 * 96) + 2 * 64;
  EXPECT_EQ(tied->parameters, 40u * 64 + 64 + 2 * layer);
  EXPECT_EQ(tied->bytes, 4 * tied->parameters);
  EXPECT_EQ(tied->types, "F32 20");

  tiny.tensors["output.weight"] = {WeightType::f16, {64, 40}};
  const Bytes untied_bytes = tiny.bytes();
  const auto untied_file = GgufFile::parse(untied_bytes, "tiny.gguf");
  const auto untied = Weights::read(*untied_file, *spec);
  ASSERT_TRUE(untied) << untied.error().message;
  EXPECT_EQ(untied->output.type, WeightType::f16);
}

TEST(Model, GemmaAlternatesItsWindows) {
  TinyModel tiny = TinyModel::make("gemma3");
  tiny.metadata["gemma3.rope.freq_base"] = 1e6f;
  tiny.metadata["gemma3.rope.scaling.type"] = std::string("linear");
  tiny.metadata["gemma3.rope.scaling.factor"] = 8.0f;
  const auto spec = read_spec(tiny);
  ASSERT_TRUE(spec) << spec.error().message;
  EXPECT_FLOAT_EQ(spec->embedding_scale, 8.0f);
  for (std::size_t l = 0; l < spec->layers.size(); ++l) {
    const LayerSpec& layer = spec->layers[l];
    EXPECT_EQ(layer.window, l == 5 ? 0u : 8u) << l;
    const double base = l == 5 ? 1e6 : 1e4, squeeze = l == 5 ? 8.0 : 1.0;
    for (std::size_t i = 0; i < 8; ++i)
      EXPECT_FLOAT_EQ(layer.rope.inverse_frequency[i],
                      static_cast<float>(std::pow(base, -2.0 * double(i) / 16) / squeeze));
  }
  EXPECT_EQ(spec->kv_bytes_per_token(), 2u * (16 + 16) * 2);  // of the one global layer

  tiny.metadata.erase("gemma3.attention.sliding_window");
  EXPECT_EQ(read_spec(tiny)->layers[0].window, 0u);
}

TEST(Model, Gemma27BScalesByItsWidth) {
  TinyModel tiny = TinyModel::make("gemma3");
  tiny.metadata["gemma3.block_count"] = 62u;
  tiny.metadata["gemma3.attention.key_length"] = 32u;
  EXPECT_FLOAT_EQ(read_spec(tiny)->layers[0].scale, 1.0f / std::sqrt(64.0f / 4));
}

TEST(Model, Llama3DividesItsFrequencies) {
  TinyModel tiny = TinyModel::make("llama");
  tiny.metadata["llama.rope.freq_base"] = 5e5f;
  tiny.tensors["rope_freqs.weight"] = {WeightType::f32, {8}};
  Bytes bytes = tiny.bytes();
  auto file = GgufFile::parse(bytes, "tiny.gguf");
  const TensorInfo tensor = *file->tensor("rope_freqs.weight");
  for (int i = 0; i < 8; ++i) {
    const float divisor = static_cast<float>(1 + i);
    std::memcpy(bytes.data() + tensor.offset + i * 4, &divisor, 4);
  }
  const auto spec = ModelSpec::read(*file, {});
  ASSERT_TRUE(spec) << spec.error().message;
  EXPECT_EQ(spec->layers[0].rope.pairs, RopePairs::neighbours);
  for (int i = 0; i < 8; ++i)
    EXPECT_FLOAT_EQ(spec->layers[0].rope.inverse_frequency[static_cast<std::size_t>(i)],
                    static_cast<float>(std::pow(5e5, -i / 8.0) / (1 + i)));
}

TEST(Model, UsersScaleTheContext) {
  const TinyModel tiny = TinyModel::make("llama");
  const auto linear = read_spec(tiny, scaled(RopeScaling::linear, 0.25f));
  EXPECT_EQ(linear->context, 1024u);
  EXPECT_FLOAT_EQ(linear->layers[0].rope.inverse_frequency[0], 0.25f);
  // The scale alone means linear, as in llama.cpp.
  EXPECT_FLOAT_EQ(
      read_spec(tiny, scaled(RopeScaling::from_model, 0.5f))->layers[0].rope.inverse_frequency[0],
      0.5f);
  EngineOptions base;
  base.rope_freq_base = 1e6f;
  EXPECT_FLOAT_EQ(read_spec(tiny, base)->layers[0].rope.inverse_frequency[4], 1e-3f);

  TinyModel stretched = tiny;  // by the file; "none" takes it back
  stretched.metadata["llama.rope.scaling.type"] = std::string("linear");
  stretched.metadata["llama.rope.scaling.factor"] = 4.0f;
  stretched.metadata["llama.rope.scaling.original_context_length"] = 64u;
  EXPECT_EQ(read_spec(stretched)->context, 256u);
  EXPECT_FLOAT_EQ(read_spec(stretched)->layers[0].rope.inverse_frequency[0], 0.25f);
  const auto none = read_spec(stretched, scaled(RopeScaling::none, 0));
  EXPECT_EQ(none->context, 64u);
  EXPECT_FLOAT_EQ(none->layers[0].rope.inverse_frequency[0], 1.0f);

  for (const float wrong : {-1.0f, 2.0f, NAN, INFINITY})
    EXPECT_FALSE(read_spec(tiny, scaled(RopeScaling::linear, wrong))) << wrong;
  // 2^30 positions are the most.
  constexpr float kLeast = 256.0f / (1u << 30);
  EXPECT_EQ(read_spec(tiny, scaled(RopeScaling::linear, kLeast))->context, 1u << 30);
  for (const RopeScaling kind : {RopeScaling::from_model, RopeScaling::linear, RopeScaling::yarn})
    for (const float less : {std::nextafter(kLeast, 0.0f), 1e-38f, 1e-45f}) {
      const auto beyond = read_spec(tiny, scaled(kind, less));
      ASSERT_FALSE(beyond) << less;
      EXPECT_EQ(beyond.error().code, ErrorCode::invalid_argument);
      for (const char* part : {"--rope-freq-scale", "1073741824", "2.38419e-07 and 1"})
        EXPECT_NE(beyond.error().message.find(part), std::string::npos) << beyond.error().message;
    }
  EXPECT_FALSE(read_spec(tiny, scaled(RopeScaling::yarn, 0)));
  EXPECT_FALSE(read_spec(tiny, scaled(RopeScaling::none, 0.5f)));
}

// Against the formula of the YaRN paper, worked out by hand for 8 pairs over 2048 positions: pairs
// 0 and 1 turn more than 32 times there and keep their frequency, the last ones are squeezed.
TEST(Model, YarnSqueezesLowFrequenciesOnly) {
  TinyModel tiny = TinyModel::make("qwen2");
  tiny.metadata["qwen2.context_length"] = 2048u;
  tiny.metadata["qwen2.attention.key_length"] = 16u;
  const auto yarn = read_spec(tiny, scaled(RopeScaling::yarn, 0.25f));
  ASSERT_TRUE(yarn) << yarn.error().message;
  EXPECT_EQ(yarn->context, 8192u);
  const RopeSpec& rope = yarn->layers[0].rope;
  EXPECT_FLOAT_EQ(rope.magnitude, static_cast<float>(1.0 + 0.1 * std::log(4.0)));
  const auto pair_turning = [](double turns) {
    return 16 * std::log(2048 / (turns * 2 * std::numbers::pi)) / (2 * std::log(10000.0));
  };
  const double low = std::floor(pair_turning(32)), high = std::ceil(pair_turning(1));
  ASSERT_EQ(low, 2.0);
  ASSERT_EQ(high, 6.0);
  for (std::size_t i = 0; i < 8; ++i) {
    const double plain = std::pow(10000.0, -double(i) / 8);
    const double ramp = i <= 2 ? 0.0 : i >= 6 ? 1.0 : (double(i) - low) / (high - low);
    EXPECT_FLOAT_EQ(rope.inverse_frequency[i], static_cast<float>(plain * (ramp * 0.25 + 1 - ramp)))
        << i;
  }
}

struct Spoiled {
  const char* what;
  ErrorCode code;
  const char* says;  // a part of the message
  std::function<void(TinyModel&)> spoil;
};

TEST(Model, HostileFilesAreRefusedInOneLine) {
  const auto set = [](std::string key, TinyModel::Value value) {
    return [=](TinyModel& m) { m.metadata[key] = value; };
  };
  const auto erase = [](std::string key) { return [=](TinyModel& m) { m.metadata.erase(key); }; };
  const auto shape = [](std::string name, std::vector<std::uint64_t> dims) {
    return [=](TinyModel& m) { m.tensors[name] = {WeightType::f32, dims}; };
  };
  const auto drop = [](std::string name) { return [=](TinyModel& m) { m.tensors.erase(name); }; };
  using enum ErrorCode;
  const std::string a = "llama.";
  const Spoiled cases[] = {
      {"no architecture", not_found, "general.architecture", erase("general.architecture")},
      {"unknown architecture", unsupported, "supported are llama",
       set("general.architecture", std::string("mamba"))},
      {"nameless architecture", unsupported, "supported are llama",
       set("general.architecture", std::string())},
      {"architecture is a number", corrupt, "general.architecture",
       set("general.architecture", 7u)},
      {"no width", not_found, "embedding_length", erase(a + "embedding_length")},
      {"width 0", corrupt, "embedding_length", set(a + "embedding_length", 0u)},
      {"width overflows", corrupt, "embedding_length",
       set(a + "embedding_length", std::uint64_t{1} << 63)},
      {"width is no multiple of 32", unsupported, "embedding_length",
       set(a + "embedding_length", 72u)},
      {"width contradicts tensors", corrupt, "shape", set(a + "embedding_length", 128u)},
      {"no layers", corrupt, "block_count", set(a + "block_count", 0u)},
      {"layers without weights", not_found, "blk.2.", set(a + "block_count", 3u)},
      {"too many layers", corrupt, "block_count", set(a + "block_count", 1u << 30)},
      {"heads 0", corrupt, "head_count", set(a + "attention.head_count", 0u)},
      {"more heads than width", corrupt, "key_length", set(a + "attention.head_count", 128u)},
      {"heads overflow", corrupt, "head_count",
       set(a + "attention.head_count", std::uint64_t{1} << 32)},
      {"kv heads do not divide", corrupt, "multiple of", set(a + "attention.head_count_kv", 3u)},
      {"kv heads 0", corrupt, "head_count_kv", set(a + "attention.head_count_kv", 0u)},
      {"more kv heads than heads", corrupt, "multiple of", set(a + "attention.head_count_kv", 8u)},
      {"heads too large", corrupt, "key_length", set(a + "attention.key_length", 1024u)},
      {"key size not of 16", unsupported, "key_length", set(a + "attention.key_length", 24u)},
      {"key size wrong", corrupt, "attn_q.weight", set(a + "attention.key_length", 32u)},
      {"value size huge", corrupt, "value_length", set(a + "attention.value_length", 1u << 31)},
      {"value size not of 16", unsupported, "value_length", set(a + "attention.value_length", 8u)},
      {"value size wrong", corrupt, "attn_v.weight", set(a + "attention.value_length", 32u)},
      {"feed forward 0", corrupt, "feed_forward_length", set(a + "feed_forward_length", 0u)},
      {"feed forward wrong", corrupt, "ffn_gate.weight", set(a + "feed_forward_length", 128u)},
      {"no epsilon", not_found, "rms_epsilon", erase(a + "attention.layer_norm_rms_epsilon")},
      {"epsilon NaN", corrupt, "rms_epsilon", set(a + "attention.layer_norm_rms_epsilon", NAN)},
      {"epsilon negative", corrupt, "rms_epsilon",
       set(a + "attention.layer_norm_rms_epsilon", -1.0f)},
      {"epsilon is text", corrupt, "rms_epsilon",
       set(a + "attention.layer_norm_rms_epsilon", std::string("1e-5"))},
      {"scale infinite", corrupt, "attention.scale", set(a + "attention.scale", INFINITY)},
      {"context 0", corrupt, "context_length", set(a + "context_length", 0u)},
      {"context beyond 31 bits", corrupt, "context_length", set(a + "context_length", 0x80000000u)},
      {"rope odd", corrupt, "dimension_count", set(a + "rope.dimension_count", 7u)},
      {"rope 0", corrupt, "dimension_count", set(a + "rope.dimension_count", 0u)},
      {"rope beyond the head", corrupt, "dimension_count", set(a + "rope.dimension_count", 32u)},
      {"rope base 0", corrupt, "freq_base", set(a + "rope.freq_base", 0.0f)},
      {"rope base NaN", corrupt, "freq_base", set(a + "rope.freq_base", NAN)},
      {"rope scaling unknown", unsupported, "is \"longrope\", supported",
       set(a + "rope.scaling.type", std::string("longrope"))},
      {"rope factor negative", corrupt, "scaling.factor", set(a + "rope.scaling.factor", -4.0f)},
      {"rope divisors of the wrong size", corrupt, "rope_freqs", shape("rope_freqs.weight", {4})},
      {"rope divisors not positive", corrupt, "rope_freqs", shape("rope_freqs.weight", {8})},
      {"experts", unsupported, "experts", set(a + "expert_count", 8u)},
      {"not causal", unsupported, "causal", set(a + "attention.causal", false)},
      {"capped logits", unsupported, "softcapping", set(a + "final_logit_softcapping", 30.0f)},
      {"no embedding", not_found, "token_embd.weight", drop("token_embd.weight")},
      {"embedding is a vector", corrupt, "token_embd.weight", shape("token_embd.weight", {64})},
      {"embedding of three dimensions", corrupt, "token_embd.weight",
       shape("token_embd.weight", {64, 20, 2})},
      {"output of another vocabulary", corrupt, "output.weight", shape("output.weight", {64, 41})},
      {"no output norm", not_found, "output_norm.weight", drop("output_norm.weight")},
      {"norm is a matrix", corrupt, "attn_norm.weight", shape("blk.1.attn_norm.weight", {64, 1})},
      {"norm too short", corrupt, "ffn_norm.weight", shape("blk.0.ffn_norm.weight", {32})},
      {"norm in blocks", unsupported, "attn_norm.weight",
       [](TinyModel& m) {
         m.tensors["blk.0.attn_norm.weight"] = {WeightType::q8_0, {64}};
       }},
      {"no q", not_found, "blk.0.attn_q.weight", drop("blk.0.attn_q.weight")},
      {"q transposed", corrupt, "attn_k.weight", shape("blk.0.attn_k.weight", {32, 64})},
      {"no gate", not_found, "ffn_gate.weight", drop("blk.1.ffn_gate.weight")},
      {"down transposed", corrupt, "ffn_down.weight", shape("blk.1.ffn_down.weight", {64, 96})},
      {"some biases only", corrupt, "attn_q.bias", shape("blk.0.attn_q.bias", {32})},
      {"norms of heads", unsupported, "attn_q_norm", shape("blk.0.attn_q_norm.weight", {16})},
      {"an output bias", unsupported, "attn_output.bias", shape("blk.0.attn_output.bias", {64})},
      {"experts without their key", unsupported, "ffn_gate_exps",
       shape("blk.1.ffn_gate_exps.weight", {64, 96, 2})},
      {"a norm of embeddings", unsupported, "token_embd_norm",
       shape("token_embd_norm.weight", {64})},
  };
  std::set<std::string> names;
  for (const Spoiled& c : cases) {
    EXPECT_TRUE(names.insert(c.what).second) << "twice: " << c.what;
    TinyModel model = TinyModel::make("llama");
    c.spoil(model);
    const Status status = read_all(model);
    ASSERT_FALSE(status) << c.what;
    const std::string& message = status.error().message;
    EXPECT_EQ(status.error().code, c.code) << c.what << ": " << message;
    EXPECT_NE(message.find(c.says), std::string::npos) << c.what << ": " << message;
    EXPECT_NE(message.find("tiny.gguf"), std::string::npos) << c.what << ": " << message;
    EXPECT_EQ(message.find('\n'), std::string::npos) << c.what;
  }
}

TEST(Model, WhatAnArchitectureNeedsMustBeThere) {
  for (const auto& [architecture, tensor] :
       std::vector<std::pair<std::string, std::string>>{{"qwen2", "attn_k.bias"},
                                                        {"qwen3", "attn_k_norm.weight"},
                                                        {"gemma3", "attn_q_norm.weight"},
                                                        {"gemma3", "post_ffw_norm.weight"}}) {
    TinyModel model = TinyModel::make(architecture);
    model.tensors.erase("blk.1." + tensor);
    const Status status = read_all(model);
    ASSERT_FALSE(status) << architecture << " " << tensor;
    EXPECT_EQ(status.error().code, ErrorCode::not_found);
    EXPECT_NE(status.error().message.find("blk.1." + tensor), std::string::npos);
  }
}

TEST(Model, ExtrasThatChangeNothingAreLeftAlone) {
  TinyModel model = TinyModel::make("llama");
  model.tensors["blk.0.attn_rot_embd"] = {WeightType::f32, {8}};
  model.tensors["blk.2.attn_q.weight"] = {WeightType::f32, {64, 64}};
  model.tensors["mm.projector.weight"] = {WeightType::f32, {64, 64}};
  const Status status = read_all(model);
  EXPECT_TRUE(status) << status.error().message;
}

}  // namespace
}  // namespace thermocline
