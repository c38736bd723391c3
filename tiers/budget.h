// The ledger: memory and disk are reserved here before they are taken, and every byte says what
// for.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>

#include "kernels/base/error.h"
#include "tiers/tier.h"

namespace thermocline {

// What bytes are for. The names are printed in reports and errors.
enum class Purpose : std::uint8_t {
  tail,        // raw rows that are not sealed yet, and what attention those got if it is counted
  rows,        // sealed rows at home in the tier
  row_cache,   // copies of rows whose home is lower, and where each is
  index,       // what retrieval searches
  sealing,     // rows on their way into segments or a session's file, and the tail that they leave
  staging,     // pages and rows on their way up, and what a device attends with
  tables,      // of sealed rows: their positions, their pages' checksums
  selections,  // what a step chose, for the next one
  saved,       // of a session's file: headers, text, tails, where everything is; and what its last
               // save refers to that nobody holds
  caches,      // of an engine's ledger: what its caches have,
  weights,     // what layers that a device computes are there,
  activations  // and what it computes them in
};
inline constexpr std::size_t kPurposes = 12;
std::string_view name_of(Purpose purpose);

class Budget;

// Bytes that are promised: released when it goes. Move-only; does not outlive its Budget.
class Reservation {
 public:
  Reservation() = default;
  Reservation(Reservation&& other) noexcept;
  Reservation& operator=(Reservation&& other) noexcept;
  ~Reservation();

  std::uint64_t bytes() const { return bytes_; }
  // To a new size. Growing may be refused (exhausted; the size is then what it was); shrinking is
  // not. Not concurrently on one Reservation, and not on an empty one.
  Status resize(std::uint64_t bytes);

 private:
  friend class Budget;
  Reservation(Budget* budget, Tier tier, Purpose purpose, std::uint64_t bytes)
      : budget_(budget), tier_(tier), purpose_(purpose), bytes_(bytes) {}

  Budget* budget_ = nullptr;
  Tier tier_ = Tier::host;
  Purpose purpose_ = Purpose::rows;
  std::uint64_t bytes_ = 0;
};

// What one tier holds now, and the most that it held.
struct TierUsage {
  std::uint64_t total_bytes = 0, held_bytes = 0, peak_bytes = 0;
  std::array<std::uint64_t, kPurposes> held{}, peak{};  // by purpose; peaks need not coincide

  std::uint64_t free_bytes() const { return total_bytes - held_bytes; }
};

// Safe to call from any thread: one mutex, a leaf in the order of locks, but for a share's, which
// is before its whole's. Not for the path of a token: reservations are made when a timeline starts
// or a segment is sealed.
class Budget {
 public:
  static constexpr std::uint64_t kUnlimited = std::uint64_t{1} << 62;

  explicit Budget(const std::array<std::uint64_t, kTiers>& total_bytes);
  // A part of `whole`, which outlives it: `planned` bytes are its own as long as it lives, whether
  // it holds them or not. Up to `total_bytes` it takes what else is free in the whole, and gives it
  // back. exhausted: less than is planned is free there.
  static Result<std::unique_ptr<Budget>> share(
      Budget* whole, const std::array<std::uint64_t, kTiers>& planned,
      const std::array<std::uint64_t, kTiers>& total_bytes);
  Budget(const Budget&) = delete;
  Budget& operator=(const Budget&) = delete;
  ~Budget();  // everything was given back

  // exhausted: what is needed, what is free, what holds the rest, and the flag to raise; or, of a
  // share, the limit of the whole.
  Result<Reservation> reserve(Tier tier, Purpose purpose, std::uint64_t bytes);
  TierUsage usage(Tier tier) const;
  // From now on the peak of a purpose: what was held under it is counted under others.
  void restart_peak(Tier tier, Purpose purpose);
  // free + held = total, in every tier, by counts that are kept apart; and a share has of its whole
  // what it holds, and no less than was planned.
  void check_conservation() const;

 private:
  friend class Reservation;
  Status grow(Tier tier, Purpose purpose, std::uint64_t bytes);
  void shrink(Tier tier, Purpose purpose, std::uint64_t bytes);
  // Of the whole, what a tier that holds so much has.
  std::uint64_t due(std::size_t tier, std::uint64_t held_bytes) const {
    return std::max(planned_[tier], held_bytes);
  }

  mutable std::mutex mutex_;
  std::array<TierUsage, kTiers> tiers_;
  std::array<std::uint64_t, kTiers> free_;
  std::array<std::uint64_t, kTiers> planned_{};
  Budget* whole_ = nullptr;                   // of which this is a share; null: of nothing
  std::array<Reservation, kTiers> of_whole_;  // by tier
};

}  // namespace thermocline
