// Folds attended by a device: queries and lists of rows go over in one copy, rows that are sent in
// another before it, one launch attends, states come back in one copy.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "kernels/cuda/device_bytes.h"
#include "kernels/cuda/pinned_bytes.h"
#include "kernels/cuda/stream.h"
#include "kernels/device.h"

namespace thermocline::cuda {

class FoldAttention final : public DeviceAttention {
 public:
  // Both numbers of bytes of device `number`'s memory, and as many pinned.
  static Result<std::unique_ptr<FoldAttention>> create(std::uint32_t number, std::uint64_t bytes,
                                                       std::uint64_t outbox_bytes);
  ~FoldAttention() override;

  std::span<std::byte> outbox() override { return {pinned_.get(), outbox_bytes_}; }
  Result<std::size_t> begin(HeadShape shape, std::span<const HeadFold> folds,
                            std::uint64_t sent) override;
  Result<States> finish() override;

 private:
  struct Parts {  // of either memory, behind the outbox: where what begins
    std::size_t queries_at = 0, folds_at = 0, blocks_at = 0, states_at = 0, end = 0;
  };

  FoldAttention(std::uint32_t number, std::uint64_t bytes, std::uint64_t outbox_bytes,
                Stream stream)
      : number_(number), bytes_(bytes), outbox_bytes_(outbox_bytes), stream_(std::move(stream)) {}
  // Writes queries, folds and blocks to pinned memory, with the addresses that they will have.
  Parts pack(HeadShape shape, std::span<const HeadFold> folds, std::uint64_t sent,
             std::size_t queries, std::size_t blocks);
  Status copy_over(std::size_t first, std::size_t last, const char* call);

  std::uint32_t number_;
  std::uint64_t bytes_, outbox_bytes_;
  Stream stream_;
  DeviceBytes device_;
  PinnedBytes pinned_;
  bool queued_ = false;
  States states_;
};

}  // namespace thermocline::cuda
