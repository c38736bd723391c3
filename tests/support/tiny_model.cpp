#include "tests/support/tiny_model.h"

#include "kernels/base/half.h"

namespace thermocline::test {
namespace {

// Deterministic and irregular: values of about +-0.25.
float weight_at(std::uint64_t i) {
  return static_cast<float>(static_cast<std::int64_t>((i * 2654435761u) % 1021) - 510) / 2048.0f;
}

Bytes data_of(const TinyTensor& tensor, std::uint64_t seed) {
  std::uint64_t values = 1;
  for (const std::uint64_t dim : tensor.dims) values *= dim;
  const WeightTypeInfo& type = info(tensor.type);
  Bytes data;
  if (tensor.type == WeightType::f32) {
    for (std::uint64_t i = 0; i < values; ++i) append(&data, weight_at(seed + i));
  } else if (tensor.type == WeightType::f16) {
    for (std::uint64_t i = 0; i < values; ++i) append(&data, to_f16(weight_at(seed + i)).bits);
  } else {
    data.resize(values / type.block_values * type.block_bytes);
  }
  return data;
}

}  // namespace

TinyModel TinyModel::make(const std::string& architecture) {
  TinyModel m;
  const std::string a = architecture + ".";
  const std::uint32_t layers = architecture == "gemma3" ? 7 : 2;
  m.metadata = {
      {"general.architecture", architecture},
      {"general.name", std::string("tiny")},
      {a + "context_length", 256u},
      {a + "embedding_length", 64u},
      {a + "block_count", layers},
      {a + "feed_forward_length", 96u},
      {a + "attention.head_count", 4u},
      {a + "attention.head_count_kv", 2u},
      {a + "attention.layer_norm_rms_epsilon", 1e-5f},
  };
  if (architecture == "gemma3") m.metadata[a + "attention.sliding_window"] = 8u;
  m.tensors = {{"token_embd.weight", {WeightType::f32, {64, 40}}},
               {"output_norm.weight", {WeightType::f32, {64}}}};
  for (std::uint32_t l = 0; l < layers; ++l) {
    const auto add = [&](const std::string& name, std::vector<std::uint64_t> dims) {
      m.tensors["blk." + std::to_string(l) + "." + name] = {WeightType::f32, std::move(dims)};
    };
    add("attn_norm.weight", {64});
    add("attn_q.weight", {64, 64});
    add("attn_k.weight", {64, 32});
    add("attn_v.weight", {64, 32});
    add("attn_output.weight", {64, 64});
    add("ffn_norm.weight", {64});
    add("ffn_gate.weight", {64, 96});
    add("ffn_up.weight", {64, 96});
    add("ffn_down.weight", {96, 64});
    if (architecture == "qwen2") {
      add("attn_q.bias", {64});
      add("attn_k.bias", {32});
      add("attn_v.bias", {32});
    }
    if (architecture == "qwen3" || architecture == "gemma3") {
      add("attn_q_norm.weight", {16});
      add("attn_k_norm.weight", {16});
    }
    if (architecture == "gemma3") {
      add("post_attention_norm.weight", {64});
      add("post_ffw_norm.weight", {64});
    }
  }
  return m;
}

Bytes TinyModel::bytes() const {
  GgufWriter writer;
  for (const auto& [key, value] : metadata) {
    if (const auto* u = std::get_if<std::uint32_t>(&value)) writer.add_u32(key, *u);
    if (const auto* u = std::get_if<std::uint64_t>(&value)) writer.add_u64(key, *u);
    if (const auto* f = std::get_if<float>(&value)) writer.add_f32(key, *f);
    if (const auto* b = std::get_if<bool>(&value)) writer.add_bool(key, *b);
    if (const auto* s = std::get_if<std::string>(&value)) writer.add_string(key, *s);
  }
  std::uint64_t seed = 0;
  for (const auto& [name, tensor] : tensors)
    writer.add_tensor(name, tensor.type, tensor.dims, data_of(tensor, seed += 7919));
  return writer.bytes();
}

}  // namespace thermocline::test
