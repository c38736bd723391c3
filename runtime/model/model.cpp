#include "runtime/model/model.h"

#include <cmath>

#include "kernels/matvec.h"
#include "runtime/model/gguf.h"
#include "runtime/model/rope_plan.h"

namespace thermocline {
namespace {

std::string supported_architectures() {
  std::string list;
  for (const Architecture& a : architectures()) {
    if (!list.empty()) list += ", ";
    list.append(a.name).append(" (").append(a.members).append(")");
  }
  return list;
}

// The metadata of one architecture: its keys begin with its name.
class Keys {
 public:
  Keys(const GgufFile& file, std::string_view prefix) : file_(file), prefix_(prefix) {}

  std::string name(std::string_view key) const { return prefix_ + "." + std::string(key); }

  Result<std::uint32_t> size(std::string_view key, std::uint32_t most) const {
    TL_TRY_ASSIGN(const std::uint64_t value, file_.get<std::uint64_t>(name(key)));
    return checked(key, value, most);
  }
  Result<std::uint32_t> size_or(std::string_view key, std::uint32_t otherwise,
                                std::uint32_t most) const {
    TL_TRY_ASSIGN(const std::uint64_t value, file_.get_or<std::uint64_t>(name(key), otherwise));
    return checked(key, value, most);
  }
  template <typename T>
  Result<T> value_or(std::string_view key, T otherwise) const {
    return file_.get_or<T>(name(key), otherwise);
  }
  template <typename... Parts>
  tl::unexpected<Error> wrong(ErrorCode code, std::string_view key, const Parts&... parts) const {
    return fail(code, file_.name(), ": ", name(key), parts...);
  }

 private:
  Result<std::uint32_t> checked(std::string_view key, std::uint64_t value,
                                std::uint32_t most) const {
    if (value == 0 || value > most)
      return wrong(ErrorCode::corrupt, key, " is ", value, ", needed is 1 to ", most);
    return static_cast<std::uint32_t>(value);
  }

  const GgufFile& file_;
  std::string prefix_;
};

// Features that change what a layer computes and that no layer of ours has.
Status refuse_unknown_features(const Keys& keys) {
  TL_TRY_ASSIGN(const auto experts, keys.value_or<std::uint64_t>("expert_count", 0));
  if (experts > 0)
    return keys.wrong(ErrorCode::unsupported, "expert_count", " is ", experts,
                      ": mixtures of experts are not supported");
  TL_TRY_ASSIGN(const bool causal, keys.value_or<bool>("attention.causal", true));
  if (!causal)
    return keys.wrong(ErrorCode::unsupported, "attention.causal",
                      " is false: only models that read from left to right are supported");
  for (const char* key : {"final_logit_softcapping", "attn_logit_softcapping"}) {
    TL_TRY_ASSIGN(const float cap, keys.value_or<float>(key, 0.0f));
    if (cap != 0.0f)
      return keys.wrong(ErrorCode::unsupported, key, " is ", cap, ": capping is not supported");
  }
  return {};
}

// Heads of one layer, all of the same shape within a model.
Result<LayerSpec> read_heads(const Keys& keys, std::uint32_t width) {
  LayerSpec layer;
  TL_TRY_ASSIGN(layer.q_heads, keys.size("attention.head_count", kMaxHeads));
  TL_TRY_ASSIGN(layer.kv_heads, keys.size_or("attention.head_count_kv", layer.q_heads, kMaxHeads));
  if (layer.q_heads % layer.kv_heads != 0)
    return keys.wrong(ErrorCode::corrupt, "attention.head_count", " is ", layer.q_heads,
                      ", not a multiple of attention.head_count_kv, ", layer.kv_heads);
  const std::uint32_t even = width / layer.q_heads;
  TL_TRY_ASSIGN(layer.key_dim, keys.size_or("attention.key_length", even, kMaxHeadSize));
  TL_TRY_ASSIGN(layer.value_dim, keys.size_or("attention.value_length", even, kMaxHeadSize));
  if (layer.key_dim % 16 != 0)
    return keys.wrong(ErrorCode::unsupported, "attention.key_length", " is ", layer.key_dim,
                      ", supported are multiples of 16");
  if (layer.value_dim % 16 != 0)
    return keys.wrong(ErrorCode::unsupported, "attention.value_length", " is ", layer.value_dim,
                      ", supported are multiples of 16");
  if (layer.q_heads * layer.value_dim % kActivationBlock != 0)
    return keys.wrong(ErrorCode::unsupported, "attention.head_count", " times the value size is ",
                      layer.q_heads * layer.value_dim, ", supported are multiples of ",
                      kActivationBlock);
  return layer;
}

Result<std::uint32_t> read_width(const Keys& keys, std::string_view key) {
  TL_TRY_ASSIGN(const std::uint32_t width, keys.size(key, kMaxModelWidth));
  if (width % kActivationBlock != 0)
    return keys.wrong(ErrorCode::unsupported, key, " is ", width, ", supported are multiples of ",
                      kActivationBlock);
  return width;
}

float default_scale(const Architecture& architecture, const LayerSpec& heads, std::uint32_t width,
                    std::uint32_t layers) {
  const bool by_width = layers == architecture.layers_scaled_by_width;
  const double size = by_width ? double{1} * width / heads.q_heads : double{1} * heads.key_dim;
  return static_cast<float>(1.0 / std::sqrt(size));
}

// One LayerSpec a layer: alike but for the sliding window and its rotation.
Status read_layers(const GgufFile& file, const Keys& keys, const EngineOptions& options,
                   ModelSpec* model) {
  const Architecture& architecture = *model->architecture;
  TL_TRY_ASSIGN(const std::uint32_t layers, keys.size("block_count", kMaxModelLayers));
  TL_TRY_ASSIGN(LayerSpec full, read_heads(keys, model->width));
  TL_TRY_ASSIGN(full.scale, keys.value_or<float>("attention.scale", 0.0f));
  if (full.scale == 0.0f) full.scale = default_scale(architecture, full, model->width, layers);
  if (!std::isfinite(full.scale))
    return keys.wrong(ErrorCode::corrupt, "attention.scale", " is ", full.scale);
  TL_TRY_ASSIGN(const RopePlan rope,
                RopePlan::read(file, architecture.name, full.key_dim, options));
  full.rope = rope.spec(architecture.pairs);
  model->context = rope.context;

  LayerSpec windowed = full;
  std::uint32_t period = 0;
  if (architecture.window_period > 0) {
    TL_TRY_ASSIGN(windowed.window, keys.value_or<std::uint32_t>("attention.sliding_window", 0));
    if (windowed.window > 0) {
      TL_TRY_ASSIGN(period, keys.size_or("attention.sliding_window_pattern",
                                         architecture.window_period, kMaxModelLayers));
      TL_TRY_ASSIGN(const float base,
                    keys.value_or<float>("rope.freq_base_swa", architecture.window_freq_base));
      if (!std::isfinite(base) || base <= 0.0f)
        return keys.wrong(ErrorCode::corrupt, "rope.freq_base_swa", " is ", base);
      windowed.rope = rope.unscaled(base).spec(architecture.pairs);
    }
  }
  for (std::uint32_t l = 0; l < layers; ++l)
    model->layers.push_back(period > 0 && (l + 1) % period != 0 ? windowed : full);
  return {};
}

}  // namespace

Result<ModelSpec> ModelSpec::read(const GgufFile& file, const EngineOptions& options) {
  ModelSpec model;
  TL_TRY_ASSIGN(const std::string_view architecture,
                file.get<std::string_view>("general.architecture"));
  model.architecture = find_architecture(architecture);
  if (!model.architecture)
    return fail(ErrorCode::unsupported, file.name(), ": architecture ",
                GgufFile::show(*file.find("general.architecture")),
                " is not supported; supported are ", supported_architectures());
  TL_TRY_ASSIGN(const std::string_view name, file.get_or<std::string_view>("general.name", ""));
  model.name = name;

  const Keys keys(file, architecture);
  TL_TRY(refuse_unknown_features(keys));
  TL_TRY_ASSIGN(model.width, read_width(keys, "embedding_length"));
  TL_TRY_ASSIGN(model.feed_forward, read_width(keys, "feed_forward_length"));
  TL_TRY_ASSIGN(model.norm_epsilon, file.get<float>(keys.name("attention.layer_norm_rms_epsilon")));
  if (!std::isfinite(model.norm_epsilon) || model.norm_epsilon < 0.0f)
    return keys.wrong(ErrorCode::corrupt, "attention.layer_norm_rms_epsilon", " is ",
                      model.norm_epsilon);
  if (model.architecture->embedding == Architecture::Embedding::times_sqrt_width)
    model.embedding_scale = std::sqrt(static_cast<float>(model.width));
  TL_TRY(read_layers(file, keys, options, &model));
  return model;
}

std::uint64_t ModelSpec::kv_bytes_per_token() const {
  std::uint64_t bytes = 0;
  for (const LayerSpec& layer : layers)
    if (layer.window == 0)
      bytes += std::uint64_t{layer.kv_heads} * (layer.key_dim + layer.value_dim) * 2;
  return bytes;
}

LayersShape ModelSpec::shape() const {
  LayersShape shape;
  shape.width = width;
  shape.feed_forward = feed_forward;
  shape.norm_epsilon = norm_epsilon;
  shape.activation = architecture->activation;
  for (const LayerSpec& layer : layers) {
    shape.q = std::max(shape.q, std::size_t{layer.q_heads} * layer.key_dim);
    shape.k = std::max(shape.k, std::size_t{layer.kv_heads} * layer.key_dim);
    shape.v = std::max(shape.v, std::size_t{layer.kv_heads} * layer.value_dim);
    shape.mixed = std::max(shape.mixed, std::size_t{layer.q_heads} * layer.value_dim);
  }
  return shape;
}

}  // namespace thermocline
