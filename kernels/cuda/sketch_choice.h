// Lists chosen and attended by a device: what they ask and where their runs are go over in one
// copy, then everything is queued that choose(), attend() and merge() launch, and a state a list
// comes back.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kernels/cuda/device_bytes.h"
#include "kernels/cuda/pinned_bytes.h"
#include "kernels/cuda/sketch.h"
#include "kernels/cuda/stream.h"
#include "kernels/device_choice.h"

namespace thermocline::cuda {

class SketchChoice final : public DeviceChoice {
 public:
  // Of device `number`'s memory, and pinned.
  static Result<std::unique_ptr<SketchChoice>> create(std::uint32_t number,
                                                      const ChoiceBytes& bytes);
  // That lists of this shape are chosen in.
  static ChoiceBytes bytes(const SketchShape& shape);
  ~SketchChoice() override;

  Result<std::size_t> begin(const SketchFormat& format,
                            std::span<const SketchQuestion> lists) override;
  Result<Answer> finish() override;
  Result<std::vector<RowSet>> chosen(std::size_t i, bool by_codes) override;

 private:
  SketchChoice(std::uint32_t number, const ChoiceBytes& bytes, Stream stream)
      : number_(number), bytes_(bytes), stream_(std::move(stream)) {}
  // Writes what is asked to pinned memory, with the addresses that it will have.
  void pack(std::span<const SketchQuestion> lists);
  Status queue();
  // The states in pinned memory, as they are handed out.
  void name_states();

  std::uint32_t number_;
  ChoiceBytes bytes_;
  Stream stream_;
  DeviceBytes device_;
  PinnedBytes pinned_;
  bool queued_ = false;
  std::uint32_t step_ = 0;  // one more with each begin()
  SketchShape shape_;       // of what was begun last
  SketchBoard board_;
  std::vector<std::uint32_t> rows_;  // of its lists
  std::vector<AttnState> states_;
};

}  // namespace thermocline::cuda
