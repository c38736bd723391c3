#include "kernels/cuda/fetch.h"

#include <algorithm>
#include <iterator>

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
    find_slots(ChoiceShape shape, const ChoiceList* lists, ChoiceBoard boards) {
  const ChoiceList& list = lists[blockIdx.x];
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

// By a warp: 16 or 4 bytes a lane where both lie so, else 2.
__device__ void copy_row(const std::byte* from, std::byte* to, std::uint32_t bytes) {
  const std::uint32_t lane = threadIdx.x % kWarp;
  const auto copy = [&](auto unit) {
    using T = decltype(unit);
    for (std::uint32_t at = lane; at < bytes / sizeof(T); at += kWarp)
      reinterpret_cast<T*>(to)[at] = reinterpret_cast<const T*>(from)[at];
  };
  const auto places = reinterpret_cast<std::uintptr_t>(from) | reinterpret_cast<std::uintptr_t>(to);
  if ((places | bytes) % sizeof(uint4) == 0)
    copy(uint4());
  else if ((places | bytes) % sizeof(unsigned) == 0)
    copy(0u);
  else
    copy(std::uint16_t());
}

// Which of its part's rows a warp copies, where a block has kRowsABlock of them.
__device__ std::uint32_t row_of_warp() { return blockIdx.x * kRowsABlock + threadIdx.x / kWarp; }

// Of one list: which row is its i-th missed one, and where its slot is.
__device__ std::uint32_t missed_row(const ChoiceShape& shape, const ChoiceBoard& boards,
                                    std::uint32_t list, std::uint32_t i) {
  return boards.missed[list * std::size_t{shape.most_budget} + i];
}
__device__ std::byte* slot_at(const ChoiceShape& shape, const RowSlots& cache, std::uint32_t row) {
  return cache.records + std::size_t(cache.slot_of[row]) * shape.row_bytes;
}

// Block (rows, list): from where they lie.
__global__ void __launch_bounds__(kThreads)
    copy_rows(ChoiceShape shape, const ChoiceList* lists, ChoiceBoard boards) {
  const ChoiceList& list = lists[blockIdx.y];
  const std::uint32_t i = row_of_warp();
  if (i >= boards.fetched[blockIdx.y]) return;
  const std::uint32_t row = missed_row(shape, boards, blockIdx.y, i);
  const ChoiceRun& run = list.runs.data()[run_of(list, &ChoiceRun::first_row, row)];
  copy_row(run.row - shape.key_bytes + std::size_t(row - run.first_row) * shape.row_bytes,
           slot_at(shape, list.cache, row), shape.row_bytes);
}

// What a launch is told in its arguments, of which there may be 4 KiB.
struct PackedPart {
  PackedRows of[128];
};

// Block (rows, of the part): from where they are packed.
__global__ void __launch_bounds__(kThreads)
    copy_packed(ChoiceShape shape, const ChoiceList* lists, ChoiceBoard boards, PackedPart part) {
  const PackedRows& packed = part.of[blockIdx.y];
  const std::uint32_t i = row_of_warp();
  if (i >= packed.rows) return;
  const std::uint32_t row = missed_row(shape, boards, packed.list, packed.first + i);
  copy_row(packed.at + std::size_t(i) * shape.row_bytes,
           slot_at(shape, lists[packed.list].cache, row), shape.row_bytes);
}

dim3 grid_of(std::uint32_t rows, std::size_t parts) {
  return dim3((rows + kRowsABlock - 1) / kRowsABlock, static_cast<unsigned>(parts));
}

}  // namespace

Status fetch(Stream& stream, const ChoiceShape& shape, std::span<const ChoiceList> lists,
             const ChoiceBoard& board) {
  TL_CHECK(shape.row_bytes % sizeof(std::uint16_t) == 0);
  TL_TRY(launch(stream, "find slots", dim3(static_cast<unsigned>(lists.size())), dim3(kListThreads),
                find_slots, shape, lists.data(), board));
  if (shape.packed) return {};
  return launch(stream, "copy rows", grid_of(shape.most_budget, lists.size()), dim3(kThreads),
                copy_rows, shape, lists.data(), board);
}

Status fetch_packed(Stream& stream, const ChoiceShape& shape, std::span<const ChoiceList> lists,
                    const ChoiceBoard& board, std::span<const PackedRows> packed) {
  while (!packed.empty()) {
    PackedPart part;
    const std::size_t count = std::min(packed.size(), std::size(part.of));
    std::uint32_t most = 0;
    for (std::size_t i = 0; i < count; ++i) {
      part.of[i] = packed[i];
      most = std::max(most, packed[i].rows);
    }
    TL_TRY(launch(stream, "copy packed rows", grid_of(most, count), dim3(kThreads), copy_packed,
                  shape, lists.data(), board, part));
    packed = packed.subspan(count);
  }
  return {};
}

}  // namespace thermocline::cuda
