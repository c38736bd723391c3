#include "kernels/cuda/sketch.h"

#include <limits>

#include "kernels/cuda/board.h"
#include "kernels/cuda/fetch.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/pieces.h"
#include "kernels/cuda/score_rows.h"

namespace thermocline::cuda {
namespace {

constexpr int kThreads = 256;
constexpr std::uint32_t kChunk = kThreads;  // rows, or clusters, a block
constexpr int kMostHeads = 8;               // query heads a KV head
constexpr float kNone = -std::numeric_limits<float>::infinity();

__host__ __device__ std::uint32_t chunks_of(std::uint32_t rows) {
  return (rows + kChunk - 1) / kChunk;
}

// The board of list `list`.
__host__ __device__ SketchBoard board_of(const SketchShape& shape, SketchBoard board,
                                         std::size_t list) {
  const std::size_t heads = shape.head.heads;
  board.query_scale += list * heads;
  board.query_sum += list * heads;
  board.query_code += list * heads * shape.head.key_dim / 4;
  board.cluster_score += list * heads * shape.most_clusters;
  board.shift += list * heads;
  board.beside += list * heads;
  board.cluster_share += list * heads;
  board.weight += list * heads * shape.most_rows;
  board.part_sum += list * chunks_of(shape.most_rows) * heads;
  board.mass += list * shape.most_rows;
  if (shape.most_coded > 0) board.loss += list * shape.most_rows;
  board.sets += list * blocks_of(shape.most_rows);
  board.coded += list * blocks_of(shape.most_rows);
  board.ties += list * blocks_of(shape.most_rows);
  board.estimated += list * blocks_of(shape.most_clusters);
  board.summaries += list;
  board.missed += list * shape.most_budget;
  board.fetched += list;
  board.unread += list * shape.most_clusters;
  board.log_weight += list * shape.most_clusters * heads;
  board.cluster_coded += list * heads * shape.most_clusters;
  board.coded_weight += list * shape.most_coded * heads;
  board.views += list * shape.views();
  board.folds += list * shape.folds();
  return board;
}

struct Add {
  template <typename T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};
struct Larger {
  __device__ float operator()(float a, float b) const { return fmaxf(a, b); }
};

// Block (head, list): kernels/sketch.h's prepare_query().
__global__ void __launch_bounds__(kThreads)
    prepare_queries(SketchShape shape, const SketchList* lists, SketchBoard boards) {
  __shared__ float values[kMaxHeadDim];
  const std::uint32_t dim = shape.head.key_dim, h = blockIdx.x, i = threadIdx.x;
  const SketchBoard board = board_of(shape, boards, blockIdx.y);
  float mine = i < dim ? lists[blockIdx.y].query[h * dim + i] : 0.0f;
  mine = hadamard(values, dim, mine);
  // A query that is not finite has codes of 0, and a scale that makes every score not a number.
  float magnitude = i < dim ? fabsf(mine) : 0.0f;
  const float poison = reduce<kThreads>(i < dim ? mine * 0.0f : 0.0f, Add());
  const float largest = reduce<kThreads>(magnitude, Larger());
  const float per_scale = largest > 0.0f && poison == 0.0f ? 127.0f / largest : 0.0f;
  int code = 0;
  if (i < dim && per_scale > 0.0f)
    code = static_cast<int>(fminf(fmaxf(rintf(per_scale * mine), -127.0f), 127.0f));
  const int sum = reduce<kThreads>(code, Add());
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
__global__ void __launch_bounds__(kThreads)
    score_clusters(SketchShape shape, const SketchList* lists, SketchBoard boards) {
  __shared__ const std::byte* mean[kChunk];
  const SketchList& list = lists[blockIdx.y];
  const std::uint32_t first = blockIdx.x * kChunk, c = first + threadIdx.x;
  if (first >= list.clusters) return;
  const SketchBoard board = board_of(shape, boards, blockIdx.y);
  mean[threadIdx.x] = nullptr;
  if (c < list.clusters) {
    const SketchRun& run = list.runs.data()[run_of(list, &SketchRun::first_cluster, c)];
    const std::uint32_t at = c - run.first_cluster;
    if (at < run.clusters && run.starts[at] < run.starts[at + 1])
      mean[threadIdx.x] = run.means + std::size_t(at) * run.mean_bytes;
  }
  const std::byte* some = list.runs.data()[0].means;  // for those that have none
  __syncthreads();
  const int count = static_cast<int>(min(kChunk, list.clusters - first));
  score_rows<kThreads, kHeads, PartInt8>(
      list.query, static_cast<int>(shape.head.heads), shape.head.key_dim, count,
      [&](int r) { return mean[r] != nullptr ? mean[r] : some; },
      [&](int h, int r, float score) {
        board.cluster_score[std::size_t(h) * shape.most_clusters + first + r] =
            mean[r] != nullptr ? score : kNone;
      });
}

// Block (head, list): what weights are relative to, and how much the list's clusters have together.
__global__ void __launch_bounds__(kThreads)
    weigh_clusters(SketchShape shape, const SketchList* lists, SketchBoard boards) {
  const SketchList& list = lists[blockIdx.y];
  const SketchBoard board = board_of(shape, boards, blockIdx.y);
  const std::uint32_t h = blockIdx.x;
  const float* score = board.cluster_score + std::size_t(h) * shape.most_clusters;
  float largest = kNone;
  for (std::uint32_t c = threadIdx.x; c < list.clusters; c += kThreads)
    largest = fmaxf(largest, score[c]);
  const float shift = reduce<kThreads>(largest, Larger());
  float sum = 0.0f;
  for (std::uint32_t c = threadIdx.x; c < list.clusters; c += kThreads) {
    if (!(score[c] > kNone)) continue;
    const SketchRun& run = list.runs.data()[run_of(list, &SketchRun::first_cluster, c)];
    const std::uint32_t at = c - run.first_cluster;
    sum += expf(score[c] - shift) * static_cast<float>(run.starts[at + 1] - run.starts[at]);
  }
  sum = reduce<kThreads>(sum, Add());
  if (threadIdx.x != 0) return;
  float beside = 0.0f;
  if (list.steady_sum != nullptr && list.steady_sum[h] > 0.0f)
    beside = list.steady_sum[h] * expf(fminf(list.steady_max[h] - shift, kSketchMostAbove));
  board.shift[h] = shift;
  board.beside[h] = beside;
  board.cluster_share[h] = 1.0f / (beside + sum);
}

// Block (chunk of rows, list): e^(score - shift) of every row, by its cluster and its code.
template <int kBits>
__global__ void __launch_bounds__(kThreads)
    weigh_rows(SketchShape shape, const SketchList* lists, SketchBoard boards) {
  constexpr int kChannels = 32 / kBits;  // of a word of codes
  constexpr unsigned kMask = 0x01010101u * ((1u << kBits) - 1);
  __shared__ unsigned query[kMostHeads * kMaxHeadDim / 4];
  const SketchList& list = lists[blockIdx.y];
  const std::uint32_t first = blockIdx.x * kChunk, at = first + threadIdx.x;
  if (first >= list.rows) return;
  const SketchBoard board = board_of(shape, boards, blockIdx.y);
  const std::uint32_t dim = shape.head.key_dim, heads = shape.head.heads;
  for (std::uint32_t i = threadIdx.x; i < heads * dim / 4; i += kThreads)
    query[i] = board.query_code[i];
  __syncthreads();

  float weight[kMostHeads];
#pragma unroll
  for (int h = 0; h < kMostHeads; ++h) weight[h] = -1.0f;
  const SketchRun& run =
      list.runs.data()[at < list.rows ? run_of(list, &SketchRun::first_row, at) : 0];
  const std::uint32_t row = at - run.first_row;
  if (at < list.rows && row < run.rows) {
    std::uint32_t cluster = 0, high = run.clusters;  // the last that begins at or before the row
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
          board.cluster_score[std::size_t(h) * shape.most_clusters + run.first_cluster + cluster] -
          board.shift[h];
      const float score = fmaf(by, scale, base);
      weight[h] = score == score ? expf(fminf(score, kSketchMostAbove)) : 0.0f;
    }
  }
#pragma unroll
  for (int h = 0; h < kMostHeads; ++h) {
    if (h >= static_cast<int>(heads)) continue;  // the same for all threads
    if (at < list.rows) board.weight[std::size_t(h) * shape.most_rows + at] = weight[h];
    const float sum = reduce<kThreads>(fmaxf(weight[h], 0.0f), Add());
    if (threadIdx.x == 0) board.part_sum[std::size_t(blockIdx.x) * heads + h] = sum;
  }
}

// Block (chunk of rows, list): a row's share of the attention, summed over the query heads; and of
// a ladder what its code would lose, as retrieval/select/sketch_rows.h has it.
__global__ void __launch_bounds__(kThreads)
    add_heads(SketchShape shape, const SketchList* lists, SketchBoard boards) {
  const SketchList& list = lists[blockIdx.y];
  const std::uint32_t first = blockIdx.x * kChunk, at = first + threadIdx.x;
  if (first >= list.rows) return;
  const SketchBoard board = board_of(shape, boards, blockIdx.y);
  float mass = 0.0f;
  for (std::uint32_t h = 0; h < shape.head.heads; ++h) {
    float sum = 0.0f;
    for (std::uint32_t p = threadIdx.x; p < chunks_of(list.rows); p += kThreads)
      sum += board.part_sum[std::size_t(p) * shape.head.heads + h];
    const float all = board.beside[h] + reduce<kThreads>(sum, Add());
    if (at >= list.rows) continue;
    const float weight = board.weight[std::size_t(h) * shape.most_rows + at];
    mass = weight < 0.0f ? -1.0f : fmaf(weight, 1.0f / all, mass);
  }
  if (at >= list.rows) return;
  board.mass[at] = mass;
  if (shape.most_coded == 0) return;
  float loss = -1.0f;
  if (mass >= 0.0f) {
    const SketchRun& run = list.runs.data()[run_of(list, &SketchRun::first_row, at)];
    const float scale = half_bits_to_float(run.scales[at - run.first_row].bits);
    loss = mass * fmaxf(scale * scale, kSketchLeastSquare);
  }
  board.loss[at] = loss;
}

// Block (list): the rows with most mass, to be coded (kCoded) or, where none are, read; where some
// are, the ones of them whose codes would lose most are read. What they are worth is not negative,
// so it has the order of its bits, of which 11, 11 and 10 are found at a time.
template <bool kCoded>
__global__ void __launch_bounds__(kListThreads)
    take_rows(SketchShape shape, const SketchList* lists, SketchBoard boards) {
  constexpr int kDigits[] = {11, 11, 10};
  constexpr int kBins = 1 << 11;
  __shared__ std::uint32_t bins[kBins];
  __shared__ std::uint32_t found_digit, found_above;
  const SketchList& list = lists[blockIdx.x];
  const SketchBoard board = board_of(shape, boards, blockIdx.x);
  const bool by_mass = kCoded || shape.most_coded == 0;
  const float* const worths = by_mass ? board.mass : board.loss;
  const auto takes_part = [&](std::uint32_t r) {
    return worths[r] >= 0.0f &&
           (by_mass || (board.coded[r / kBlockRows] >> r % kBlockRows & 1) != 0);
  };

  RowSet* const sets = kCoded ? board.coded : board.sets;
  std::uint32_t prefix = 0, needed = kCoded ? list.coded_budget : list.budget;
  int shift = 32;
  bool all = false;  // there are no more rows than are wanted
  for (const int digits : kDigits) {
    const int before = shift;
    shift -= digits;
    for (std::uint32_t b = threadIdx.x; b < kBins; b += kListThreads) bins[b] = 0;
    if (threadIdx.x == 0) found_above = ~0u;
    __syncthreads();
    for (std::uint32_t r = threadIdx.x; r < list.rows; r += kListThreads) {
      const std::uint32_t bits = __float_as_uint(worths[r]);
      if (!takes_part(r) || (before < 32 && bits >> before != prefix)) continue;
      atomicAdd(&bins[bits >> shift & ((1u << digits) - 1)], 1u);
    }
    __syncthreads();
    // Bins from the largest down, two a thread: in which the last wanted row is.
    static_assert(kBins == 2 * kListThreads);
    const std::uint32_t high = kBins - 1 - 2 * threadIdx.x;
    std::uint32_t total = 0;
    std::uint32_t above = sum_before<kListThreads>(bins[high] + bins[high - 1], &total);
    for (std::uint32_t bin = high + 1; bin-- > high - 1;) {
      if (above < needed && above + bins[bin] >= needed) {
        found_digit = bin;
        found_above = above;
      }
      above += bins[bin];
    }
    __syncthreads();
    all = found_above == ~0u;
    if (all) break;  // the same for all threads; only at the first digits
    prefix = prefix << digits | found_digit;
    needed -= found_above;
    __syncthreads();
  }

  // Rows above the bound, and those at it, by block: a warp has one at a time.
  const std::uint32_t blocks = blocks_of(list.rows);
  const int lane = threadIdx.x % kWarp;
  for (std::uint32_t b = threadIdx.x / kWarp; b < blocks; b += kListThreads / kWarp) {
    RowSet above = 0, tied = 0;
    for (int half = 0; half < 2; ++half) {
      const std::uint32_t r = b * kBlockRows + half * kWarp + lane;
      const bool real = r < list.rows && takes_part(r);
      const std::uint32_t bits = real ? __float_as_uint(worths[r]) : 0;
      above |= RowSet{__ballot_sync(kWholeWarp, real && (all || bits > prefix))} << half * kWarp;
      tied |= RowSet{__ballot_sync(kWholeWarp, real && !all && bits == prefix)} << half * kWarp;
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
    std::uint32_t left = before < needed ? needed - before : 0;
    RowSet taken = 0;
    for (; tied != 0 && left > 0; --left, tied &= tied - 1) taken |= tied & (~tied + 1);
    if (taken != 0) sets[b] |= taken;
  }
}

// Block (list): how many rows of each cluster are neither read nor coded, and whether its summary
// is attended: they matter, or it is what its coded rows' values are added to.
__global__ void __launch_bounds__(kListThreads)
    find_unread(SketchShape shape, const SketchList* lists, SketchBoard boards) {
  const SketchList& list = lists[blockIdx.x];
  const SketchBoard board = board_of(shape, boards, blockIdx.x);
  const int lane = threadIdx.x % kWarp;
  for (std::uint32_t b = threadIdx.x / kWarp; b < blocks_of(list.clusters);
       b += kListThreads / kWarp) {
    RowSet set = 0;
    for (int half = 0; half < 2; ++half) {
      const std::uint32_t c = b * kBlockRows + half * kWarp + lane;
      bool matters = false;
      if (c < list.clusters) {
        const SketchRun& run = list.runs.data()[run_of(list, &SketchRun::first_cluster, c)];
        const std::uint32_t at = c - run.first_cluster;
        std::uint32_t unread = 0;
        float coded[kMostHeads] = {};
        bool any_coded = false;
        if (at < run.clusters) {
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
          if (h < static_cast<int>(shape.head.heads))
            board.cluster_coded[std::size_t(h) * shape.most_clusters + c] = coded[h];
        board.unread[c] = static_cast<std::uint16_t>(unread);
        float mass = 0.0f;
        for (std::uint32_t h = 0; h < shape.head.heads && unread > 0; ++h)
          mass +=
              expf(board.cluster_score[std::size_t(h) * shape.most_clusters + c] - board.shift[h]) *
              board.cluster_share[h];
        matters =
            any_coded || (unread > 0 && mass * static_cast<float>(unread) >= kSketchNegligible);
      }
      set |= RowSet{__ballot_sync(kWholeWarp, matters)} << half * kWarp;
    }
    if (lane == 0) board.estimated[b] = set;
  }
}

// What a list's sets are cut to: views of blocks, and folds of them, cut at kFoldRows in each run.
struct Cut {
  const RowSet* sets;
  std::uint32_t blocks;  // of all runs
  BlockView* views;      // from here on
  HeadFold* folds;
  std::uint32_t most_folds;
};

// By all threads of a block. first_block(run) is where a run's blocks begin. kByRow: view(run, row
// of the run, rank in the list) is the view of one row; otherwise view(run, block of the run, rank
// in the list) that of a block's rows, which are still to be said. `fold` is a fold without its
// blocks. Returns how many views there are now.
template <bool kByRow, typename FirstBlock, typename View>
__device__ std::uint32_t cut_folds(const Cut& cut, std::uint32_t runs,
                                   const FirstBlock& first_block, const View& view,
                                   const HeadFold& fold) {
  for (std::uint32_t f = threadIdx.x; f < cut.most_folds; f += kListThreads) {
    cut.folds[f] = fold;
    cut.folds[f].fold.blocks = {};
  }
  __syncthreads();
  // Run by run: a run has at most kListThreads blocks.
  std::uint32_t views = 0, folds = 0, rank = 0;  // before the run
  for (std::uint32_t run = 0; run < runs; ++run) {
    const std::uint32_t begin = first_block(run);
    const std::uint32_t end = run + 1 < runs ? first_block(run + 1) : cut.blocks;
    const std::uint32_t b = begin + threadIdx.x;
    RowSet left = b < end ? cut.sets[b] : 0;
    const auto n = static_cast<std::uint32_t>(__popcll(left));
    std::uint32_t rows = 0, made = 0;
    std::uint32_t before = sum_before<kListThreads>(n, &rows);  // rows of the run
    const std::uint32_t room = kFoldRows - before % kFoldRows;  // in the fold at hand
    const std::uint32_t mine = kByRow ? n : n == 0 ? 0 : n > room ? 2 : 1;
    std::uint32_t at = views + sum_before<kListThreads>(mine, &made);
    for (; left != 0; ++at) {
      RowSet part = left & (~left + 1);  // its lowest row
      BlockView made_view;
      if constexpr (kByRow) {
        const int row = __ffsll(static_cast<long long>(part)) - 1;
        made_view = view(run, (b - begin) * kBlockRows + row, rank + before);
        made_view.rows = 1;
      } else {
        part = left;
        const std::uint32_t fits = kFoldRows - before % kFoldRows;
        for (auto drop = static_cast<std::uint32_t>(__popcll(part)); drop > fits; --drop)
          part &= ~(RowSet{1} << (63 - __clzll(static_cast<long long>(part))));  // its highest
        made_view = view(run, b - begin, rank + before);
        made_view.rows = part;
      }
      cut.views[at] = made_view;
      // A fold is told where it begins by the view that does.
      if (before % kFoldRows == 0)
        cut.folds[folds + before / kFoldRows].fold.blocks = {cut.views + at, 1};
      before += static_cast<std::uint32_t>(__popcll(part));
      left &= ~part;
    }
    const std::uint32_t run_folds = (rows + kFoldRows - 1) / kFoldRows;
    views += made;
    folds += run_folds;
    rank += rows;
    __syncthreads();
  }
  // And where it ends by the one after it.
  for (std::uint32_t first = 0; first < folds; first += kListThreads) {
    const std::uint32_t f = first + threadIdx.x;
    const BlockView *begin = nullptr, *end = cut.views + views;
    if (f < folds) begin = cut.folds[f].fold.blocks.data();
    if (f + 1 < folds) end = cut.folds[f + 1].fold.blocks.data();
    __syncthreads();
    if (f < folds) cut.folds[f].fold.blocks = {begin, static_cast<std::size_t>(end - begin)};
  }
  __syncthreads();
  return views;
}

// body(row, its rank) for all rows of `sets`; every thread of the block comes along. Returns how
// many those are.
template <typename Body>
__device__ std::uint32_t for_ranks(const RowSet* sets, std::uint32_t blocks, const Body& body) {
  std::uint32_t before = 0;
  for (std::uint32_t first = 0; first < blocks; first += kListThreads) {
    const std::uint32_t b = first + threadIdx.x;
    RowSet set = b < blocks ? sets[b] : 0;
    std::uint32_t total = 0;
    std::uint32_t rank = before + sum_before<kListThreads>(__popcll(set), &total);
    before += total;
    for (; set != 0; set &= set - 1, ++rank)
      body(b * kBlockRows + __ffsll(static_cast<long long>(set)) - 1, rank);
  }
  return before;
}

// Of rows that have values alone, and scores that are given.
__device__ HeadFold scored_fold(const float* query, RowFormat format, std::uint32_t row_bytes) {
  HeadFold made;
  made.query = query;
  made.fold.value_format = format;
  made.fold.key_stride = made.fold.value_stride = row_bytes;
  made.fold.scored = true;
  return made;
}
__device__ BlockView scored_view(const std::byte* rows, std::uint32_t block,
                                 std::uint32_t row_bytes, const float* scores) {
  const std::byte* value = rows + std::size_t(block) * kBlockRows * row_bytes;
  return {value, value, 0, scores};
}

// Block (list): the folds of what is chosen.
__global__ void __launch_bounds__(kListThreads)
    write_folds(SketchShape shape, const SketchList* lists, SketchBoard boards) {
  const SketchList& list = lists[blockIdx.x];
  const SketchBoard board = board_of(shape, boards, blockIdx.x);
  const std::uint32_t heads = shape.head.heads;
  const auto runs = static_cast<std::uint32_t>(list.runs.size());
  const SketchRun* const run = list.runs.data();

  HeadFold rows;
  rows.query = list.query;
  rows.fold.key_format = shape.key_format;
  rows.fold.value_format = shape.value_format;
  rows.fold.key_stride = rows.fold.value_stride = shape.row_bytes;
  const Cut of_rows{board.sets, blocks_of(list.rows), board.views, board.folds, shape.row_folds()};
  const auto first_row_block = [&](std::uint32_t r) { return run[r].first_row / kBlockRows; };
  const auto view_at = [&](const std::byte* key) {
    return BlockView{key, key + shape.key_bytes, 0, nullptr};
  };
  std::uint32_t views = 0;
  if (shape.cached)
    views = cut_folds<true>(
        of_rows, runs, first_row_block,
        [&](std::uint32_t r, std::uint32_t row, std::uint32_t) {
          const std::int32_t slot = list.cache.slot_of[run[r].first_row + row];
          return view_at(slot < 0
                             ? run[r].row - shape.key_bytes + std::size_t(row) * shape.row_bytes
                             : list.cache.records + std::size_t(slot) * shape.row_bytes);
        },
        rows);
  else
    views = cut_folds<false>(
        of_rows, runs, first_row_block,
        [&](std::uint32_t r, std::uint32_t block, std::uint32_t) {
          return view_at(run[r].row - shape.key_bytes +
                         std::size_t(block) * kBlockRows * shape.row_bytes);
        },
        rows);

  // A row that is read is not attended by its code too.
  if (shape.most_coded > 0) {
    for (std::uint32_t b = threadIdx.x; b < blocks_of(list.rows); b += kListThreads)
      board.coded[b] &= ~board.sets[b];
    __syncthreads();
    HeadFold codes = scored_fold(list.query, shape.residual_format, shape.residual_bytes);
    codes.fold.residual = true;
    views += cut_folds<false>(
        {board.coded, blocks_of(list.rows), board.views + views, board.folds + shape.row_folds(),
         shape.coded_folds()},
        runs, first_row_block,
        [&](std::uint32_t r, std::uint32_t block, std::uint32_t rank) {
          return scored_view(run[r].residual, block, shape.residual_bytes,
                             board.coded_weight + std::size_t(rank) * heads);
        },
        codes);
    for_ranks(board.coded, blocks_of(list.rows), [&](std::uint32_t row, std::uint32_t rank) {
      for (std::uint32_t h = 0; h < heads; ++h)
        board.coded_weight[std::size_t(rank) * heads + h] =
            board.shift[h] + logf(board.weight[std::size_t(h) * shape.most_rows + row]);
    });
  }

  cut_folds<false>(
      {board.estimated, blocks_of(list.clusters), board.views + views,
       board.folds + shape.row_folds() + shape.coded_folds(), shape.summary_folds()},
      runs, [&](std::uint32_t r) { return run[r].first_cluster / kBlockRows; },
      [&](std::uint32_t r, std::uint32_t block, std::uint32_t rank) {
        return scored_view(run[r].summary, block, shape.summary_bytes,
                           board.log_weight + std::size_t(rank) * heads);
      },
      scored_fold(list.query, shape.summary_format, shape.summary_bytes));
  // Their scores: the cluster's, and the log of how many rows it stands for; where rows are coded,
  // the log of all weight that it has.
  const auto weigh = [&](std::uint32_t c, std::uint32_t rank) {
    const float unread = board.unread[c];
    for (std::uint32_t h = 0; h < heads; ++h) {
      const std::size_t at = std::size_t(h) * shape.most_clusters + c;
      const float score = board.cluster_score[at], coded = board.cluster_coded[at];
      board.log_weight[std::size_t(rank) * heads + h] =
          coded > 0.0f ? board.shift[h] + logf(coded + unread * expf(score - board.shift[h]))
                       : score + logf(unread);
    }
  };
  const std::uint32_t summaries = for_ranks(board.estimated, blocks_of(list.clusters), weigh);
  if (threadIdx.x == 0) *board.summaries = summaries;
}

using Kernel = void (*)(SketchShape, const SketchList*, SketchBoard);

Kernel scorer(std::uint32_t heads) {
  if (heads == 1) return score_clusters<1>;
  if (heads == 2) return score_clusters<2>;
  return heads <= 4 ? score_clusters<4> : score_clusters<8>;
}

Kernel weigher(int bits) {
  if (bits == 1) return weigh_rows<1>;
  return bits == 4 ? weigh_rows<4> : weigh_rows<2>;
}

std::size_t cut_board(const SketchShape& shape, std::byte* memory, SketchBoard* board) {
  const std::size_t lists = shape.lists, heads = lists * shape.head.heads;
  Pieces pieces(memory);
  pieces.take(heads, &board->query_scale);
  pieces.take(heads, &board->query_sum);
  pieces.take(heads * shape.head.key_dim / 4, &board->query_code);
  pieces.take(heads * shape.most_clusters, &board->cluster_score);
  pieces.take(heads, &board->shift);
  pieces.take(heads, &board->beside);
  pieces.take(heads, &board->cluster_share);
  pieces.take(heads * shape.most_rows, &board->weight);
  pieces.take(heads * chunks_of(shape.most_rows), &board->part_sum);
  pieces.take(lists * shape.most_rows, &board->mass);
  pieces.take(shape.most_coded > 0 ? lists * shape.most_rows : 0, &board->loss);
  pieces.take(lists * blocks_of(shape.most_rows), &board->sets);
  pieces.take(lists * blocks_of(shape.most_rows), &board->coded);
  pieces.take(lists * blocks_of(shape.most_rows), &board->ties);
  pieces.take(lists * blocks_of(shape.most_clusters), &board->estimated);
  pieces.take(lists, &board->summaries);
  pieces.take(shape.cached ? lists * shape.most_budget : 0, &board->missed);
  pieces.take(shape.cached ? lists : 0, &board->fetched);
  pieces.take(lists * shape.most_clusters, &board->unread);
  pieces.take(heads * shape.most_clusters, &board->log_weight);
  pieces.take(heads * shape.most_clusters, &board->cluster_coded);
  pieces.take(heads * shape.most_coded, &board->coded_weight);
  pieces.take(lists * shape.views(), &board->views);
  pieces.take(lists * shape.folds(), &board->folds);
  return pieces.bytes();
}

}  // namespace

std::size_t SketchBoard::bytes(const SketchShape& shape) {
  SketchBoard nowhere;
  return cut_board(shape, nullptr, &nowhere);
}

SketchBoard SketchBoard::cut(const SketchShape& shape, std::byte* memory) {
  SketchBoard board;
  cut_board(shape, memory, &board);
  return board;
}

Status can_choose(const SketchShape& shape) {
  const HeadShape head = shape.head;
  if (head.heads < 1 || head.heads > kMostHeads)
    return fail(ErrorCode::unsupported, "choosing on the device takes 1 to ", kMostHeads,
                " query heads a KV head, not ", head.heads);
  if (!sketch_takes(shape.bits, head.key_dim) || head.key_dim > kMaxHeadDim)
    return fail(ErrorCode::unsupported, "choosing on the device takes codes of 1, 2 or 4 bits of ",
                "head sizes up to ", kMaxHeadDim, ", not ", shape.bits, " of ", head.key_dim);
  Fold rows, summaries;
  rows.key_format = shape.key_format;
  rows.value_format = shape.value_format;
  summaries.value_format = shape.summary_format;
  summaries.scored = true;
  Fold residuals = summaries;
  residuals.value_format = shape.residual_format;
  for (const Fold& fold : {rows, summaries, residuals}) TL_TRY(can_attend(head, fold));
  return {};
}

Status choose(Stream& stream, const SketchShape& shape, std::span<const SketchList> lists,
              const SketchBoard& board) {
  TL_TRY(can_choose(shape));
  TL_CHECK(lists.size() == shape.lists && shape.lists <= 65535);
  if (lists.empty()) return {};
  const unsigned heads = shape.head.heads, count = shape.lists;
  const auto queue = [&](const char* name, dim3 grid, int threads, Kernel kernel) {
    return launch(stream, name, grid, dim3(static_cast<unsigned>(threads)), kernel, shape,
                  lists.data(), board);
  };
  const dim3 row_chunks(chunks_of(shape.most_rows), count);
  TL_TRY(queue("prepare queries", dim3(heads, count), kThreads, prepare_queries));
  TL_TRY(queue("score clusters", dim3(chunks_of(shape.most_clusters), count), kThreads,
               scorer(heads)));
  TL_TRY(queue("weigh clusters", dim3(heads, count), kThreads, weigh_clusters));
  TL_TRY(queue("weigh rows", row_chunks, kThreads, weigher(shape.bits)));
  TL_TRY(queue("add heads", row_chunks, kThreads, add_heads));
  if (shape.most_coded > 0) TL_TRY(queue("take codes", dim3(count), kListThreads, take_rows<true>));
  TL_TRY(queue("take rows", dim3(count), kListThreads, take_rows<false>));
  if (shape.cached) TL_TRY(fetch(stream, shape, lists, board));
  TL_TRY(queue("find unread", dim3(count), kListThreads, find_unread));
  return queue("write folds", dim3(count), kListThreads, write_folds);
}

}  // namespace thermocline::cuda
