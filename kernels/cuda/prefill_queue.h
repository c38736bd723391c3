// A prefill's attention, queued: what is sent crosses on one stream while what was sent before is
// attended on another.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kernels/cuda/device_bytes.h"
#include "kernels/cuda/event.h"
#include "kernels/cuda/pinned_bytes.h"
#include "kernels/cuda/prefill.h"
#include "kernels/cuda/stream.h"
#include "kernels/device_prefill.h"

namespace thermocline::cuda {

class PrefillQueue final : public DevicePrefill {
 public:
  // On device `number`.
  static Result<std::unique_ptr<PrefillQueue>> create(std::uint32_t number,
                                                      const PrefillBytes& bytes);
  ~PrefillQueue() override;

  Status begin(const PrefillShape& shape) override;
  Result<std::span<std::byte>> outbox() override;
  Status send_queries(std::uint32_t first, std::uint32_t rows) override;
  Status attend(const StretchFormat& format, std::span<const RowStretch> stretches,
                std::uint64_t sent) override;
  Result<MatView<const float>> results(std::uint32_t first) override;

  // What prefill_bytes() says.
  static PrefillBytes bytes(const PrefillShape& shape, std::uint32_t row_bytes,
                            std::uint64_t piece);

 private:
  struct Piece {  // of what is sent: here and there, first rows, then the lists of them
    std::byte *here = nullptr, *there = nullptr;
    Event copied, used;  // by the device
  };

  PrefillQueue(std::uint32_t number, const PrefillBytes& bytes, Stream copies, Stream work)
      : number_(number), bytes_(bytes), copies_(std::move(copies)), work_(std::move(work)) {}
  Status wait();
  Piece& turn();  // the piece whose turn it is, and the other one's turn is next
  // From a piece to a piece, or from a piece to where it stays; and work that is queued afterwards
  // comes after it.
  Status copy_over(std::byte* there, const std::byte* here, std::size_t bytes);
  // Writes the lists to where they cross from.
  PrefillLaunch list(const StretchFormat& format, std::span<const RowStretch> stretches,
                     std::uint64_t sent, const Piece& piece) const;
  std::uint32_t rows_of_results() const;  // in a piece
  Status queue_results(std::uint32_t first);

  std::uint32_t number_;
  PrefillBytes bytes_;
  Stream copies_, work_;
  DeviceBytes device_;
  PinnedBytes pinned_;
  std::vector<Piece> pieces_;
  std::size_t next_ = 0;
  PrefillShape shape_;
  std::byte* queries_ = nullptr;
  PrefillStates states_;
};

}  // namespace thermocline::cuda
