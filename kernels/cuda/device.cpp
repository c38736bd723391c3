// A CUDA device, as kernels/device.h has it.
#include "kernels/device.h"

#include <utility>

#include "kernels/cuda/attend.h"
#include "kernels/cuda/check.h"
#include "kernels/cuda/choice_queue.h"
#include "kernels/cuda/dense_layers.h"
#include "kernels/cuda/fold_attention.h"
#include "kernels/cuda/make_current.h"
#include "kernels/cuda/pinned_bytes.h"
#include "kernels/cuda/prefill_queue.h"
#include "kernels/cuda/step_attention.h"
#include "kernels/cuda/stream.h"

namespace thermocline {
namespace {

class CudaDevice final : public Device {
 public:
  CudaDevice(std::uint32_t number, std::string name, cuda::Stream stream)
      : number_(number), name_(std::move(name)), copies_(std::move(stream)) {}

  const std::string& name() const override { return name_; }
  std::uint32_t number() const override { return number_; }

  Result<std::uint64_t> free_bytes() const override {
    TL_TRY(cuda::make_current(number_));
    std::size_t free = 0, total = 0;
    TL_TRY(cuda::check(cudaMemGetInfo(&free, &total), "asking for free device memory"));
    return free;
  }

  Result<std::byte*> take(std::uint64_t bytes) override {
    TL_TRY(cuda::make_current(number_));
    void* memory = nullptr;
    TL_TRY(cuda::check(cudaMalloc(&memory, bytes), "taking device memory"));
    return static_cast<std::byte*>(memory);
  }

  // What could fail here is an earlier kernel; whoever waited has been told.
  void give(std::byte* memory) override {
    static_cast<void>(cuda::make_current(number_));
    static_cast<void>(cuda::check(cudaFree(memory), "giving device memory back"));
  }

  Result<std::byte*> take_pinned(std::uint64_t bytes) override {
    TL_TRY(cuda::make_current(number_));
    TL_TRY_ASSIGN(cuda::PinnedBytes memory, cuda::take_pinned_bytes(bytes));
    return memory.release();
  }

  void give_pinned(std::byte* memory) override {
    static_cast<void>(cuda::make_current(number_));
    cuda::FreePinned()(memory);
  }

  Status write(std::byte* to, std::span<const std::byte> from) override {
    TL_TRY(queue(to, from.data(), from.size(), cudaMemcpyHostToDevice));
    return wait();
  }

  Status copy(std::byte* to, const std::byte* from, std::uint64_t bytes) override {
    TL_TRY(queue(to, from, bytes, cudaMemcpyDeviceToDevice));
    return copies_.wait();
  }

  Status read(std::span<std::byte> to, const std::byte* from) override {
    return queue(to.data(), from, to.size(), cudaMemcpyDeviceToHost);
  }

  Status wait() override { return copies_.wait(); }

  Result<std::unique_ptr<DeviceAttention>> open_attention(std::uint64_t bytes,
                                                          std::uint64_t outbox_bytes) override {
    return cuda::FoldAttention::create(number_, bytes, outbox_bytes);
  }

  Result<std::unique_ptr<DeviceChoice>> open_choice(const ChoiceBytes& bytes) override {
    return cuda::ChoiceQueue::create(number_, bytes);
  }

  Result<std::unique_ptr<DeviceStep>> open_step(const StepBounds& bounds) override {
    return cuda::StepAttention::create(number_, bounds);
  }

  Result<std::unique_ptr<DevicePrefill>> open_prefill(const PrefillBytes& bytes) override {
    return cuda::PrefillQueue::create(number_, bytes);
  }

  Result<std::unique_ptr<DeviceLayers>> open_layers(const LayersShape& shape,
                                                    std::size_t rows) override {
    return cuda::DenseLayers::create(number_, shape, rows);
  }

 private:
  Status queue(std::byte* to, const std::byte* from, std::uint64_t bytes, cudaMemcpyKind kind) {
    TL_TRY(cuda::make_current(number_));
    return cuda::check(cudaMemcpyAsync(to, from, bytes, kind, copies_.handle()), "copying rows");
  }

  std::uint32_t number_;
  std::string name_;
  cuda::Stream copies_;
};

}  // namespace

Result<std::unique_ptr<Device>> open_device(std::uint32_t number) {
  int devices = 0;
  TL_TRY(cuda::check(cudaGetDeviceCount(&devices), "looking for CUDA devices"));
  if (number >= static_cast<std::uint32_t>(devices))
    return fail(ErrorCode::not_found, "this machine has ", devices, " CUDA device",
                devices == 1 ? "" : "s", ", counted from 0: there is no ", number);
  TL_TRY(cuda::make_current(number));
  cudaDeviceProp facts = {};
  TL_TRY(cuda::check(cudaGetDeviceProperties(&facts, static_cast<int>(number)),
                     "asking what a device is"));
  TL_TRY_ASSIGN(cuda::Stream copies, cuda::Stream::create());
  std::string name = "cuda:" + std::to_string(number) + " (" + facts.name + ")";
  return std::make_unique<CudaDevice>(number, std::move(name), std::move(copies));
}

PrefillBytes prefill_bytes(const PrefillShape& shape, std::uint32_t row_bytes,
                           std::uint64_t piece) {
  return cuda::PrefillQueue::bytes(shape, row_bytes, piece);
}

Status device_attends(HeadShape shape, const Fold& fold) { return cuda::can_attend(shape, fold); }

Result<ChoiceBytes> choice_bytes(const ChoiceFormat& format, const ChoiceBounds& bounds,
                                 std::uint32_t lists) {
  const cuda::ChoiceShape shape = cuda::shape_within(format, bounds, lists);
  TL_TRY(cuda::can_choose(shape));
  return cuda::ChoiceQueue::bytes(shape);
}

Result<StepBytes> step_bytes(const StepBounds& bounds) {
  TL_TRY(cuda::can_attend(bounds.head, Fold()));
  return cuda::StepAttention::bytes(bounds);
}

}  // namespace thermocline
