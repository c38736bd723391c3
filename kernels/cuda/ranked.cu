#include "kernels/cuda/ranked.h"

#include <limits>

#include "kernels/cuda/board.h"
#include "kernels/cuda/bound.h"
#include "kernels/cuda/score_rows.h"
#include "kernels/cuda/stage.h"

namespace thermocline::cuda {
namespace {

constexpr float kAlways = std::numeric_limits<float>::infinity();
constexpr float kFirst = std::numeric_limits<float>::max();  // the rank of what is always read

// A unit of a list: of a run its rows [first, end).
struct Unit {
  const ChoiceRun* run;
  std::uint32_t at, first, end;
  __device__ std::uint32_t rows() const { return end - first; }
};

// Number `at` of a run; one without rows, where its last block has no more units.
__device__ Unit unit_of(const ChoiceShape& shape, const ChoiceRun& run, std::uint32_t at) {
  if (at >= run.units) return {&run, at, 0, 0};
  if (run.starts != nullptr) return {&run, at, run.starts[at], run.starts[at + 1]};
  return {&run, at, min(at * shape.unit.rows, run.rows), min((at + 1) * shape.unit.rows, run.rows)};
}

// Block (chunk of units, list): every unit's score.
template <int kHeads>
__global__ void __launch_bounds__(kChunkThreads)
    score_units(ChoiceShape shape, const ChoiceList* lists, ChoiceBoard boards) {
  __shared__ const std::byte* key[kChunk];
  __shared__ bool always[kChunk];
  __shared__ float part[kHeads * kMaxHeadDim];  // of the query
  const ChoiceList& list = lists[blockIdx.y];
  const std::uint32_t first = blockIdx.x * kChunk, u = first + threadIdx.x;
  if (first >= list.units) return;
  const ChoiceBoard board = board_of(shape, boards, blockIdx.y);
  const std::uint32_t dim = shape.head.key_dim, floats = shape.head.heads * dim;
  key[threadIdx.x] = nullptr;
  always[threadIdx.x] = false;
  if (u < list.units) {
    const ChoiceRun& run = list.runs.data()[run_of(list, &ChoiceRun::first_unit, u)];
    const Unit unit = unit_of(shape, run, u - run.first_unit);
    board.unit_rows[u] = static_cast<std::uint16_t>(unit.rows());
    if (unit.rows() > 0) {
      key[threadIdx.x] = unit.run->unit_keys + std::size_t(unit.at) * unit.run->unit_key_bytes;
      always[threadIdx.x] =
          unit.run->always != nullptr && unit.run->always[unit.at] != std::byte{0};
    }
  }
  const std::byte* some = list.runs.data()[0].unit_keys;  // for those that have none
  const int count = static_cast<int>(min(kChunk, list.units - first));
  const auto score = [&](auto format, const float* query, std::size_t side, const auto& put) {
    __syncthreads();
    score_rows<kChunkThreads, kHeads, decltype(format)>(
        query, static_cast<int>(shape.head.heads), dim, count,
        [&](int r) { return (key[r] != nullptr ? key[r] : some) + side; }, put);
    __syncthreads();
  };
  const auto at = [&](int h, int r) -> float& {
    return board.unit_score[std::size_t(h) * shape.most_units + first + r];
  };
  const auto set = [&](int h, int r, float sum) {
    at(h, r) = key[r] == nullptr ? kNone : always[r] ? kAlways : sum;
  };
  // What has two sides is scored by a part of the query each; a score is one thread's throughout.
  // One that is known, or that is not a number, stays so.
  const auto add = [&](int h, int r, float more) {
    if (at(h, r) > kNone && at(h, r) < kAlways) at(h, r) += more;
  };
  const auto take_part = [&](const auto& of) {
    for (std::uint32_t i = threadIdx.x; i < floats; i += kChunkThreads) part[i] = of(list.query[i]);
  };
  const std::size_t side = dim * sizeof(std::uint16_t);
  switch (shape.unit.score) {
    case UnitScore::means:
      score(PartInt8(), list.query, 0, set);
      break;
    case UnitScore::landmarks:
      score(PartF16(), list.query, 0, set);
      break;
    case UnitScore::bounds:
      take_part([](float q) { return q > 0.0f ? 0.0f : q; });
      score(PartF16(), part, 0, set);
      take_part([](float q) { return q < 0.0f ? 0.0f : q; });
      score(PartF16(), part, side, add);
      break;
    case UnitScore::moments:
      score(PartF16(), list.query, 0, set);
      take_part([](float q) { return q * q; });
      score(PartF16(), part, side,
            [&](int h, int r, float sum) { add(h, r, shape.unit.alpha * sqrtf(sum)); });
      break;
  }
}

// Block (head, list): what weights are relative to, and how much the head has to say of each: a
// share of all its attention, or of a vote of what lies beside sinks and tail.
__global__ void __launch_bounds__(kChunkThreads)
    weigh_units(ChoiceShape shape, const ChoiceList* lists, ChoiceBoard boards) {
  const ChoiceList& list = lists[blockIdx.y];
  const ChoiceBoard board = board_of(shape, boards, blockIdx.y);
  const std::uint32_t h = blockIdx.x;
  const float* score = board.unit_score + std::size_t(h) * shape.most_units;
  float largest = kNone;
  for (std::uint32_t u = threadIdx.x; u < list.units; u += kChunkThreads)
    if (score[u] < kAlways) largest = fmaxf(largest, score[u]);
  const float shift = reduce<kChunkThreads>(largest, Larger());
  float sum = 0.0f;
  for (std::uint32_t u = threadIdx.x; u < list.units; u += kChunkThreads)
    if (score[u] > kNone && score[u] < kAlways)
      sum += expf(score[u] - shift) * static_cast<float>(board.unit_rows[u]);
  sum = reduce<kChunkThreads>(sum, Add());
  if (threadIdx.x != 0) return;
  float beside = 0.0f;
  if (list.steady_sum != nullptr && list.steady_sum[h] > 0.0f && shift > kNone)
    beside = list.steady_sum[h] * expf(fminf(list.steady_max[h] - shift, kSketchMostAbove));
  const float all = shape.unit.group == GroupRank::vote ? sum : sum + beside;
  board.shift[h] = shift;
  board.beside[h] = beside;
  board.unit_share[h] = all > 0.0f ? 1.0f / all : 0.0f;
}

// Block (chunk of units, list): one rank of all query heads for a row of each.
__global__ void __launch_bounds__(kChunkThreads)
    rank_units(ChoiceShape shape, const ChoiceList* lists, ChoiceBoard boards) {
  const ChoiceList& list = lists[blockIdx.y];
  const std::uint32_t u = blockIdx.x * kChunk + threadIdx.x;
  if (u >= list.units) return;
  const ChoiceBoard board = board_of(shape, boards, blockIdx.y);
  float rank = -1.0f;  // until a head has looked at it
  for (std::uint32_t h = 0; h < shape.head.heads; ++h) {
    const float score = board.unit_score[std::size_t(h) * shape.most_units + u];
    if (!(score > kNone)) continue;
    rank = fmaxf(rank, 0.0f);
    if (score == kAlways) rank = kFirst;
    if (rank == kFirst) continue;
    const float said = expf(score - board.shift[h]) * board.unit_share[h];
    rank = shape.unit.group == GroupRank::max ? fmaxf(rank, said) : rank + said;
  }
  board.rank[u] = rank;
}

__device__ bool has(const RowSet* sets, std::uint32_t unit) {
  return (sets[unit / kBlockRows] >> unit % kBlockRows & 1) != 0;
}

// Of a block's threads each has a unit, the first one's at the beginning of a set: those that are
// `in`. By two warps a set, of which the lower one writes it.
__device__ void set_by_warps(bool in, std::uint32_t unit, std::uint32_t units, RowSet* sets) {
  __shared__ std::uint32_t of_warp[kListThreads / kWarp];
  const std::uint32_t word = __ballot_sync(kWholeWarp, in), warp = threadIdx.x / kWarp;
  if (threadIdx.x % kWarp == 0) of_warp[warp] = word;
  __syncthreads();
  if (threadIdx.x % kBlockRows == 0 && unit < units)
    sets[unit / kBlockRows] = of_warp[warp] | RowSet{of_warp[warp + 1]} << kWarp;
  __syncthreads();  // of_warp may be written again
}

// By all threads of a block: of the units that take part those of the best rank that fit into
// `budget` rows, in `taken`; one that does not fit is passed over for the next, down to `last`.
// Equal ranks go to the lower unit.
template <typename TakesPart>
__device__ void take_best(const ChoiceList& list, const ChoiceBoard& board, std::uint32_t budget,
                          const Bound& last, const TakesPart& takes_part, RowSet* taken) {
  const float* const rank = board.rank;
  const std::uint16_t* const rows = board.unit_rows;
  const Bound fits = find_bound(budget + 1, [&](const auto& add) {  // above it all of them
    for (std::uint32_t u = threadIdx.x; u < list.units; u += kListThreads)
      if (takes_part(u)) add(rank[u], rows[u]);
  });
  std::uint32_t read = 0, tied_before = 0;
  for (std::uint32_t first = 0; first < list.units; first += kListThreads) {
    const std::uint32_t u = first + threadIdx.x;
    const bool real = u < list.units && takes_part(u);
    const std::uint32_t bits = real ? __float_as_uint(rank[u]) : 0, mine = real ? rows[u] : 0;
    const bool tied = real && !fits.all && bits == fits.bits;
    std::uint32_t total = 0;
    const std::uint32_t end =
        tied_before + sum_before<kListThreads>(tied ? mine : 0, &total) + mine;
    tied_before += total;
    const bool takes = real && (fits.all || bits > fits.bits || (tied && end < fits.needed));
    read += reduce<kListThreads>(takes ? mine : 0, Add());
    set_by_warps(takes, u, list.units, taken);
  }
  __syncthreads();
  while (read < budget && !fits.all) {
    std::uint64_t best = 0;
    for (std::uint32_t u = threadIdx.x; u < list.units; u += kListThreads) {
      if (!takes_part(u) || has(taken, u)) continue;
      const std::uint32_t bits = __float_as_uint(rank[u]);
      if ((!last.all && bits < last.bits) || rows[u] > budget - read) continue;
      best = Larger()(best, std::uint64_t{bits} << 32 | ~u);
    }
    best = reduce<kListThreads>(best, Larger());
    if (best == 0) break;
    const std::uint32_t u = ~static_cast<std::uint32_t>(best);
    if (threadIdx.x == 0) taken[u / kBlockRows] |= RowSet{1} << u % kBlockRows;
    read += rows[u];
    __syncthreads();
  }
}

// Block (list): which units are read, and of which of the next ones a summary is.
__global__ void __launch_bounds__(kListThreads)
    take_units(ChoiceShape shape, const ChoiceList* lists, ChoiceBoard boards) {
  const ChoiceList& list = lists[blockIdx.x];
  const ChoiceBoard board = board_of(shape, boards, blockIdx.x);
  const float* const rank = board.rank;
  std::uint32_t rows = 0;
  for (std::uint32_t u = threadIdx.x; u < list.units; u += kListThreads) rows += board.unit_rows[u];
  // Where there is room for all rows, those of units without a rank are read like any other.
  const bool everything = reduce<kListThreads>(rows, Add()) <= list.budget;
  const Bound last = find_bound(list.budget + list.estimated, [&](const auto& add) {
    for (std::uint32_t u = threadIdx.x; u < list.units; u += kListThreads)
      if (rank[u] >= 0.0f) add(rank[u], 1);
  });
  const auto readable = [&](std::uint32_t u) {
    return everything ? board.unit_rows[u] > 0 : rank[u] >= 0.0f;
  };
  take_best(list, board, list.budget, last, readable, board.taken);

  // Their rows, block by block of each run.
  for (std::uint32_t b = threadIdx.x; b < blocks_of(list.rows); b += kListThreads) {
    const ChoiceRun& run = list.runs.data()[run_of(list, &ChoiceRun::first_row, b * kBlockRows)];
    const std::uint32_t begin = b * kBlockRows - run.first_row;
    const std::uint32_t end = min(begin + kBlockRows, run.rows);
    std::uint32_t at = 0, high = run.units;  // the last unit that begins at or before the block
    while (high - at > 1) {
      const std::uint32_t middle = (at + high) / 2;
      (unit_of(shape, run, middle).first <= begin ? at : high) = middle;
    }
    RowSet set = 0;
    for (; at < run.units; ++at) {
      const Unit unit = unit_of(shape, run, at);
      if (unit.first >= end) break;
      const std::uint32_t from = max(unit.first, begin), to = min(unit.end, end);
      if (from < to && has(board.taken, run.first_unit + at))
        set |= first_rows(static_cast<int>(to - from)) << (from - begin);
    }
    board.sets[b] = set;
  }
  if (shape.summary_bytes == 0) return;

  // Those that every head has a weight for.
  const auto estimable = [&](std::uint32_t u) {
    bool scored = rank[u] >= 0.0f && !has(board.taken, u);
    for (std::uint32_t h = 0; h < shape.head.heads && scored; ++h) {
      const float score = board.unit_score[std::size_t(h) * shape.most_units + u];
      scored = score > kNone && score < kAlways;
    }
    return scored;
  };
  take_best(list, board, list.estimated, last, estimable, board.estimated);
}

ChoiceKernel scorer(std::uint32_t heads) {
  if (heads == 1) return score_units<1>;
  if (heads == 2) return score_units<2>;
  return heads <= 4 ? score_units<4> : score_units<8>;
}

}  // namespace

Status take_by_units(Stream& stream, const ChoiceShape& shape, std::span<const ChoiceList> lists,
                     const ChoiceBoard& board) {
  const unsigned heads = shape.head.heads, count = shape.lists;
  const Stages stages{stream, shape, lists, board};
  const dim3 chunks(chunks_of(shape.most_units), count);
  TL_TRY(stages.queue("score units", chunks, kChunkThreads, scorer(heads)));
  TL_TRY(stages.queue("weigh units", dim3(heads, count), kChunkThreads, weigh_units));
  TL_TRY(stages.queue("rank units", chunks, kChunkThreads, rank_units));
  return stages.queue("take units", dim3(count), kListThreads, take_units);
}

}  // namespace thermocline::cuda
