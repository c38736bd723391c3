#include "runtime/plan_limits.h"

#include <algorithm>
#include <memory>
#include <optional>

#include "kernels/device.h"
#include "runtime/segment_bytes.h"
#include "tiers/size_text.h"
#include "tiers/store/device_memory.h"
#include "tiers/store/device_stand_in.h"

namespace thermocline {
namespace {

// The most rows of one KV head, of all timelines: rows are numbered in 32 bits. What a plan
// multiplies them with, a layer's heads and bytes, is then far from 64 bits.
constexpr std::uint64_t kMostRows = std::uint64_t{1} << 31;
static_assert(kMostRows * kMaxHeads * 2 * kMaxHeadSize * sizeof(float) < std::uint64_t{1} << 54);

// What a device is to hold, of `most` that it may; 0: there is none.
Result<std::uint64_t> device_budget(const TierOptions& tiers, std::uint64_t most) {
  const bool sized = tiers.device_bytes != 0 && tiers.device_bytes != kAutoBytes;
  if (tiers.device == DeviceStandIn::kDevice) {
    if (sized) return tiers.device_bytes;
    return fail(ErrorCode::invalid_argument,
                "--device host is host memory that stands in for a GPU with as much as --kv-device "
                "says: give it a size");
  }
  if (tiers.device == "none") {
    if (tiers.device_bytes == 0) return 0;
    return fail(
        ErrorCode::invalid_argument,
        "--kv-device is of a device, and none is named: say --device cuda, or --device host, "
        "and host memory stands in for a GPU");
  }
  const std::optional<std::uint32_t> number = device_number(tiers.device);
  if (!number)
    return fail(ErrorCode::invalid_argument, "--device '", tiers.device,
                "' is not known (known: none, host, cuda, cuda:N)");
  if (tiers.device_bytes == 0)
    return fail(ErrorCode::invalid_argument, "--device ", tiers.device,
                " has nothing to hold: say --kv-device SIZE, or --kv-device auto");
  const Result<std::unique_ptr<Device>> device = open_device(*number);
  if (!device)
    return fail(device.error().code, "--device ", tiers.device, ": ", device.error().message,
                "; with --device host, host memory stands in for a GPU");
  if (sized) return tiers.device_bytes;
  TL_TRY_ASSIGN(const std::uint64_t free, (*device)->free_bytes());
  return std::min(free - free / 16, most);
}

// What stands in for a device is the host's memory.
std::uint64_t stand_in_bytes(const CachePlan& plan) {
  return plan.stores.device == DeviceStandIn::kDevice ? plan.home_bytes(Tier::device) : 0;
}

}  // namespace

Status check_rows(const CacheOptions& options, const Method& method) {
  // Whole blocks, as plan_sealed() counts them, and what else a timeline of one position has.
  const std::uint64_t of_one =
      blocks_of(options.max_positions) * kBlockRows + method.sink + kMaxStepRows;
  std::uint64_t rows = 0;
  if (!__builtin_mul_overflow(of_one, std::uint64_t{options.max_timelines}, &rows) &&
      rows <= kMostRows)
    return {};
  return fail(ErrorCode::invalid_argument, options.max_timelines, " timelines of ",
              options.max_positions, " positions are more than the ", kMostRows,
              " rows that a KV head of a layer may have: lower -c, or have fewer timelines");
}

Status check_course(const CacheOptions& options) {
  if (!options.course) return {};
  std::uint32_t at = options.course->resumed.positions;
  for (const std::uint32_t end : options.course->reads) {
    if (end < at)
      return fail(ErrorCode::invalid_argument, "a course that reads up to position ", end,
                  " when it is at ", at);
    at = end;
  }
  if (at <= options.max_positions) return {};
  return fail(ErrorCode::invalid_argument, "a course up to position ", at, " of a cache of ",
              options.max_positions);
}

std::uint64_t free_bytes(const Budget* whole, Tier tier) {
  return whole ? whole->usage(tier).free_bytes() : Budget::kUnlimited;
}

Result<StoreOptions> stores_for(const TierOptions& tiers, const SessionOptions& session,
                                const Budget* whole) {
  StoreOptions stores;
  TL_TRY_ASSIGN(stores.bytes[static_cast<std::size_t>(Tier::device)],
                device_budget(tiers, free_bytes(whole, Tier::device)));
  stores.device = tiers.device;
  stores.bytes[static_cast<std::size_t>(Tier::host)] = tiers.host_bytes;
  stores.directory = tiers.directory;
  stores.session = session.path;
  // A session is on the disk: without a budget for it, as large as it gets.
  stores.bytes[static_cast<std::size_t>(Tier::disk)] =
      tiers.disk_bytes == 0 && !session.path.empty() ? kAutoBytes : tiers.disk_bytes;
  return stores;
}

std::uint64_t beside_of(const CacheOptions& options, const CachePlan& plan) {
  return stand_in_bytes(plan) + plan.workspace_bytes() + options.beside_bytes +
         plan.allowance_bytes();
}

const char* fewer_positions(const CacheOptions& options) {
  if (!options.course) return "lower -c";
  const Course& course = *options.course;
  const std::uint32_t text = course.reads.empty() ? course.resumed.positions : course.reads.back();
  if (text >= options.max_positions / 2) return "take a shorter text";
  return "lower -n or -c";
}

Status check_machine(const CacheOptions& options, const CachePlan& plan,
                     std::uint64_t available_bytes) {
  const std::uint64_t needed = plan.host_bytes(), beside = beside_of(options, plan);
  if (beside <= available_bytes && needed <= available_bytes - beside) return {};
  // What is left of a budget caches rows.
  const bool lower_host = plan.row_cache_bytes > 0;
  return fail(ErrorCode::exhausted, "the KV cache for ", options.max_positions, " positions needs ",
              size_text(needed), " of host memory, beside ", size_text(beside),
              stand_in_bytes(plan) > 0 ? " in the device's stand-in and" : "",
              " to compute in, and this machine has ", size_text(available_bytes), " available: ",
              lower_host                      ? "lower --kv-host"
              : stand_in_bytes(plan) > 0      ? "lower --kv-device, or "
              : plan.bytes_of(Tier::disk) > 0 ? ""
                                              : "give --kv-disk SIZE to keep rows on disk, or ",
              lower_host ? "" : fewer_positions(options));
}

Status check_whole(const CacheOptions& options, const CachePlan& plan, const Budget* whole) {
  for (const Tier tier : kAllTiers) {
    const std::uint64_t needed = plan.needed_bytes()[static_cast<std::size_t>(tier)];
    if (needed <= free_bytes(whole, tier)) continue;
    // What is left of a budget caches rows.
    const bool lower_host = tier == Tier::host && plan.row_cache_bytes > 0;
    const TierUsage usage = whole->usage(tier);
    return fail(ErrorCode::exhausted, "the KV cache for ", options.max_positions,
                " positions needs ", size_text(needed), " of ", name_of(tier), ", and ",
                size_text(usage.free_bytes()), " of ", size_text(usage.total_bytes),
                " is free of what its engine gives all caches: raise ", limit_of(tier),
                ", let another cache go, or ",
                lower_host ? "lower --kv-host" : fewer_positions(options));
  }
  return {};
}

Status check_device(const TierOptions& tiers) {
  TL_TRY(device_budget(tiers, Budget::kUnlimited));
  return {};
}

}  // namespace thermocline
