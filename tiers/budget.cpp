#include "tiers/budget.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "tiers/size_text.h"

namespace thermocline {
namespace {

constexpr std::array<std::string_view, kPurposes> kPurposeNames = {
    "tail",   "rows",       "row_cache", "index",  "sealing", "staging",
    "tables", "selections", "saved",     "caches", "weights", "activations"};

std::string holders(const TierUsage& usage) {
  std::vector<std::size_t> order(kPurposes);
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return usage.held[a] > usage.held[b]; });
  std::string text;
  for (const std::size_t purpose : order) {
    if (usage.held[purpose] == 0) break;
    text += text.empty() ? "held: " : ", ";
    text += std::string(kPurposeNames[purpose]) + " " + size_text(usage.held[purpose]);
  }
  return text.empty() ? "nothing is held" : text;
}

}  // namespace

std::string_view name_of(Purpose purpose) {
  return kPurposeNames[static_cast<std::size_t>(purpose)];
}

Reservation::Reservation(Reservation&& other) noexcept
    : budget_(std::exchange(other.budget_, nullptr)),
      tier_(other.tier_),
      purpose_(other.purpose_),
      bytes_(std::exchange(other.bytes_, 0)) {}

Reservation& Reservation::operator=(Reservation&& other) noexcept {
  std::swap(budget_, other.budget_);
  std::swap(tier_, other.tier_);
  std::swap(purpose_, other.purpose_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

Reservation::~Reservation() {
  if (budget_) budget_->shrink(tier_, purpose_, bytes_);
}

Status Reservation::resize(std::uint64_t bytes) {
  TL_CHECK(budget_ != nullptr);
  if (bytes > bytes_) TL_TRY(budget_->grow(tier_, purpose_, bytes - bytes_));
  if (bytes < bytes_) budget_->shrink(tier_, purpose_, bytes_ - bytes);
  bytes_ = bytes;
  return {};
}

Budget::Budget(const std::array<std::uint64_t, kTiers>& total_bytes) {
  for (std::size_t tier = 0; tier < kTiers; ++tier)
    tiers_[tier].total_bytes = free_[tier] = std::min(total_bytes[tier], kUnlimited);
}

Result<std::unique_ptr<Budget>> Budget::share(
    Budget* whole, const std::array<std::uint64_t, kTiers>& planned,
    const std::array<std::uint64_t, kTiers>& total_bytes) {
  auto part = std::make_unique<Budget>(total_bytes);
  part->whole_ = whole;
  for (const Tier tier : kAllTiers) {
    const auto t = static_cast<std::size_t>(tier);
    part->planned_[t] = planned[t];
    TL_TRY_ASSIGN(part->of_whole_[t], whole->reserve(tier, Purpose::caches, planned[t]));
  }
  return part;
}

Budget::~Budget() {
  for (const TierUsage& tier : tiers_) TL_CHECK(tier.held_bytes == 0);
}

Result<Reservation> Budget::reserve(Tier tier, Purpose purpose, std::uint64_t bytes) {
  TL_TRY(grow(tier, purpose, bytes));
  return Reservation(this, tier, purpose, bytes);
}

TierUsage Budget::usage(Tier tier) const {
  std::lock_guard lock(mutex_);
  return tiers_[static_cast<std::size_t>(tier)];
}

void Budget::restart_peak(Tier tier, Purpose purpose) {
  const auto p = static_cast<std::size_t>(purpose);
  std::lock_guard lock(mutex_);
  TierUsage& usage = tiers_[static_cast<std::size_t>(tier)];
  usage.peak[p] = usage.held[p];
}

void Budget::check_conservation() const {
  std::lock_guard lock(mutex_);
  for (std::size_t i = 0; i < kTiers; ++i) {
    const TierUsage& tier = tiers_[i];
    TL_CHECK(free_[i] + tier.held_bytes == tier.total_bytes);
    TL_CHECK(std::accumulate(tier.held.begin(), tier.held.end(), std::uint64_t{0}) ==
             tier.held_bytes);
    TL_CHECK(tier.peak_bytes >= tier.held_bytes && tier.peak_bytes <= tier.total_bytes);
    TL_CHECK(!whole_ || of_whole_[i].bytes() == due(i, tier.held_bytes));
  }
}

Status Budget::grow(Tier tier, Purpose purpose, std::uint64_t bytes) {
  const auto t = static_cast<std::size_t>(tier);
  const auto p = static_cast<std::size_t>(purpose);
  std::lock_guard lock(mutex_);
  TierUsage& usage = tiers_[t];
  if (bytes > free_[t])
    return fail(ErrorCode::exhausted, name_of(tier), ": ", name_of(purpose), " needs ",
                size_text(bytes), ", ", size_text(free_[t]), " of ", size_text(usage.total_bytes),
                " is free (", holders(usage), "): raise ", flag_of(tier), " by ",
                size_text(bytes - free_[t]));
  const std::uint64_t due_bytes = due(t, usage.held_bytes + bytes);
  if (whole_ && due_bytes > of_whole_[t].bytes() && !of_whole_[t].resize(due_bytes)) {
    const TierUsage of_all = whole_->usage(tier);
    return fail(ErrorCode::exhausted, name_of(tier), ": ", name_of(purpose), " needs ",
                size_text(due_bytes - of_whole_[t].bytes()), " more than this cache planned, and ",
                size_text(of_all.free_bytes()), " of ", size_text(of_all.total_bytes),
                " is free of what its engine gives all caches: raise ", limit_of(tier),
                ", or let another cache go");
  }
  free_[t] -= bytes;
  usage.held_bytes += bytes;
  usage.held[p] += bytes;
  usage.peak_bytes = std::max(usage.peak_bytes, usage.held_bytes);
  usage.peak[p] = std::max(usage.peak[p], usage.held[p]);
  return {};
}

void Budget::shrink(Tier tier, Purpose purpose, std::uint64_t bytes) {
  const auto t = static_cast<std::size_t>(tier);
  const auto p = static_cast<std::size_t>(purpose);
  std::lock_guard lock(mutex_);
  TL_CHECK(tiers_[t].held[p] >= bytes && tiers_[t].held_bytes >= bytes);
  tiers_[t].held[p] -= bytes;
  tiers_[t].held_bytes -= bytes;
  free_[t] += bytes;
  if (whole_) TL_CHECK(of_whole_[t].resize(due(t, tiers_[t].held_bytes)).has_value());  // shrinks
}

}  // namespace thermocline
