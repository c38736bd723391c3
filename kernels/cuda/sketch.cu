#include "kernels/cuda/sketch.h"

#include "kernels/cuda/board.h"
#include "kernels/cuda/bound.h"
#include "kernels/cuda/score_rows.h"
#include "kernels/cuda/stage.h"

namespace thermocline::cuda {
namespace {

// Block (head, list): kernels/sketch.h's prepare_query().
__global__ void __launch_bounds__(kChunkThreads)
    prepare_queries(ChoiceShape shape, const ChoiceList* lists, ChoiceBoard boards) {
  __shared__ float values[kMaxHeadDim];
  const std::uint32_t dim = shape.head.key_dim, h = blockIdx.x, i = threadIdx.x;
  const ChoiceBoard board = board_of(shape, boards, blockIdx.y);
  float mine = i < dim ? lists[blockIdx.y].query[h * dim + i] : 0.0f;
  mine = hadamard(values, dim, mine);
  // A query that is not finite has codes of 0, and a scale that makes every score not a number.
  float magnitude = i < dim ? fabsf(mine) : 0.0f;
  const float poison = reduce<kChunkThreads>(i < dim ? mine * 0.0f : 0.0f, Add());
  const float largest = reduce<kChunkThreads>(magnitude, Larger());
  const float per_scale = largest > 0.0f && poison == 0.0f ? 127.0f / largest : 0.0f;
  int code = 0;
  if (i < dim && per_scale > 0.0f)
    code = static_cast<int>(fminf(fmaxf(rintf(per_scale * mine), -127.0f), 127.0f));
  const int sum = reduce<kChunkThreads>(code, Add());
  unsigned word = static_cast<unsigned>(code & 0xff) << 8 * (i % 4);
  word |= __shfl_xor_sync(kWholeWarp, word, 1);
  word |= __shfl_xor_sync(kWholeWarp, word, 2);
  if (i < dim && i % 4 == 0) board.query_code[(h * dim + i) / 4] = word;
  if (i == 0) {
    board.query_scale[h] = largest / 127.0f + poison;
    board.query_sum[h] = sum;
  }
}

// Block (chunk of clusters, list): every cluster's score, that of its mean key.
template <int kHeads>
__global__ void __launch_bounds__(kChunkThreads)
    score_clusters(ChoiceShape shape, const ChoiceList* lists, ChoiceBoard boards) {
  __shared__ const std::byte* mean[kChunk];
  const ChoiceList& list = lists[blockIdx.y];
  const std::uint32_t first = blockIdx.x * kChunk, c = first + threadIdx.x;
  if (first >= list.units) return;
  const ChoiceBoard board = board_of(shape, boards, blockIdx.y);
  mean[threadIdx.x] = nullptr;
  if (c < list.units) {
    const ChoiceRun& run = list.runs.data()[run_of(list, &ChoiceRun::first_unit, c)];
    const std::uint32_t at = c - run.first_unit;
    if (at < run.units && run.starts[at] < run.starts[at + 1])
      mean[threadIdx.x] = run.unit_keys + std::size_t(at) * run.unit_key_bytes;
  }
  const std::byte* some = list.runs.data()[0].unit_keys;  // for those that have none
  __syncthreads();
  const int count = static_cast<int>(min(kChunk, list.units - first));
  score_rows<kChunkThreads, kHeads, PartInt8>(
      list.query, static_cast<int>(shape.head.heads), shape.head.key_dim, count,
      [&](int r) { return mean[r] != nullptr ? mean[r] : some; },
      [&](int h, int r, float score) {
        board.unit_score[std::size_t(h) * shape.most_units + first + r] =
            mean[r] != nullptr ? score : kNone;
      });
}

// Block (head, list): what weights are relative to, and how much the list's clusters have together.
__global__ void __launch_bounds__(kChunkThreads)
    weigh_clusters(ChoiceShape shape, const ChoiceList* lists, ChoiceBoard boards) {
  const ChoiceList& list = lists[blockIdx.y];
  const ChoiceBoard board = board_of(shape, boards, blockIdx.y);
  const std::uint32_t h = blockIdx.x;
  const float* score = board.unit_score + std::size_t(h) * shape.most_units;
  float largest = kNone;
  for (std::uint32_t c = threadIdx.x; c < list.units; c += kChunkThreads)
    largest = fmaxf(largest, score[c]);
  const float shift = reduce<kChunkThreads>(largest, Larger());
  float sum = 0.0f;
  for (std::uint32_t c = threadIdx.x; c < list.units; c += kChunkThreads) {
    if (!(score[c] > kNone)) continue;
    const ChoiceRun& run = list.runs.data()[run_of(list, &ChoiceRun::first_unit, c)];
    const std::uint32_t at = c - run.first_unit;
    sum += expf(score[c] - shift) * static_cast<float>(run.starts[at + 1] - run.starts[at]);
  }
  sum = reduce<kChunkThreads>(sum, Add());
  if (threadIdx.x != 0) return;
  float beside = 0.0f;
  if (list.steady_sum != nullptr && list.steady_sum[h] > 0.0f)
    beside = list.steady_sum[h] * expf(fminf(list.steady_max[h] - shift, kSketchMostAbove));
  board.shift[h] = shift;
  board.beside[h] = beside;
  board.unit_share[h] = 1.0f / (beside + sum);
}

// Block (chunk of rows, list): e^(score - shift) of every row, by its cluster and its code.
template <int kBits>
__global__ void __launch_bounds__(kChunkThreads)
    weigh_rows(ChoiceShape shape, const ChoiceList* lists, ChoiceBoard boards) {
  constexpr int kChannels = 32 / kBits;  // of a word of codes
  constexpr unsigned kMask = 0x01010101u * ((1u << kBits) - 1);
  __shared__ unsigned query[kMostHeads * kMaxHeadDim / 4];
  const ChoiceList& list = lists[blockIdx.y];
  const std::uint32_t first = blockIdx.x * kChunk, at = first + threadIdx.x;
  if (first >= list.rows) return;
  const ChoiceBoard board = board_of(shape, boards, blockIdx.y);
  const std::uint32_t dim = shape.head.key_dim, heads = shape.head.heads;
  for (std::uint32_t i = threadIdx.x; i < heads * dim / 4; i += kChunkThreads)
    query[i] = board.query_code[i];
  __syncthreads();

  float weight[kMostHeads];
#pragma unroll
  for (int h = 0; h < kMostHeads; ++h) weight[h] = -1.0f;
  const ChoiceRun& run =
      list.runs.data()[at < list.rows ? run_of(list, &ChoiceRun::first_row, at) : 0];
  const std::uint32_t row = at - run.first_row;
  if (at < list.rows && row < run.rows) {
    std::uint32_t cluster = 0, high = run.units;  // the last that begins at or before the row
    while (high - cluster > 1) {
      const std::uint32_t middle = (cluster + high) / 2;
      (run.starts[middle] <= row ? cluster : high) = middle;
    }
    const std::uint32_t words = dim / kChannels;
    const auto* codes = reinterpret_cast<const unsigned*>(run.codes) +
                        std::size_t(row / kSketchGroup) * words * kSketchGroup + row % kSketchGroup;
    int dot[kMostHeads] = {};
    for (std::uint32_t t = 0; t < words; ++t) {
      unsigned word = codes[t * kSketchGroup];
#pragma unroll
      for (int quad = 0; quad < kChannels / 4; ++quad, word >>= kBits) {
        const int code = static_cast<int>(word & kMask);
#pragma unroll
        for (int h = 0; h < kMostHeads; ++h)
          if (h < static_cast<int>(heads))
            dot[h] =
                __dp4a(code, static_cast<int>(query[(h * dim + t * kChannels) / 4 + quad]), dot[h]);
      }
    }
    const float scale = half_bits_to_float(run.scales[row].bits);
#pragma unroll
    for (int h = 0; h < kMostHeads; ++h) {
      if (h >= static_cast<int>(heads)) continue;
      const float middle = sketch_middle(kBits) * static_cast<float>(board.query_sum[h]);
      const float by = (static_cast<float>(dot[h]) - middle) * board.query_scale[h];
      const float base =
          board.unit_score[std::size_t(h) * shape.most_units + run.first_unit + cluster] -
          board.shift[h];
      const float score = fmaf(by, scale, base);
      weight[h] = score == score ? expf(fminf(score, kSketchMostAbove)) : 0.0f;
    }
  }
#pragma unroll
  for (int h = 0; h < kMostHeads; ++h) {
    if (h >= static_cast<int>(heads)) continue;  // the same for all threads
    if (at < list.rows) board.weight[std::size_t(h) * shape.most_rows + at] = weight[h];
    const float sum = reduce<kChunkThreads>(fmaxf(weight[h], 0.0f), Add());
    if (threadIdx.x == 0) board.part_sum[std::size_t(blockIdx.x) * heads + h] = sum;
  }
}

// Block (chunk of rows, list): a row's share of the attention, summed over the query heads; and of
// a ladder what its code would lose, as retrieval/select/sketch_rows.h has it.
__global__ void __launch_bounds__(kChunkThreads)
    add_heads(ChoiceShape shape, const ChoiceList* lists, ChoiceBoard boards) {
  const ChoiceList& list = lists[blockIdx.y];
  const std::uint32_t first = blockIdx.x * kChunk, at = first + threadIdx.x;
  if (first >= list.rows) return;
  const ChoiceBoard board = board_of(shape, boards, blockIdx.y);
  float mass = 0.0f;
  for (std::uint32_t h = 0; h < shape.head.heads; ++h) {
    float sum = 0.0f;
    for (std::uint32_t p = threadIdx.x; p < chunks_of(list.rows); p += kChunkThreads)
      sum += board.part_sum[std::size_t(p) * shape.head.heads + h];
    const float all = board.beside[h] + reduce<kChunkThreads>(sum, Add());
    if (at >= list.rows) continue;
    const float weight = board.weight[std::size_t(h) * shape.most_rows + at];
    mass = weight < 0.0f ? -1.0f : fmaf(weight, 1.0f / all, mass);
  }
  if (at >= list.rows) return;
  board.mass[at] = mass;
  if (shape.most_coded == 0) return;
  float loss = -1.0f;
  if (mass >= 0.0f) {
    const ChoiceRun& run = list.runs.data()[run_of(list, &ChoiceRun::first_row, at)];
    const float scale = half_bits_to_float(run.scales[at - run.first_row].bits);
    loss = mass * fmaxf(scale * scale, kSketchLeastSquare);
  }
  board.loss[at] = loss;
}

// Block (list): the rows with most mass, to be coded (kCoded) or, where none are, read; where some
// are, the ones of them whose codes would lose most are read.
template <bool kCoded>
__global__ void __launch_bounds__(kListThreads)
    take_rows(ChoiceShape shape, const ChoiceList* lists, ChoiceBoard boards) {
  const ChoiceList& list = lists[blockIdx.x];
  const ChoiceBoard board = board_of(shape, boards, blockIdx.x);
  const bool by_mass = kCoded || shape.most_coded == 0;
  const float* const worths = by_mass ? board.mass : board.loss;
  const auto takes_part = [&](std::uint32_t r) {
    return worths[r] >= 0.0f &&
           (by_mass || (board.coded[r / kBlockRows] >> r % kBlockRows & 1) != 0);
  };
  RowSet* const sets = kCoded ? board.coded : board.sets;
  const Bound bound = find_bound(kCoded ? list.coded_budget : list.budget, [&](const auto& add) {
    for (std::uint32_t r = threadIdx.x; r < list.rows; r += kListThreads)
      if (takes_part(r)) add(worths[r], 1);
  });

  // Rows above the bound, and those at it, by block: a warp has one at a time.
  const std::uint32_t blocks = blocks_of(list.rows);
  const int lane = threadIdx.x % kWarp;
  for (std::uint32_t b = threadIdx.x / kWarp; b < blocks; b += kListThreads / kWarp) {
    RowSet above = 0, tied = 0;
    for (int half = 0; half < 2; ++half) {
      const std::uint32_t r = b * kBlockRows + half * kWarp + lane;
      const bool real = r < list.rows && takes_part(r);
      const std::uint32_t bits = real ? __float_as_uint(worths[r]) : 0;
      above |= RowSet{__ballot_sync(kWholeWarp, real && (bound.all || bits > bound.bits))}
               << half * kWarp;
      tied |= RowSet{__ballot_sync(kWholeWarp, real && !bound.all && bits == bound.bits)}
              << half * kWarp;
    }
    if (lane == 0) {
      sets[b] = above;
      board.ties[b] = tied;
    }
  }
  __syncthreads();
  std::uint32_t tied_before = 0;
  for (std::uint32_t first = 0; first < blocks; first += kListThreads) {
    const std::uint32_t b = first + threadIdx.x;
    RowSet tied = b < blocks ? board.ties[b] : 0;
    std::uint32_t total = 0;
    const std::uint32_t before = tied_before + sum_before<kListThreads>(__popcll(tied), &total);
    tied_before += total;
    std::uint32_t left = before < bound.needed ? bound.needed - before : 0;
    RowSet taken = 0;
    for (; tied != 0 && left > 0; --left, tied &= tied - 1) taken |= tied & (~tied + 1);
    if (taken != 0) sets[b] |= taken;
  }
}

// Block (list): how many rows of each cluster are neither read nor coded, and whether its summary
// is attended: they matter, or it is what its coded rows' values are added to.
__global__ void __launch_bounds__(kListThreads)
    find_unread(ChoiceShape shape, const ChoiceList* lists, ChoiceBoard boards) {
  const ChoiceList& list = lists[blockIdx.x];
  const ChoiceBoard board = board_of(shape, boards, blockIdx.x);
  const int lane = threadIdx.x % kWarp;
  for (std::uint32_t b = threadIdx.x / kWarp; b < blocks_of(list.units);
       b += kListThreads / kWarp) {
    RowSet set = 0;
    for (int half = 0; half < 2; ++half) {
      const std::uint32_t c = b * kBlockRows + half * kWarp + lane;
      bool matters = false;
      if (c < list.units) {
        const ChoiceRun& run = list.runs.data()[run_of(list, &ChoiceRun::first_unit, c)];
        const std::uint32_t at = c - run.first_unit;
        std::uint32_t unread = 0;
        float coded[kMostHeads] = {};
        bool any_coded = false;
        if (at < run.units) {
          const std::uint32_t end = run.starts[at + 1];
          unread = end - run.starts[at];
          for (std::uint32_t r = run.starts[at]; r < end;) {
            const std::uint32_t next = min(end, (r / kBlockRows + 1) * kBlockRows);
            const RowSet mine = first_rows(static_cast<int>(next - r)) << r % kBlockRows;
            const std::uint32_t block = run.first_row / kBlockRows + r / kBlockRows;
            const RowSet read = board.sets[block] & mine;
            RowSet by_code = shape.most_coded == 0 ? 0 : board.coded[block] & mine & ~read;
            unread -= __popcll(read | by_code);
            any_coded = any_coded || by_code != 0;
            for (; by_code != 0; by_code &= by_code - 1) {
              const std::uint32_t row =
                  block * kBlockRows + __ffsll(static_cast<long long>(by_code)) - 1;
#pragma unroll
              for (int h = 0; h < kMostHeads; ++h)
                if (h < static_cast<int>(shape.head.heads))
                  coded[h] += board.weight[std::size_t(h) * shape.most_rows + row];
            }
            r = next;
          }
        }
#pragma unroll
        for (int h = 0; h < kMostHeads; ++h)
          if (shape.most_coded > 0 && h < static_cast<int>(shape.head.heads))
            board.unit_coded[std::size_t(h) * shape.most_units + c] = coded[h];
        board.unread[c] = static_cast<std::uint16_t>(unread);
        float mass = 0.0f;
        for (std::uint32_t h = 0; h < shape.head.heads && unread > 0; ++h)
          mass += expf(board.unit_score[std::size_t(h) * shape.most_units + c] - board.shift[h]) *
                  board.unit_share[h];
        matters =
            any_coded || (unread > 0 && mass * static_cast<float>(unread) >= kSketchNegligible);
      }
      set |= RowSet{__ballot_sync(kWholeWarp, matters)} << half * kWarp;
    }
    if (lane == 0) board.estimated[b] = set;
  }
}

ChoiceKernel scorer(std::uint32_t heads) {
  if (heads == 1) return score_clusters<1>;
  if (heads == 2) return score_clusters<2>;
  return heads <= 4 ? score_clusters<4> : score_clusters<8>;
}

ChoiceKernel weigher(int bits) {
  if (bits == 1) return weigh_rows<1>;
  return bits == 4 ? weigh_rows<4> : weigh_rows<2>;
}

}  // namespace

Status take_by_codes(Stream& stream, const ChoiceShape& shape, std::span<const ChoiceList> lists,
                     const ChoiceBoard& board) {
  const unsigned heads = shape.head.heads, count = shape.lists;
  const Stages stages{stream, shape, lists, board};
  const dim3 row_chunks(chunks_of(shape.most_rows), count);
  TL_TRY(stages.queue("prepare queries", dim3(heads, count), kChunkThreads, prepare_queries));
  TL_TRY(stages.queue("score clusters", dim3(chunks_of(shape.most_units), count), kChunkThreads,
                      scorer(heads)));
  TL_TRY(stages.queue("weigh clusters", dim3(heads, count), kChunkThreads, weigh_clusters));
  TL_TRY(stages.queue("weigh rows", row_chunks, kChunkThreads, weigher(shape.bits)));
  TL_TRY(stages.queue("add heads", row_chunks, kChunkThreads, add_heads));
  if (shape.most_coded > 0)
    TL_TRY(stages.queue("take codes", dim3(count), kListThreads, take_rows<true>));
  TL_TRY(stages.queue("take rows", dim3(count), kListThreads, take_rows<false>));
  return stages.queue("find unread", dim3(count), kListThreads, find_unread);
}

}  // namespace thermocline::cuda
