// Lists chosen and attended by a device: what they ask and where their runs are go over in one
// copy, then everything is queued that choose(), attend() and merge() launch, and a state a list
// comes back. Where rows come packed, it stops in between: which those are comes back first.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kernels/cuda/choice.h"
#include "kernels/cuda/device_bytes.h"
#include "kernels/cuda/pinned_bytes.h"
#include "kernels/cuda/stream.h"
#include "kernels/device_choice.h"

namespace thermocline::cuda {

class ChoiceQueue final : public DeviceChoice {
 public:
  // Of device `number`'s memory, and pinned.
  static Result<std::unique_ptr<ChoiceQueue>> create(std::uint32_t number,
                                                     const ChoiceBytes& bytes);
  // That lists of this shape are chosen in.
  static ChoiceBytes bytes(const ChoiceShape& shape);
  ~ChoiceQueue() override;

  Result<std::size_t> begin(const ChoiceFormat& format,
                            std::span<const ChoiceQuestion> lists) override;
  Result<std::span<const std::span<const std::uint32_t>>> missed() override;
  Result<std::span<std::byte>> room(std::size_t bytes) override;
  Status send(std::span<const PackedRows> packed) override;
  Result<Answer> finish() override;
  Result<std::vector<RowSet>> chosen(std::size_t i, bool by_codes) override;

 private:
  ChoiceQueue(std::uint32_t number, const ChoiceBytes& bytes, Stream stream)
      : number_(number), bytes_(bytes), stream_(std::move(stream)) {}
  // Writes what is asked to pinned memory, with the addresses that it will have.
  void pack(std::span<const ChoiceQuestion> lists);
  Status queue_choice();
  Status queue_attention();
  Status copy_back(std::size_t first, std::size_t last, const char* call);
  Status wait();
  // What came back to pinned memory, as it is handed out.
  void name_states();
  void name_missed();

  std::uint32_t number_;
  ChoiceBytes bytes_;
  Stream stream_;
  DeviceBytes device_;
  PinnedBytes pinned_;
  bool queued_ = false;
  std::uint32_t step_ = 0;  // one more with each begin()
  ChoiceShape shape_;       // of what was begun last
  ChoiceBoard board_;
  std::vector<std::uint32_t> rows_;  // of its lists
  std::vector<AttnState> states_;
  std::vector<std::span<const std::uint32_t>> missed_;
  std::size_t packed_bytes_ = 0;  // of the outbox, since it was last waited for
  std::uint64_t due_ = 0;         // missed rows that were not sent yet
};

}  // namespace thermocline::cuda
