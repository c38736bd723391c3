// A step's layers attended on the device, each in some twenty launches between those of its dense
// work: what it is told crosses in a copy, what the host wants of it comes back in one, and nobody
// waits. Every layer has its place in pinned memory for that, so that the host may be ahead.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kernels/cuda/choice_work.h"
#include "kernels/cuda/device_bytes.h"
#include "kernels/cuda/pinned_bytes.h"
#include "kernels/cuda/stream.h"
#include "kernels/cuda/turn.h"
#include "kernels/device_step.h"

namespace thermocline::cuda {

class StepAttention final : public DeviceStep {
 public:
  static Result<std::unique_ptr<StepAttention>> create(std::uint32_t number,
                                                       const StepBounds& bounds);
  static StepBytes bytes(const StepBounds& bounds);
  ~StepAttention() override;

  Status start(DeviceQueue& queue) override;
  Status begin(const RowsThere& at, const StepLayer& layer) override;
  Status choose(const ChoiceFormat& format, std::span<const ChoiceQuestion> questions,
                std::span<const std::uint32_t> of) override;
  Result<Steady> steady() override;
  Status give(std::uint32_t list, std::span<const AttnState> states) override;
  Status end() override;
  Result<std::span<const Answer>> finish() override;

 private:
  // Of the questions those that are chosen for together.
  struct Part {
    std::size_t first = 0, first_fold = 0;  // of the layer's questions; of its numbers of folds
    std::size_t shape = 0;                  // which of `shapes_`
  };
  struct Layer {
    TurnedLayer turned;
    std::uint32_t lists = 0, folds = 0;  // lists; of each, folds of what is attended always
    std::uint32_t runs = 0;              // of a question, at most
    std::size_t questions = 0;
    std::vector<Part> parts;
    float* mixed = nullptr;
    bool begun = false, asked_elsewhere = false;  // it is queued; between steady() and end()
  };

  StepAttention(std::uint32_t number, const StepBounds& bounds);
  Status wait();
  Status queue_begin();
  Status queue_part(const Part& part);
  // Where the layer in hand has its place, and all have the host's view, and work.
  std::byte* piece_here() const { return pinned_.get() + order_ * piece_bytes_; }
  std::byte* piece_there() const { return device_.get() + order_ * piece_bytes_; }
  std::byte* view_here() const { return pinned_.get() + bounds_.layers * piece_bytes_; }
  std::byte* view_there() const { return device_.get() + bounds_.layers * piece_bytes_; }
  std::byte* work_there() const { return view_there() + view_bytes_; }

  std::uint32_t number_;
  StepBounds bounds_;
  std::size_t piece_bytes_ = 0, view_bytes_ = 0, work_bytes_ = 0;
  std::size_t most_work_bytes_ = 0;  // of those, to choose in
  DeviceBytes device_;               // pieces, the host's view of a layer, work
  PinnedBytes pinned_;               // pieces, the host's view of a layer
  Stream* stream_ = nullptr;         // of the step
  std::size_t order_ = 0;            // of the layer in hand
  Layer layer_;
  std::uint32_t step_ = 1u << 31;  // slots know those of others (choice_queue.h) by their numbers
  // By layer and part: as they were the last time, to the byte, if they are the same; what is
  // launched is then the same as well (recurring.h).
  std::vector<ChoiceShape> shapes_;
  std::size_t next_shape_ = 0;
  std::vector<Answer> answers_;
  std::vector<AttnState> states_;  // the host's view of a list
};

}  // namespace thermocline::cuda
