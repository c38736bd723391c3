#include "runtime/device_plan.h"

#include <algorithm>
#include <vector>

#include "kernels/base/buffer.h"
#include "kernels/device.h"
#include "retrieval/select/sketch_options.h"
#include "runtime/segment_bytes.h"
#include "tiers/size_text.h"

namespace thermocline {
namespace {

// Of what a launch fetches: a wave of rows from a disk is about as much (tiers/reader.cpp), and
// more at a time would be later at the device without being there faster.
constexpr std::uint64_t kMostFetchedFolds = 256;
constexpr std::uint64_t kMostFetchedBytes = std::uint64_t{4} << 20;

// What a device works in while it attends a layer's rows of one step, all of which may be read: a
// block that lies in two folds is named in both.
std::uint64_t device_work_of(const LayerSpec& spec, const TextCuts& cuts, std::uint64_t step_rows) {
  std::uint64_t folds = 0, blocks = 0;
  for (const auto& [rows, count] : cuts.segments()) {
    const std::uint64_t of_one = (rows + kFoldRows - 1) / kFoldRows;
    folds += count * of_one;
    blocks += count * (of_one + blocks_of(rows));
  }
  const std::uint64_t lists = step_rows * spec.kv_heads;
  return attention_bytes({spec.q_heads / spec.kv_heads, spec.key_dim, spec.value_dim}, lists,
                         lists * folds, lists * blocks);
}

}  // namespace

void plan_device_work(const CacheOptions& options, const Method& method, const TextCuts& cuts,
                      CachePlan* plan) {
  for (const LayerSpec& spec : options.layers) {
    if (!seals(method, spec)) continue;
    const ChoiceBytes choice =
        choice_of(options, method, spec, cuts, *plan).value_or(ChoiceBytes{});
    plan->choice = {std::max(plan->choice.device, choice.device),
                    std::max(plan->choice.host, choice.host)};
    if (choice.device == 0)
      plan->device_work_bytes =
          std::max(plan->device_work_bytes, device_work_of(spec, cuts, plan->step_rows));
  }
}

void drop_device_work(CachePlan* plan) {
  const auto any = [&](bool chosen) {
    return std::ranges::any_of(plan->layers, [&](const CachePlan::Layer& layer) {
      return layer.rows > 0 && layer.home.reach == Reach::device && layer.chosen_there() == chosen;
    });
  };
  if (!any(false)) plan->device_work_bytes = 0;
  if (!any(true)) plan->choice = {};
}

Result<ChoiceBytes> choice_of(const CacheOptions& options, const Method& method,
                              const LayerSpec& spec, const TextCuts& cuts, const CachePlan& plan) {
  const SketchOptions* const sketch = method.select->sketch();
  if (!sketch || method.fetches() || cuts.segments().empty()) return ChoiceBytes{};
  if (reach_of(plan.stores, Tier::device) != Reach::device) return ChoiceBytes{};
  std::uint64_t rows = 0;
  SketchBounds bounds;
  for (const auto& [of_one, count] : cuts.segments()) {
    rows += count * of_one;
    bounds.runs += static_cast<std::uint32_t>(count);
    bounds.rows += static_cast<std::uint32_t>(count * blocks_of(of_one) * kBlockRows);
    bounds.clusters +=
        static_cast<std::uint32_t>(count * blocks_of(sketch->clusters(of_one)) * kBlockRows);
  }
  const auto most = [&](std::uint64_t wanted) {
    return static_cast<std::uint32_t>(std::min(wanted, rows));
  };
  const SketchOptions::Budget budget = sketch->budget(options.max_positions, 0);
  bounds.read = most(budget.read);
  bounds.coded = most(budget.coded);
  const RowLayout layout = method.compress.layout(spec.key_dim, spec.value_dim);
  return choice_bytes(sketch->format(shape_of(spec), layout), bounds,
                      static_cast<std::uint32_t>(plan.step_rows * spec.kv_heads));
}

std::uint64_t sketch_bytes_of(const CacheOptions& options, const Method& method,
                              const LayerSpec& spec, const CachePlan::Layer& layer,
                              const TextCuts& cuts, std::uint64_t step_rows) {
  std::uint64_t bytes = step_rows * index_bytes_of(method, spec, layer, cuts.longest_joint());
  for (const auto& [rows, count] : cuts.segments())
    bytes += options.max_timelines * count * index_bytes_of(method, spec, layer, rows);
  return bytes;
}

std::uint64_t bytes_there(const LayerSpec& spec, const CachePlan::Layer& layer) {
  return (std::uint64_t{layer.rows} + layer.joint_rows) * spec.kv_heads * layer.sealed.bytes() +
         layer.sketch_bytes;
}

CachePlan::Fetch fetch_of(const CacheOptions& options, const Method& method,
                          std::uint64_t step_rows) {
  const TextCuts cuts = TextCuts::of(options, method);
  std::vector<LayerSpec> layers = options.layers;
  std::erase_if(layers, [&](const LayerSpec& spec) { return !seals(method, spec); });
  CachePlan::Fetch fetch;
  std::uint64_t folds = 0, rows = 0;  // of a list
  for (const auto& [of_one, count] : cuts.segments()) {
    folds += count * ((of_one + kFoldRows - 1) / kFoldRows);
    rows += count * of_one;
  }
  for (const LayerSpec& spec : layers) {
    const std::uint64_t lists = step_rows * spec.kv_heads;
    const std::uint64_t row_bytes = method.compress.layout(spec.key_dim, spec.value_dim).bytes();
    fetch.folds = std::max(fetch.folds, std::min(kMostFetchedFolds, lists * folds));
    fetch.rows_bytes = std::max(
        fetch.rows_bytes,
        round_up(std::min(kMostFetchedBytes, lists * (rows * row_bytes + folds * kWorkApartBytes)),
                 kWorkApartBytes));
  }
  for (const LayerSpec& spec : layers)
    fetch.work_bytes =
        std::max(fetch.work_bytes, attention_bytes(shape_of(spec), fetch.folds, fetch.folds,
                                                   fetch.folds * (kFoldRows / kBlockRows)));
  return fetch;
}

Status check_attended(const Method& method, const LayerSpec& spec, const CachePlan::Layer& layer,
                      const std::string& device) {
  const HeadShape shape = shape_of(spec);
  Fold fold;
  if (const Status raw = device_attends(shape, fold); !raw)
    return fail(raw.error().code, "--device ", device, ": ", raw.error().message,
                ": leave --device out");
  fold.key_format = layer.sealed.key_format;
  fold.value_format = layer.sealed.value_format;
  const Status coded = device_attends(shape, fold);
  if (coded) return {};
  return fail(coded.error().code, "--device ", device,
              " with keys.compress = ", method.compress.of(Side::keys).name(),
              ", values.compress = ", method.compress.of(Side::values).name(), ": ",
              coded.error().message, ": change those, ",
              layer.fetched ? "say --method-set place.run=near, " : "", "or leave --device out");
}

Status check_device_rows(const CacheOptions& options, const Method& method, const CachePlan& plan) {
  const std::uint64_t given = plan.bytes_of(Tier::device);
  std::uint64_t least = 0;  // that rows of a layer take; 0: no layer has any
  for (std::size_t l = 0; l < plan.layers.size(); ++l) {
    const std::uint64_t bytes = bytes_there(options.layers[l], plan.layers[l]);
    if (bytes > 0 && (least == 0 || bytes < least)) least = bytes;
  }
  if (given == 0 || least == 0 || plan.fetches()) return {};
  if (method.place->home({.device_bytes = Budget::kUnlimited}, least) != Tier::device)
    return fail(ErrorCode::invalid_argument, "place.rows = ", method.place->name(),
                " puts no rows on a device, and --kv-device gives it ", size_text(given),
                ": say --method-set place.rows=spill, or leave --device and --kv-device out");
  if (options.tiers.device_bytes == kAutoBytes) return {};
  return fail(ErrorCode::exhausted, "the device is given ", size_text(given),
              ", and the rows of one layer with what it works in need ",
              size_text(least + plan.device_staging_bytes()), ": raise --kv-device to ",
              (least + plan.device_staging_bytes() + 1023) / 1024,
              "K, or leave --device and --kv-device out");
}

}  // namespace thermocline
