// Rows at home elsewhere than on a device, on their way to it: what is attended there in one
// launch. They are gathered in pinned memory, one after the other, and cross in one copy.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kernels/device.h"
#include "runtime/cache_plan.h"
#include "tiers/reading.h"

namespace thermocline {

// One thread drives it; rows of different folds may be gathered on several. The device outlives it.
class FetchLaunch {
 public:
  static Result<FetchLaunch> open(Device* device, const CachePlan::Fetch& plan);

  // Room to be given so many folds between two clear()s.
  void reserve(std::size_t folds) { destinations_.reserve(folds); }
  // False: there is no room for one more. `query` as HeadFold has it; `partial`: the number of the
  // first of the states that the fold becomes. What is scored is not attended there, and has room.
  bool add(const ReadyFold& fold, const float* query, std::uint32_t partial);
  // Where to pack_rows() of each fold that was given, before begin(); null: it is the host's to
  // attend.
  std::span<std::byte* const> destinations() const { return destinations_; }

  bool empty() const { return folds_.empty(); }
  std::uint64_t row_bytes() const { return row_bytes_; }                 // of the rows that cross
  std::span<const std::uint32_t> partials() const { return partials_; }  // of the states
  // Sends what was added: it is there to be finished then, until clear().
  Status begin(HeadShape shape);
  Result<DeviceAttention::States> finish() { return attention_->finish(); }
  void clear();

 private:
  FetchLaunch() = default;

  std::unique_ptr<DeviceAttention> attention_;
  std::size_t most_folds_ = 0;
  std::vector<HeadFold> folds_;
  std::vector<BlockView> blocks_;  // of the folds, which refer to them: it never grows
  std::vector<std::uint32_t> partials_;
  std::vector<std::byte*> destinations_;
  std::uint64_t sent_ = 0, row_bytes_ = 0;  // of the outbox, with gaps and without
};

}  // namespace thermocline
