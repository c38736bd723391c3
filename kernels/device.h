// A GPU, as rooms that know nothing of CUDA see it: its memory, copies to and from it, attention
// over rows that lie there, choosing among them (kernels/device_choice.h), a prefill's attention
// (kernels/device_prefill.h), and the dense work of layers whose weights do.
// kernels/cuda/device.cpp has one; a build without CUDA links kernels/no_cuda/device.cpp in its
// place, which refuses.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "kernels/attend.h"
#include "kernels/base/buffer.h"
#include "kernels/base/error.h"
#include "kernels/base/view.h"
#include "kernels/device_choice.h"
#include "kernels/device_prefill.h"
#include "kernels/device_step.h"
#include "kernels/layer_weights.h"
#include "kernels/matvec.h"

namespace thermocline {

// Attention by a device over rows that lie in its memory, or that it is sent, in working memory
// that is taken once: as many bytes there, and as many on the host, pinned.
class DeviceAttention {
 public:
  virtual ~DeviceAttention() = default;

  // Pinned memory of the host, aligned to kWorkApartBytes, for rows that begin() is to send. Not to
  // be written to between that and finish().
  virtual std::span<std::byte> outbox() = 0;

  // Queues as many of `folds`, from the first on, as there is working memory for, in one launch,
  // and returns how many: one at least. Rows stay as they are until finish(); blocks and queries
  // are in host memory and may go when this returns. No fold is scored or weighted. What was queued
  // before is waited for, if finish() was not.
  // `sent` is 0: rows are where the device has them. Else they all lie in the first `sent` bytes of
  // outbox(), which are copied to the device before.
  virtual Result<std::size_t> begin(HeadShape shape, std::span<const HeadFold> folds,
                                    std::uint64_t sent) = 0;

  // Of fold i and query head h, max and sum are at [i][h], acc at [i][h][value_dim], as AttendOps
  // would leave them but for rounding: a fold's bits depend on its rows by rank alone.
  struct States {
    const float *max = nullptr, *sum = nullptr, *acc = nullptr;  // on the host, until begin()
    std::uint64_t crossed_bytes = 0;  // beside what was sent: queries and lists, and these back
  };
  // Waits for what begin() queued.
  virtual Result<States> finish() = 0;
};

// In working memory whatever begins is aligned for the widest load.
inline constexpr std::size_t kWorkApartBytes = 256;

// Memory for so many slots of a list that may come to have so many rows (ListSlots).
constexpr std::uint64_t slot_bytes(std::uint32_t slots, std::uint32_t rows,
                                   std::uint32_t row_bytes) {
  return round_up(std::uint64_t{slots} * row_bytes, kWorkApartBytes) +
         round_up(rows * sizeof(std::int32_t), kWorkApartBytes) +
         2 * round_up(slots * sizeof(std::uint32_t), kWorkApartBytes) + kWorkApartBytes;
}

// Working memory for so many folds in one launch, of which so many different queries and blocks.
constexpr std::uint64_t attention_bytes(HeadShape shape, std::uint64_t queries, std::uint64_t folds,
                                        std::uint64_t blocks) {
  return round_up(queries * shape.heads * shape.key_dim * sizeof(float), kWorkApartBytes) +
         round_up(folds * sizeof(HeadFold), kWorkApartBytes) +
         round_up(blocks * sizeof(BlockView), kWorkApartBytes) +
         round_up(folds * shape.heads * (2 + shape.value_dim) * sizeof(float), kWorkApartBytes);
}

// The dense work of some layers by a device, and of the head after them, over rows of hidden state
// that lie there as long as no others do. A result's bits depend on its own row, and on whether
// there are more than kFewRows, whose products are of operands rounded to bf16. Host matrices are
// without gaps between rows.
class DeviceLayers {
 public:
  virtual ~DeviceLayers() = default;
  // Copies weights, which are then layer number 0, 1 ... Done when it returns.
  virtual Status add(const LayerWeights& weights) = 0;
  // Copies the head's, once.
  virtual Status add(const HeadWeights& weights) = 0;

  // Puts rows of hidden state [rows][width] there, in place of those before. Only queues, as
  // finish() does: what is given stays as it is until project(), read() or wait() has returned.
  virtual Status write(MatView<const float> hidden) = 0;
  // Queries, keys and values [rows][heads * dim] of the rows there, before their rotary embedding.
  // They are here when it returns.
  virtual Status project(std::size_t layer, MatView<float> q, MatView<float> k,
                         MatView<float> v) = 0;
  // mixed [rows][q_heads * value_dim]: what attention gave; added to the rows there, as is the
  // feed-forward part.
  virtual Status finish(std::size_t layer, MatView<const float> mixed) = 0;
  // The same two of what stays there, for whoever queues between them by queue(). Both only queue.
  virtual Result<RowsThere> project(std::size_t layer) = 0;
  virtual Status finish(std::size_t layer) = 0;
  // The rows that are there, here when it returns.
  virtual Status read(MatView<float> hidden) = 0;
  // So many times what was queued between two waits had been queued before, and ran as a graph.
  virtual std::uint64_t replays() const = 0;
  // Logits [rows][vocabulary] of the rows there, which stay as they are; here when it returns. A
  // row's bits are always those of few.
  virtual Status head(MatView<float> logits) = 0;
  virtual Status wait() = 0;
  // That all of this is queued by.
  virtual DeviceQueue& queue() = 0;
};

// Device memory that a layer's weights take.
inline std::uint64_t layer_bytes(const LayerWeights& weights) {
  std::uint64_t bytes = 0;
  for (const auto matrix : kLayerMatrices)
    bytes += round_up((weights.*matrix).bytes(), kWorkApartBytes);
  for (const auto vector : kLayerVectors)
    bytes += round_up((weights.*vector).size_bytes(), kWorkApartBytes);
  return bytes;
}

constexpr std::uint64_t rows_bytes(std::size_t rows, std::size_t cols) {
  return round_up(rows * cols * sizeof(float), kWorkApartBytes);
}
inline std::uint64_t head_bytes(const HeadWeights& weights) {
  return round_up(weights.output.bytes(), kWorkApartBytes) +
         round_up(weights.norm.size_bytes(), kWorkApartBytes);
}
// What the head's logits take, of as many rows as are multiplied at a time.
inline std::uint64_t logits_bytes(const HeadWeights& weights) {
  return rows_bytes(kFewRows, weights.output.rows);
}
// And so many rows on their way through layers.
constexpr std::uint64_t layers_work_bytes(const LayersShape& shape, std::size_t rows) {
  return 3 * rows_bytes(rows, shape.width) + 2 * rows_bytes(rows, shape.feed_forward) +
         rows_bytes(rows, shape.q) + rows_bytes(rows, shape.k) + rows_bytes(rows, shape.v) +
         rows_bytes(rows, shape.mixed);
}

// One thread at a time; its attention, choices, prefills and layers are of the same thread. Errors:
// exhausted, where it has no more memory; io, where it failed, as it then does from then on.
class Device {
 public:
  virtual ~Device() = default;
  virtual const std::string& name() const = 0;  // "cuda:0 (NVIDIA H200)"
  virtual std::uint32_t number() const = 0;     // by which it was opened
  virtual Result<std::uint64_t> free_bytes() const = 0;
  // Memory that the host cannot reach, aligned to 256 bytes; its content is undefined.
  virtual Result<std::byte*> take(std::uint64_t bytes) = 0;
  // What take() returned; nothing is queued that reads it.
  virtual void give(std::byte* memory) = 0;
  // Memory of the host, pinned, that the device reads by the same address; and gives back.
  virtual Result<std::byte*> take_pinned(std::uint64_t bytes) = 0;
  virtual void give_pinned(std::byte* memory) = 0;
  // Done when it returns.
  virtual Status write(std::byte* to, std::span<const std::byte> from) = 0;
  // From its memory to its memory. Done when it returns.
  virtual Status copy(std::byte* to, const std::byte* from, std::uint64_t bytes) = 0;
  // Only queued: `to` is filled once wait() has returned.
  virtual Status read(std::span<std::byte> to, const std::byte* from) = 0;
  virtual Status wait() = 0;
  // The device outlives it. `bytes`: attention_bytes() of one fold at least; `outbox_bytes`, a
  // multiple of kWorkApartBytes, are taken beside them.
  virtual Result<std::unique_ptr<DeviceAttention>> open_attention(std::uint64_t bytes,
                                                                  std::uint64_t outbox_bytes) = 0;
  // `bytes`: choice_bytes() of one list at least. The device outlives it.
  virtual Result<std::unique_ptr<DeviceChoice>> open_choice(const ChoiceBytes& bytes) = 0;
  // `bytes`: prefill_bytes() of the largest layer's shape. The device outlives it.
  virtual Result<std::unique_ptr<DevicePrefill>> open_prefill(const PrefillBytes& bytes) = 0;
  // `bounds`: of which step_bytes() are taken. The device outlives it.
  virtual Result<std::unique_ptr<DeviceStep>> open_step(const StepBounds& bounds) = 0;
  // For at most `rows` rows at a time, of no layer yet. The device outlives it.
  virtual Result<std::unique_ptr<DeviceLayers>> open_layers(const LayersShape& shape,
                                                            std::size_t rows) = 0;
};

// Device `number` of this machine. unsupported: this build has no CUDA. not_found: the machine has
// no such device, or no driver.
Result<std::unique_ptr<Device>> open_device(std::uint32_t number);

// Whether a device attends folds like this one, of which only its formats matter, for heads of this
// shape: to be asked before rows go there. unsupported names the limit.
Status device_attends(HeadShape shape, const Fold& fold);

// What a device chooses in, among rows of this format, for so many such lists at a time.
// unsupported names what it does not take: to be asked before an index goes there.
Result<ChoiceBytes> choice_bytes(const ChoiceFormat& format, const ChoiceBounds& bounds,
                                 std::uint32_t lists);

// What a step within these bounds takes. unsupported: as device_attends(), and choice_bytes().
Result<StepBytes> step_bytes(const StepBounds& bounds);

}  // namespace thermocline
