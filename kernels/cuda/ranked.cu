#include "kernels/cuda/ranked.h"

#include "kernels/cuda/board.h"
#include "kernels/cuda/bound.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/score_rows.h"

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

// Unit `u` of a list; one without rows, where a run's whole block has none.
__device__ Unit unit_of(const ChoiceShape& shape, const ChoiceList& list, std::uint32_t u) {
  const ChoiceRun& run = list.runs.data()[run_of(list, &ChoiceRun::first_unit, u)];
  const std::uint32_t at = u - run.first_unit;
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
    const Unit unit = unit_of(shape, list, u);
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
      take_part([](float q) { return fminf(q, 0.0f); });
      score(PartF16(), part, 0, set);
      take_part([](float q) { return fmaxf(q, 0.0f); });
      score(PartF16(), part, side, [&](int h, int r, float sum) { at(h, r) += sum; });
      break;
    case UnitScore::moments:
      score(PartF16(), list.query, 0, set);
      take_part([](float q) { return q * q; });
      score(PartF16(), part, side,
            [&](int h, int r, float sum) { at(h, r) += shape.unit.alpha * sqrtf(sum); });
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
      sum += expf(score[u] - shift) * static_cast<float>(unit_of(shape, list, u).rows());
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

// By all threads of a block: of the units that take part those of the best rank that fit into
// `budget` rows, in `taken`; one that does not fit is passed over for the next, down to the best
// `most`. Equal ranks go to the lower unit. Returns how many rows they have.
template <typename TakesPart>
__device__ std::uint32_t take_best(const ChoiceShape& shape, const ChoiceList& list,
                                   const float* rank, std::uint32_t budget, std::uint32_t most,
                                   const TakesPart& takes_part, RowSet* taken) {
  const auto rows_of = [&](std::uint32_t u) { return unit_of(shape, list, u).rows(); };
  const auto each = [&](const auto& add, const auto& amount) {
    for (std::uint32_t u = threadIdx.x; u < list.units; u += kListThreads)
      if (takes_part(u)) add(rank[u], amount(u));
  };
  const Bound fits =
      find_bound(budget + 1, [&](const auto& add) { each(add, rows_of); });  // above it all of them
  const Bound last =
      find_bound(most, [&](const auto& add) { each(add, [](std::uint32_t) { return 1u; }); });

  auto* const halves = reinterpret_cast<std::uint32_t*>(taken);  // of blocks
  std::uint32_t read = 0, tied_before = 0;
  for (std::uint32_t first = 0; first < list.units; first += kListThreads) {
    const std::uint32_t u = first + threadIdx.x;
    const bool real = u < list.units && takes_part(u);
    const std::uint32_t bits = real ? __float_as_uint(rank[u]) : 0, rows = real ? rows_of(u) : 0;
    const bool tied = real && !fits.all && bits == fits.bits;
    std::uint32_t total = 0;
    const std::uint32_t end =
        tied_before + sum_before<kListThreads>(tied ? rows : 0, &total) + rows;
    tied_before += total;
    const bool takes = real && (fits.all || bits > fits.bits || (tied && end < fits.needed));
    const std::uint32_t word = __ballot_sync(kWholeWarp, takes);
    if (threadIdx.x % kWarp == 0 && u < list.units) halves[u / kWarp] = word;
    read += reduce<kListThreads>(takes ? rows : 0, Add());
  }
  __syncthreads();
  while (read < budget && !fits.all) {
    std::uint64_t best = 0;
    for (std::uint32_t u = threadIdx.x; u < list.units; u += kListThreads) {
      if (!takes_part(u) || (taken[u / kBlockRows] >> u % kBlockRows & 1) != 0) continue;
      const std::uint32_t bits = __float_as_uint(rank[u]);
      if ((!last.all && bits < last.bits) || rows_of(u) > budget - read) continue;
      best = Larger()(best, std::uint64_t{bits} << 32 | ~u);
    }
    best = reduce<kListThreads>(best, Larger());
    if (best == 0) break;
    const std::uint32_t u = ~static_cast<std::uint32_t>(best);
    if (threadIdx.x == 0) taken[u / kBlockRows] |= RowSet{1} << u % kBlockRows;
    read += rows_of(u);
    __syncthreads();
  }
  return read;
}

// Block (list): which units are read, and of which of the next ones a summary is.
__global__ void __launch_bounds__(kListThreads)
    take_units(ChoiceShape shape, const ChoiceList* lists, ChoiceBoard boards) {
  const ChoiceList& list = lists[blockIdx.x];
  const ChoiceBoard board = board_of(shape, boards, blockIdx.x);
  const float* const rank = board.rank;
  const std::uint32_t most = list.budget + list.estimated;
  take_best(
      shape, list, rank, list.budget, most, [&](std::uint32_t u) { return rank[u] >= 0.0f; },
      board.taken);
  const auto is_read = [&](std::uint32_t u) {
    return (board.taken[u / kBlockRows] >> u % kBlockRows & 1) != 0;
  };

  // Their rows, block by block of each run.
  for (std::uint32_t b = threadIdx.x; b < blocks_of(list.rows); b += kListThreads) {
    const ChoiceRun& run = list.runs.data()[run_of(list, &ChoiceRun::first_row, b * kBlockRows)];
    const std::uint32_t begin = b * kBlockRows - run.first_row;
    const std::uint32_t end = min(begin + kBlockRows, run.rows);
    std::uint32_t at = 0, high = run.units;  // the last unit that begins at or before the block
    while (high - at > 1) {
      const std::uint32_t middle = (at + high) / 2;
      (unit_of(shape, list, run.first_unit + middle).first <= begin ? at : high) = middle;
    }
    RowSet set = 0;
    for (; at < run.units; ++at) {
      const Unit unit = unit_of(shape, list, run.first_unit + at);
      if (unit.first >= end) break;
      const std::uint32_t from = max(unit.first, begin), to = min(unit.end, end);
      if (from < to && is_read(run.first_unit + at))
        set |= first_rows(static_cast<int>(to - from)) << (from - begin);
    }
    board.sets[b] = set;
  }
  if (shape.summary_bytes == 0) return;

  // Those that every head has a weight for.
  const auto estimable = [&](std::uint32_t u) {
    bool scored = rank[u] >= 0.0f && !is_read(u);
    for (std::uint32_t h = 0; h < shape.head.heads && scored; ++h) {
      const float score = board.unit_score[std::size_t(h) * shape.most_units + u];
      scored = score > kNone && score < kAlways;
    }
    return scored;
  };
  take_best(shape, list, rank, list.estimated, most, estimable, board.estimated);
  for (std::uint32_t u = threadIdx.x; u < list.units; u += kListThreads)
    board.unread[u] = static_cast<std::uint16_t>(unit_of(shape, list, u).rows());
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
  const auto queue = [&](const char* name, dim3 grid, int threads, ChoiceKernel kernel) {
    return launch(stream, name, grid, dim3(static_cast<unsigned>(threads)), kernel, shape,
                  lists.data(), board);
  };
  const dim3 chunks(chunks_of(shape.most_units), count);
  TL_TRY(queue("score units", chunks, kChunkThreads, scorer(heads)));
  TL_TRY(queue("weigh units", dim3(heads, count), kChunkThreads, weigh_units));
  TL_TRY(queue("rank units", chunks, kChunkThreads, rank_units));
  return queue("take units", dim3(count), kListThreads, take_units);
}

}  // namespace thermocline::cuda
