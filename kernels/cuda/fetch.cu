#include "kernels/cuda/fetch.h"

#include "kernels/cuda/board.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/warp.h"

namespace thermocline::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kRowsABlock = kThreads / kWarp;  // a warp copies a row

// By all threads of a block: copies of rows that are others by now are none.
__device__ void forget_rows(const RowSlots& cache) {
  for (std::uint32_t slot = threadIdx.x; slot < cache.slots; slot += kListThreads) {
    if (cache.kept == 0) {
      cache.row_of[slot] = kNoRow;
      cache.used[slot] = 0;
    } else if (cache.row_of[slot] != kNoRow && cache.row_of[slot] >= cache.kept) {
      cache.slot_of[cache.row_of[slot]] = -1;
      cache.row_of[slot] = kNoRow;
    }
  }
  if (cache.kept > 0) return;
  for (std::uint32_t row = threadIdx.x; row < cache.rows; row += kListThreads)
    cache.slot_of[row] = -1;
  if (threadIdx.x == 0) *cache.hand = 0;
}

// Block (list): which chosen rows are missing, and which slots they take.
__global__ void __launch_bounds__(kListThreads)
    find_slots(SketchShape shape, const SketchList* lists, SketchBoard boards) {
  const SketchList& list = lists[blockIdx.x];
  const RowSlots& cache = list.cache;
  const RowSet* set = boards.sets + blockIdx.x * std::size_t{blocks_of(shape.most_rows)};
  std::uint32_t* const missed = boards.missed + blockIdx.x * std::size_t{shape.most_budget};

  forget_rows(cache);
  __syncthreads();
  std::uint32_t missing = 0;
  for (std::uint32_t first = 0; first < blocks_of(list.rows); first += kListThreads) {
    const std::uint32_t b = first + threadIdx.x;
    RowSet absent = 0;
    for (RowSet left = b < blocks_of(list.rows) ? set[b] : 0; left != 0; left &= left - 1) {
      const std::uint32_t row = b * kBlockRows + __ffsll(static_cast<long long>(left)) - 1;
      const std::int32_t slot = cache.slot_of[row];
      if (slot < 0)
        absent |= left & (~left + 1);
      else
        cache.used[slot] = list.step;
    }
    std::uint32_t total = 0;
    std::uint32_t at = missing + sum_before<kListThreads>(__popcll(absent), &total);
    missing += total;
    for (; absent != 0; absent &= absent - 1)
      missed[at++] = b * kBlockRows + __ffsll(static_cast<long long>(absent)) - 1;
  }
  __syncthreads();

  // Once around the slots.
  std::uint32_t given = 0;
  const std::uint32_t hand = *cache.hand;
  for (std::uint32_t turned = 0; turned < cache.slots && given < missing; turned += kListThreads) {
    const std::uint32_t turn = turned + threadIdx.x;
    const std::uint32_t slot = (hand + turn) % cache.slots;
    const bool free = turn < cache.slots && cache.used[slot] != list.step;
    std::uint32_t total = 0;
    const std::uint32_t at = given + sum_before<kListThreads>(free, &total);
    given = min(missing, given + total);
    if (!free || at >= missing) continue;
    const std::uint32_t row = missed[at];
    if (cache.row_of[slot] != kNoRow) cache.slot_of[cache.row_of[slot]] = -1;
    cache.row_of[slot] = row;
    cache.slot_of[row] = static_cast<std::int32_t>(slot);
    cache.used[slot] = list.step;
    if (at + 1 == given) *cache.hand = (slot + 1) % cache.slots;
  }
  if (threadIdx.x == 0) boards.fetched[blockIdx.x] = given;
}

// Block (rows, list): a warp copies a row, 16 or 4 bytes a lane where it lies so, else 2.
__global__ void __launch_bounds__(kThreads)
    copy_rows(SketchShape shape, const SketchList* lists, SketchBoard boards) {
  const SketchList& list = lists[blockIdx.y];
  const RowSlots& cache = list.cache;
  const std::uint32_t i = blockIdx.x * kRowsABlock + threadIdx.x / kWarp;
  if (i >= boards.fetched[blockIdx.y]) return;
  const std::uint32_t row = boards.missed[blockIdx.y * std::size_t{shape.most_budget} + i];
  const SketchRun& run = list.runs.data()[run_of(list, &SketchRun::first_row, row)];
  const std::byte* from =
      run.row - shape.key_bytes + std::size_t(row - run.first_row) * shape.row_bytes;
  std::byte* to = cache.records + std::size_t(cache.slot_of[row]) * shape.row_bytes;
  const std::uint32_t lane = threadIdx.x % kWarp;
  const auto copy = [&](auto unit) {
    using T = decltype(unit);
    for (std::uint32_t at = lane; at < shape.row_bytes / sizeof(T); at += kWarp)
      reinterpret_cast<T*>(to)[at] = reinterpret_cast<const T*>(from)[at];
  };
  const auto places = reinterpret_cast<std::uintptr_t>(from) | reinterpret_cast<std::uintptr_t>(to);
  if ((places | shape.row_bytes) % sizeof(uint4) == 0)
    copy(uint4());
  else if ((places | shape.row_bytes) % sizeof(unsigned) == 0)
    copy(0u);
  else
    copy(std::uint16_t());
}

}  // namespace

Status fetch(Stream& stream, const SketchShape& shape, std::span<const SketchList> lists,
             const SketchBoard& board) {
  TL_CHECK(shape.row_bytes % sizeof(std::uint16_t) == 0);
  const auto count = static_cast<unsigned>(lists.size());
  TL_TRY(launch(stream, "find slots", dim3(count), dim3(kListThreads), find_slots, shape,
                lists.data(), board));
  const dim3 grid((shape.most_budget + kRowsABlock - 1) / kRowsABlock, count);
  return launch(stream, "copy rows", grid, dim3(kThreads), copy_rows, shape, lists.data(), board);
}

}  // namespace thermocline::cuda
