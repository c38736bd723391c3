#include "kernels/cuda/fold_attention.h"

#include <cstring>

#include "kernels/cuda/attend.h"
#include "kernels/cuda/check.h"
#include "kernels/cuda/make_current.h"

namespace thermocline::cuda {
namespace {

std::size_t query_floats(HeadShape shape) { return std::size_t{shape.heads} * shape.key_dim; }

// Of `folds` states.
States states_at(std::byte* memory, HeadShape shape, std::size_t folds) {
  States states;
  states.max = reinterpret_cast<float*>(memory);
  states.sum = states.max + folds * shape.heads;
  states.acc = states.sum + folds * shape.heads;
  return states;
}

}  // namespace

Result<std::unique_ptr<FoldAttention>> FoldAttention::create(std::uint32_t number,
                                                             std::uint64_t bytes,
                                                             std::uint64_t outbox_bytes) {
  TL_CHECK(outbox_bytes % kWorkApartBytes == 0);
  const std::uint64_t all = outbox_bytes + bytes;
  TL_TRY(make_current(number));
  TL_TRY_ASSIGN(Stream stream, Stream::create());
  std::unique_ptr<FoldAttention> made(
      new FoldAttention(number, bytes, outbox_bytes, std::move(stream)));
  TL_TRY_ASSIGN(made->device_, take_device_bytes(all, "taking device memory to attend in"));
  TL_TRY_ASSIGN(made->pinned_, take_pinned_bytes(all));
  return made;
}

// What is queued reads and writes memory that goes now.
FoldAttention::~FoldAttention() {
  if (queued_) static_cast<void>(stream_.wait());
}

FoldAttention::Parts FoldAttention::pack(HeadShape shape, std::span<const HeadFold> folds,
                                         std::uint64_t sent, std::size_t queries,
                                         std::size_t blocks) {
  Parts parts;
  parts.queries_at = outbox_bytes_;
  parts.folds_at =
      parts.queries_at + round_up(queries * query_floats(shape) * sizeof(float), kWorkApartBytes);
  parts.blocks_at = parts.folds_at + round_up(folds.size() * sizeof(HeadFold), kWorkApartBytes);
  parts.states_at = parts.blocks_at + round_up(blocks * sizeof(BlockView), kWorkApartBytes);
  parts.end = parts.states_at +
              folds.size() * shape.heads * (2 + std::size_t{shape.value_dim}) * sizeof(float);
  TL_CHECK(parts.end - parts.queries_at <= bytes_);
  std::byte *const here = pinned_.get(), *const there = device_.get();
  const auto is_sent = [&](const std::byte* row) { return row >= here && row < here + sent; };
  std::size_t query_at = parts.queries_at, block_at = parts.blocks_at;
  const float* last = nullptr;
  for (std::size_t i = 0; i < folds.size(); ++i) {
    HeadFold fold = folds[i];
    if (fold.query != last) {
      last = fold.query;
      std::memcpy(here + query_at, last, query_floats(shape) * sizeof(float));
      query_at += query_floats(shape) * sizeof(float);
    }
    fold.query = reinterpret_cast<const float*>(there + query_at) - query_floats(shape);
    TL_CHECK(!fold.fold.scored);
    const std::byte* const blocks_there = there + block_at;
    for (BlockView block : fold.fold.blocks) {
      TL_CHECK(block.log_weight == nullptr);
      if (sent > 0) {
        TL_CHECK(is_sent(block.key) && is_sent(block.value));
        block.key = there + (block.key - here);
        block.value = there + (block.value - here);
      }
      std::memcpy(here + block_at, &block, sizeof block);
      block_at += sizeof block;
    }
    fold.fold.blocks = {reinterpret_cast<const BlockView*>(blocks_there), fold.fold.blocks.size()};
    std::memcpy(here + parts.folds_at + i * sizeof(HeadFold), &fold, sizeof(HeadFold));
  }
  return parts;
}

Status FoldAttention::copy_over(std::size_t first, std::size_t last, const char* call) {
  return stream_.copy(device_.get() + first, pinned_.get() + first, last - first,
                      cudaMemcpyHostToDevice, call);
}

Result<std::size_t> FoldAttention::begin(HeadShape shape, std::span<const HeadFold> folds,
                                         std::uint64_t sent) {
  TL_CHECK(!folds.empty());
  TL_CHECK(sent <= outbox_bytes_);
  if (queued_) TL_TRY(finish());
  std::size_t count = 0, queries = 0, blocks = 0;
  while (count < folds.size()) {
    const bool other = count == 0 || folds[count].query != folds[count - 1].query;
    const std::size_t more = folds[count].fold.blocks.size();
    if (attention_bytes(shape, queries + other, count + 1, blocks + more) > bytes_) break;
    queries += other;
    blocks += more;
    ++count;
  }
  TL_CHECK(count > 0);
  const Parts parts = pack(shape, folds.first(count), sent, queries, blocks);
  TL_TRY(make_current(number_));
  queued_ = true;  // also where only a part of it comes to be
  std::byte *const here = pinned_.get(), *const there = device_.get();
  if (sent > 0) TL_TRY(copy_over(0, sent, "copying rows to a device"));
  TL_TRY(copy_over(parts.queries_at, parts.states_at, "copying queries to a device"));
  TL_TRY(attend(stream_, shape, {reinterpret_cast<const HeadFold*>(there + parts.folds_at), count},
                states_at(there + parts.states_at, shape, count)));
  TL_TRY(stream_.copy(here + parts.states_at, there + parts.states_at, parts.end - parts.states_at,
                      cudaMemcpyDeviceToHost, "copying states from a device"));
  const cuda::States states = states_at(here + parts.states_at, shape, count);
  states_ = {states.max, states.sum, states.acc, parts.end - parts.queries_at};
  return count;
}

Result<DeviceAttention::States> FoldAttention::finish() {
  TL_TRY(stream_.wait());
  queued_ = false;
  return states_;
}

}  // namespace thermocline::cuda
