#include "runtime/model/rope_plan.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numbers>
#include <string>

#include "runtime/model/gguf.h"

namespace thermocline {
namespace {

constexpr std::uint32_t kMostPositions = 1u << 30;  // that a context is stretched to

// Llama 3 keeps its scaling as one divisor a frequency, in a tensor.
Result<std::vector<float>> read_divisors(const GgufFile& file, std::uint32_t dimensions) {
  const TensorInfo* tensor = file.find_tensor("rope_freqs.weight");
  if (!tensor) return std::vector<float>{};
  if (tensor->type != WeightType::f32 || tensor->rank != 1 || tensor->cols() != dimensions / 2)
    return fail(ErrorCode::corrupt, file.name(), ": tensor rope_freqs.weight is ",
                info(tensor->type).name, " of ", tensor->shape(), ", needed is F32 of ",
                dimensions / 2);
  std::vector<float> divisor(dimensions / 2);
  std::memcpy(divisor.data(), tensor->data.data(), divisor.size() * sizeof(float));
  for (float d : divisor)
    if (!std::isfinite(d) || d <= 0.0f)
      return fail(ErrorCode::corrupt, file.name(), ": tensor rope_freqs.weight holds ", d,
                  ", needed are positive numbers");
  return divisor;
}

Status check_positive(const GgufFile& file, const std::string& key, float value) {
  if (std::isfinite(value) && value > 0.0f) return {};
  return fail(ErrorCode::corrupt, file.name(), ": ", key, " is ", value,
              ", needed is a positive number");
}

// The scaling that the file asks for.
Status read_scaling(const GgufFile& file, const std::string& rope, RopePlan* plan) {
  TL_TRY_ASSIGN(const std::string_view type,
                file.get_or<std::string_view>(rope + "scaling.type", ""));
  // The factor's older name means linear scaling.
  const std::string key = file.has(rope + "scaling.factor") ? "scaling.factor" : "scale_linear";
  TL_TRY_ASSIGN(float factor, file.get_or<float>(rope + key, 1.0f));
  if (factor == 0.0f) factor = 1.0f;  // as some converters write "none"
  TL_TRY(check_positive(file, rope + key, factor));
  if (type == "none") return {};
  if (type != "" && type != "linear" && type != "yarn")
    return fail(ErrorCode::unsupported, file.name(), ": ", rope, "scaling.type is ",
                GgufFile::show(*file.find(rope + "scaling.type")),
                ", supported are none, linear and yarn");
  plan->freq_scale = 1.0f / factor;
  plan->yarn = type == "yarn";
  return {};
}

Status read_yarn(const GgufFile& file, const std::string& rope, RopePlan* plan) {
  const std::string scaling = rope + "scaling.";
  TL_TRY_ASSIGN(plan->yarn_beta_fast, file.get_or<float>(scaling + "yarn_beta_fast", 32.0f));
  TL_TRY_ASSIGN(plan->yarn_beta_slow, file.get_or<float>(scaling + "yarn_beta_slow", 1.0f));
  TL_TRY_ASSIGN(plan->attention_factor, file.get_or<float>(scaling + "attn_factor", 1.0f));
  TL_TRY(check_positive(file, scaling + "yarn_beta_fast", plan->yarn_beta_fast));
  TL_TRY(check_positive(file, scaling + "yarn_beta_slow", plan->yarn_beta_slow));
  return check_positive(file, scaling + "attn_factor", plan->attention_factor);
}

// What the user asks for takes the place of the file's scaling.
Status apply_options(const EngineOptions& options, RopePlan* plan) {
  const bool scale_given = options.rope_freq_scale != 0.0f;
  if (scale_given && !(options.rope_freq_scale > 0.0f && options.rope_freq_scale <= 1.0f))
    return fail(ErrorCode::invalid_argument, "--rope-freq-scale is ", options.rope_freq_scale,
                ", it must be above 0 and at most 1 (0.25 stretches the context four times)");
  if (options.rope_freq_base != 0.0f) {
    if (!std::isfinite(options.rope_freq_base) || options.rope_freq_base <= 1.0f)
      return fail(ErrorCode::invalid_argument, "--rope-freq-base is ", options.rope_freq_base,
                  ", it must be above 1");
    plan->freq_base = options.rope_freq_base;
  }
  if (options.rope_scaling == RopeScaling::none) {
    if (scale_given)
      return fail(ErrorCode::invalid_argument,
                  "--rope-freq-scale has no meaning with --rope-scaling none");
    plan->freq_scale = 1.0f;
    plan->yarn = false;
    plan->context = plan->trained_context;
    return {};
  }
  if (options.rope_scaling == RopeScaling::linear) plan->yarn = false;
  if (options.rope_scaling == RopeScaling::yarn) plan->yarn = true;
  if (!scale_given) {
    if (options.rope_scaling != RopeScaling::from_model && plan->freq_scale == 1.0f)
      return fail(ErrorCode::invalid_argument,
                  "--rope-scaling needs --rope-freq-scale: the model "
                  "has no factor of its own");
    return {};
  }
  plan->freq_scale = options.rope_freq_scale;
  const double stretched = std::floor(double{1} * plan->trained_context / plan->freq_scale);
  if (stretched > kMostPositions)
    return fail(ErrorCode::invalid_argument, "--rope-freq-scale is ", options.rope_freq_scale,
                ", which stretches the context of ", plan->trained_context, " beyond ",
                kMostPositions, " positions: it must be between ",
                double{1} * plan->trained_context / kMostPositions, " and 1 for this model");
  plan->context = static_cast<std::uint32_t>(stretched);
  return {};
}

}  // namespace

Result<RopePlan> RopePlan::read(const GgufFile& file, std::string_view prefix,
                                std::uint32_t key_dim, const EngineOptions& options) {
  const std::string rope = std::string(prefix) + ".rope.";
  const std::string context_key = std::string(prefix) + ".context_length";
  RopePlan plan;
  TL_TRY_ASSIGN(plan.dimensions, file.get_or<std::uint32_t>(rope + "dimension_count", key_dim));
  if (plan.dimensions == 0 || plan.dimensions % 2 != 0 || plan.dimensions > key_dim)
    return fail(ErrorCode::corrupt, file.name(), ": ", rope, "dimension_count is ", plan.dimensions,
                ", needed is an even number up to the head size ", key_dim);
  TL_TRY_ASSIGN(plan.freq_base, file.get_or<float>(rope + "freq_base", 10000.0f));
  TL_TRY(check_positive(file, rope + "freq_base", plan.freq_base));
  TL_TRY_ASSIGN(plan.context, file.get<std::uint32_t>(context_key));
  if (plan.context == 0 || plan.context > std::numeric_limits<std::int32_t>::max())
    return fail(ErrorCode::corrupt, file.name(), ": ", context_key, " is ", plan.context);
  TL_TRY_ASSIGN(plan.trained_context,
                file.get_or<std::uint32_t>(rope + "scaling.original_context_length", plan.context));
  if (plan.trained_context == 0 || plan.trained_context > plan.context)
    plan.trained_context = plan.context;
  TL_TRY(read_scaling(file, rope, &plan));
  TL_TRY(read_yarn(file, rope, &plan));
  TL_TRY_ASSIGN(plan.divisor, read_divisors(file, plan.dimensions));
  TL_TRY(apply_options(options, &plan));
  return plan;
}

RopePlan RopePlan::unscaled(float base) const {
  RopePlan plan = *this;
  plan.freq_base = base;
  plan.freq_scale = 1.0f;
  plan.yarn = false;
  plan.divisor.clear();
  return plan;
}

RopeSpec RopePlan::spec(RopePairs pairs) const {
  RopeSpec spec;
  spec.pairs = pairs;
  const double size = dimensions;
  // YaRN: pairs that turn more than beta_fast times within the trained context keep their
  // frequency, those below beta_slow are squeezed, and a ramp lies between.
  const auto turning = [&](double turns) {
    return size * std::log(trained_context / (turns * 2.0 * std::numbers::pi)) /
           (2.0 * std::log(double{freq_base}));
  };
  const double low = yarn ? std::max(0.0, std::floor(turning(yarn_beta_fast))) : 0.0;
  const double high = yarn ? std::min(size - 1.0, std::ceil(turning(yarn_beta_slow))) : 0.0;
  for (std::uint32_t pair = 0; pair < dimensions / 2; ++pair) {
    double frequency = std::pow(double{freq_base}, -2.0 * pair / size);
    if (!divisor.empty()) frequency /= divisor[pair];
    double keep = 0.0;
    if (yarn) keep = 1.0 - std::clamp((pair - low) / std::max(0.001, high - low), 0.0, 1.0);
    spec.inverse_frequency.push_back(
        static_cast<float>(frequency * (freq_scale * (1.0 - keep) + keep)));
  }
  if (yarn)
    spec.magnitude =
        static_cast<float>(attention_factor * (1.0 + 0.1 * std::log(1.0 / freq_scale)));
  return spec;
}

}  // namespace thermocline
