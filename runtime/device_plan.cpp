#include "runtime/device_plan.h"

#include <algorithm>
#include <optional>
#include <vector>

#include "kernels/base/buffer.h"
#include "kernels/device.h"
#include "retrieval/select/device_rule.h"
#include "runtime/segment_bytes.h"
#include "tiers/codec/raw.h"
#include "tiers/size_text.h"

namespace thermocline {
namespace {

// Of what is sent at a time: a wave of rows from a disk is about as much (tiers/reader.cpp), and
// more at a time would be later at the device without being there faster.
constexpr std::uint64_t kMostFetchedFolds = 256;
constexpr std::uint64_t kMostFetchedBytes = std::uint64_t{4} << 20;
// Slots for so many steps' choices before whole layers: the last choice alone has 60 % of the next,
// and a whole layer takes as much as fifty choices of a fiftieth of its rows and spares one layer's
// misses.
constexpr std::uint32_t kUsefulChoices = 4;
// Of a prefill's rows that cross at a time: copying takes far longer than beginning to, and than
// having states come and go once more, even of the longest span.
constexpr std::uint64_t kPrefillPieceBytes = std::uint64_t{8} << 20;

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

// What a list has at most, of the longest text.
ChoiceBounds bounds_of(const CacheOptions& options, const DeviceRule& rule, const TextCuts& cuts) {
  std::uint64_t rows = 0;
  ChoiceBounds bounds;
  for (const auto& [of_one, count] : cuts.segments()) {
    rows += count * of_one;
    bounds.runs += static_cast<std::uint32_t>(count);
    bounds.rows += static_cast<std::uint32_t>(count * blocks_of(of_one) * kBlockRows);
    bounds.units += static_cast<std::uint32_t>(count * blocks_of(rule.units(of_one)) * kBlockRows);
  }
  const auto most = [&](std::uint64_t wanted) {
    return static_cast<std::uint32_t>(std::min(wanted, rows));
  };
  const DeviceRule::Budget budget =
      rule.budget(options.max_positions, 0, static_cast<std::uint32_t>(rows));
  bounds.read = most(budget.read);
  bounds.coded = most(budget.coded);
  return bounds;
}

ChoiceBytes most_of(const ChoiceBytes& one, const ChoiceBytes& other) {
  return {std::max(one.device, other.device), std::max(one.host, other.host),
          std::max(one.outbox, other.outbox)};
}

// How the rows of a layer are reached that a device has no room for.
std::optional<Reach> reach_without_room(const Method& method, const StoreOptions& stores) {
  return reach_of(stores, method.place->home({lowest_of(stores), 0}, 1));
}

// Whether a device chooses in a layer, if it attends what is chosen.
bool may_choose(const CacheOptions& options, const Method& method, const LayerSpec& spec,
                const TextCuts& cuts, const CachePlan& plan) {
  if (!seals(method, spec)) return false;
  return choice_of(options, method, spec, cuts, plan).value_or(ChoiceBytes{}).device > 0;
}

// From `least` on and up to `most`, as many slots as do not take more than `room`.
template <typename Bytes>
std::uint32_t slots_in(std::uint64_t room, std::uint32_t least, std::uint32_t most,
                       const Bytes& bytes) {
  while (least < most) {
    const std::uint32_t middle = least + (most - least + 1) / 2;
    if (bytes(middle) <= room)
      least = middle;
    else
      most = middle - 1;
  }
  return least;
}

// Of a device, that nothing is planned for yet.
std::uint64_t room_of(const CachePlan& plan) {
  const std::uint64_t given = plan.bytes_of(Tier::device);
  return given - std::min(given, plan.device_bytes());
}

// Whether a device attends a layer's rows, raw and as they are sealed. unsupported: why not.
Status attends(const Method& method, const LayerSpec& spec) {
  Fold fold;
  TL_TRY(device_attends(shape_of(spec), fold));
  if (!seals(method, spec)) return {};
  const RowLayout layout = method.compress.layout(spec.key_dim, spec.value_dim);
  fold.key_format = layout.key_format;
  fold.value_format = layout.value_format;
  return device_attends(shape_of(spec), fold);
}

}  // namespace

bool plan_prefill_there(const CacheOptions& options, const Method& method, const LayerSpec& spec,
                        const TextCuts& cuts, CachePlan* plan) {
  if (cuts.longest_span() == 0) return false;
  if (const Status can = attends(method, spec); !can) {
    plan->no_prefill = can.error().message;
    return false;
  }
  PrefillShape shape;
  shape.head = shape_of(spec);
  shape.kv_heads = spec.kv_heads;
  shape.rows = plan->prefill_rows = cuts.longest_span();
  const RowLayout raw = raw_layout(spec.key_dim, spec.value_dim);
  const RowLayout sealed = method.compress.layout(spec.key_dim, spec.value_dim);
  // No more than there is to be sent, or comes back.
  const std::uint64_t most =
      std::max({std::uint64_t{options.max_positions} * spec.kv_heads * raw.bytes(),
                shape.rows * shape.query_row_bytes(), shape.rows * shape.result_row_bytes()});
  const PrefillBytes bytes = prefill_bytes(shape, std::max(raw.bytes(), sealed.bytes()),
                                           std::min(kPrefillPieceBytes, most));
  // Queries and states lie behind the pieces, which may be another layer's to plan.
  const std::uint64_t behind =
      std::max(plan->prefill.device - plan->prefill.host, bytes.device - bytes.host);
  const std::uint64_t host = std::max(plan->prefill.host, bytes.host);
  plan->prefill = {host + behind, host, std::max(plan->prefill.piece, bytes.piece)};
  return true;
}

void plan_device_work(const CacheOptions& options, const Method& method, const TextCuts& cuts,
                      CachePlan* plan) {
  for (const LayerSpec& spec : options.layers) {
    if (!seals(method, spec)) continue;
    const ChoiceBytes choice =
        choice_of(options, method, spec, cuts, *plan).value_or(ChoiceBytes{});
    plan->choice = most_of(plan->choice, choice);
    if (choice.device == 0)
      plan->device_work_bytes =
          std::max(plan->device_work_bytes, device_work_of(spec, cuts, plan->step_rows));
  }
}

void drop_device_work(CachePlan* plan) {
  const auto attended = [](const CachePlan::Layer& layer) {
    return layer.rows > 0 && layer.home.reach == Reach::device && !layer.chosen_there();
  };
  const auto chosen = [](const CachePlan::Layer& layer) { return layer.chosen_there(); };
  if (std::ranges::none_of(plan->layers, attended)) plan->device_work_bytes = 0;
  if (std::ranges::none_of(plan->layers, chosen)) plan->choice = {};
  const auto has_part = [](const CachePlan::Layer& layer) {
    return layer.fetched || (layer.rows > 0 && layer.home.reach == Reach::device);
  };
  if (std::ranges::any_of(plan->layers, has_part)) return;
  plan->prefill = {};
  plan->no_prefill.clear();
  for (CachePlan::Layer& layer : plan->layers) layer.prefilled_there = false;
}

Result<ChoiceBytes> choice_of(const CacheOptions& options, const Method& method,
                              const LayerSpec& spec, const TextCuts& cuts, const CachePlan& plan) {
  const DeviceRule* const rule = method.select->device_rule();
  if (!rule || cuts.segments().empty()) return ChoiceBytes{};
  // Of all rows copies in slots would be all rows: they are sent as they are attended.
  const bool everything = method.select->facts().everything;
  if (everything && method.fetches()) return ChoiceBytes{};
  if (reach_of(plan.stores, Tier::device) != Reach::device) return ChoiceBytes{};
  if (method.side_of_layers())
    return fail(ErrorCode::unsupported, "no device rebuilds what several layers share");
  const RowLayout layout = method.compress.layout(spec.key_dim, spec.value_dim);
  const ChoiceFormat format = rule->format(shape_of(spec), layout);
  const auto lists = static_cast<std::uint32_t>(plan.step_rows * spec.kv_heads);
  ChoiceBounds bounds = bounds_of(options, *rule, cuts);
  const Result<ChoiceBytes> bytes = choice_bytes(format, bounds, lists);
  if (!bytes && everything) return ChoiceBytes{};  // as the host lists them, so are they attended
  if (!bytes || plan.slots.of_head == 0) return bytes;
  bounds.cached = true;
  bounds.packed = reach_without_room(method, plan.stores) == Reach::pages;
  TL_TRY_ASSIGN(ChoiceBytes fetching, choice_bytes(format, bounds, lists));
  fetching.outbox = std::min(fetching.outbox, kMostFetchedBytes);
  return most_of(*bytes, fetching);
}

void add_choice_bounds(const CacheOptions& options, const Method& method, const LayerSpec& spec,
                       const TextCuts& cuts, const CachePlan& plan, StepBounds* bounds) {
  if (!may_choose(options, method, spec, cuts, plan)) return;
  const DeviceRule& rule = *method.select->device_rule();
  const ChoiceFormat format =
      rule.format(shape_of(spec), method.compress.layout(spec.key_dim, spec.value_dim));
  if (std::ranges::find(bounds->formats, format) == bounds->formats.end())
    bounds->formats.push_back(format);
  bounds->chosen = bounds_of(options, rule, cuts);
  bounds->chosen.cached = plan.slots.of_head > 0;
  bounds->lists =
      std::max(bounds->lists, static_cast<std::uint32_t>(plan.step_rows * spec.kv_heads));
}

std::uint64_t choosing_bytes_of(const CacheOptions& options, const Method& method,
                                const LayerSpec& spec, const CachePlan::Layer& layer,
                                const TextCuts& cuts, std::uint64_t step_rows) {
  std::uint64_t bytes = 0;
  if (const std::uint32_t joint = cuts.longest_joint())
    bytes += step_rows * index_bytes_there(method, spec, layer, joint);
  for (const auto& [rows, count] : cuts.segments())
    bytes += options.max_timelines * count * index_bytes_there(method, spec, layer, rows);
  return bytes;
}

CachePlan::Slots slots_of(const CacheOptions& options, const Method& method,
                          const CachePlan& plan) {
  const TextCuts cuts = TextCuts::of(options, method);
  if (std::ranges::none_of(options.layers, [&](const LayerSpec& spec) {
        return may_choose(options, method, spec, cuts, plan);
      }))
    return {};
  const ChoiceBounds bounds = bounds_of(options, *method.select->device_rule(), cuts);
  return {bounds.read, bounds.rows};
}

std::uint64_t slots_bytes_of(const LayerSpec& spec, const CachePlan::Layer& layer,
                             const CachePlan::Slots& slots) {
  return spec.kv_heads * slot_bytes(slots.of_head, slots.rows, layer.sealed.bytes());
}

std::uint64_t fetching_bytes(const CacheOptions& options, const Method& method,
                             const TextCuts& cuts, const CachePlan& plan,
                             const CachePlan::Slots& slots, std::size_t first) {
  std::uint64_t bytes = 0;
  for (std::size_t l = first; slots.of_head > 0 && l < options.layers.size(); ++l) {
    const LayerSpec& spec = options.layers[l];
    if (!may_choose(options, method, spec, cuts, plan)) continue;
    CachePlan::Layer layer;
    layer.sealed = method.compress.layout(spec.key_dim, spec.value_dim);
    bytes += choosing_bytes_of(options, method, spec, layer, cuts, plan.step_rows) +
             options.max_timelines * slots_bytes_of(spec, layer, slots);
  }
  return bytes;
}

void take_useful_slots(const CacheOptions& options, const Method& method, const TextCuts& cuts,
                       CachePlan* plan) {
  const CachePlan::Slots least = plan->slots;
  const auto bytes = [&](std::uint32_t slots) {
    return fetching_bytes(options, method, cuts, *plan, {slots, least.rows}, 0);
  };
  plan->slots.of_head = slots_in(room_of(*plan), least.of_head,
                                 std::min(kUsefulChoices * least.of_head, least.rows), bytes);
}

void fill_with_slots(const CacheOptions& options, CachePlan* plan) {
  plan->slots_bytes = 0;
  const std::uint64_t room = room_of(*plan);
  const auto bytes = [&](std::uint32_t slots) {
    std::uint64_t sum = 0;
    for (std::size_t l = 0; l < plan->layers.size(); ++l)
      if (plan->layers[l].slots_bytes > 0)
        sum += options.max_timelines *
               slots_bytes_of(options.layers[l], plan->layers[l], {slots, plan->slots.rows});
    return sum;
  };
  plan->slots.of_head = slots_in(room, plan->slots.of_head, plan->slots.rows, bytes);
  plan->slots_bytes = bytes(plan->slots.of_head);
  for (std::size_t l = 0; l < plan->layers.size(); ++l)
    if (plan->layers[l].slots_bytes > 0)
      plan->layers[l].slots_bytes = slots_bytes_of(options.layers[l], plan->layers[l], plan->slots);
}

std::uint64_t bytes_there(const LayerSpec& spec, const CachePlan::Layer& layer) {
  return (std::uint64_t{layer.rows} + layer.joint_rows) * spec.kv_heads * layer.sealed.bytes() +
         layer.choosing_bytes;
}

CachePlan::Fetch fetch_of(const CacheOptions& options, const Method& method,
                          const CachePlan& plan) {
  const TextCuts cuts = TextCuts::of(options, method);
  std::vector<LayerSpec> layers = options.layers;
  std::erase_if(layers, [&](const LayerSpec& spec) {
    return !seals(method, spec) || may_choose(options, method, spec, cuts, plan);
  });
  CachePlan::Fetch fetch;
  std::uint64_t folds = 0, rows = 0;  // of a list
  for (const auto& [of_one, count] : cuts.segments()) {
    folds += count * ((of_one + kFoldRows - 1) / kFoldRows);
    rows += count * of_one;
  }
  for (const LayerSpec& spec : layers) {
    const std::uint64_t lists = plan.step_rows * spec.kv_heads;
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
                      const std::string& device, const std::string& no_choice) {
  const HeadShape shape = shape_of(spec);
  Fold fold;
  if (const Status raw = device_attends(shape, fold); !raw)
    return fail(raw.error().code, "--device ", device, ": ", raw.error().message,
                ": leave --device out");
  if (layer.chosen_there()) return {};  // of which choice_bytes() has said so
  fold.key_format = layer.sealed.key_format;
  fold.value_format = layer.sealed.value_format;
  const Status coded = device_attends(shape, fold);
  if (coded) return {};
  const bool needs_choice = fold.key_format == RowFormat::lowrank && !no_choice.empty();
  return fail(coded.error().code, "--device ", device,
              " with keys.compress = ", method.compress.of(Side::keys).name(),
              ", values.compress = ", method.compress.of(Side::values).name(), ": ",
              coded.error().message, needs_choice ? ", and " + no_choice : "", ": change those, ",
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
