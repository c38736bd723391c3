#include <cstddef>
#include <limits>

#include "kernels/cuda/attend.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/score_rows.h"

namespace thermocline::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr unsigned kMergeThreads = 1024;
constexpr float kNone = -std::numeric_limits<float>::infinity();
static_assert(kWarp * kPart == kMaxHeadDim, "a row is at most one load of a warp");

// The rows of a fold by rank.
struct Rows {
  const std::byte* key[kFoldRows];
  const std::byte* value[kFoldRows];
  // Of a scored fold, the row's scores, one for each query head; otherwise its log weight, or null.
  const float* weight[kFoldRows];
};

// Rows attended as they are, keys as they were rebuilt; or with scores that are given, and then as
// codes too.
__host__ __device__ bool takes(const Fold& fold) {
  const auto plain = [](RowFormat format) {
    return format == RowFormat::f16 || format == RowFormat::int8 || format == RowFormat::q8_0;
  };
  const auto coded = [](RowFormat format) {
    return format == RowFormat::rotated2 || format == RowFormat::rotated4;
  };
  return (fold.scored && coded(fold.value_format)) ||
         (plain(fold.value_format) &&
          (fold.scored || plain(fold.key_format) || fold.key_format == RowFormat::lowrank));
}

// Fills `rows`; returns how many. Each warp counts all blocks, 32 at a time, and lists its share of
// them, so blocks of one row (scattered picks) and of 64 cost alike and nobody waits for another.
__device__ int list_rows(const Fold& fold, std::uint32_t heads, Rows* rows) {
  if (!takes(fold)) __trap();
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const BlockView* const blocks = fold.blocks.data();
  const int count = static_cast<int>(fold.blocks.size());
  const std::size_t weights_a_row = fold.scored ? heads : 1;
  int listed = 0;
  for (int first = 0; first < count; first += kWarp) {
    const RowSet mine = first + lane < count ? blocks[first + lane].rows : 0;
    int end = __popcll(mine);  // becomes the rows of blocks up to and with this lane's
    for (int step = 1; step < kWarp; step *= 2) {
      const int before = __shfl_up_sync(kWholeWarp, end, step);
      if (lane >= step) end += before;
    }
    const int start = listed + end - __popcll(mine);
    for (int b = warp; b < kWarp && first + b < count; b += kWarps) {
      const RowSet set = __shfl_sync(kWholeWarp, mine, b);
      const int base = __shfl_sync(kWholeWarp, start, b);
      const BlockView& block = blocks[first + b];
      for (int row = lane; row < kBlockRows; row += kWarp) {
        if ((set >> row & 1) == 0) continue;
        const int rank = __popcll(set & first_rows(row));
        const int at = base + rank;
        if (at >= kFoldRows) __trap();
        rows->key[at] = block.key + std::size_t(row) * fold.key_stride;
        rows->value[at] = block.value + std::size_t(row) * fold.value_stride;
        rows->weight[at] =
            block.log_weight != nullptr ? block.log_weight + rank * weights_a_row : nullptr;
      }
    }
    listed += __shfl_sync(kWholeWarp, end, kWarp - 1);
  }
  __syncthreads();
  return listed;
}

template <int kHeads, typename Part>
__device__ void score(const float* query, int heads, std::uint32_t dim, const Rows& rows, int count,
                      float (*out)[kFoldRows]) {
  score_rows<kThreads, kHeads, Part>(
      query, heads, dim, count, [&](int r) { return rows.key[r]; },
      [&](int h, int r, float sum) {
        out[h][r] = sum + (rows.weight[r] != nullptr ? *rows.weight[r] : 0.0f);
      });
  __syncthreads();
}

// out[h][r] of a scored fold, whose query heads from `first_head` on these are.
template <int kHeads>
__device__ void take_scores(const Rows& rows, int count, std::uint32_t first_head, int heads,
                            float (*out)[kFoldRows]) {
  for (int r = threadIdx.x; r < count; r += kThreads)
    for (int h = 0; h < heads; ++h) out[h][r] = rows.weight[r][first_head + h];
  __syncthreads();
}

// In place: score -> e^(score - max), a warp a head.
template <int kHeads>
__device__ void weigh(float (*score)[kFoldRows], int heads, int count, float* max, float* sum) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  for (int h = warp; h < heads; h += kWarps) {
    float largest = kNone;
    for (int r = lane; r < count; r += kWarp) largest = fmaxf(largest, score[h][r]);
    for (int step = kWarp / 2; step > 0; step /= 2)
      largest = fmaxf(largest, __shfl_xor_sync(kWholeWarp, largest, step));
    float total = 0.0f;
    for (int r = lane; r < count; r += kWarp) {
      const float s = score[h][r];
      const float e = s > kNone ? expf(s - largest) : 0.0f;  // -inf - -inf is not a number
      score[h][r] = e;
      total += e;
    }
    for (int step = kWarp / 2; step > 0; step /= 2)
      total += __shfl_xor_sync(kWholeWarp, total, step);
    if (lane == 0) {
      max[h] = largest;
      sum[h] = total;
    }
  }
  __syncthreads();
}

// acc[h][i] = sum over rows of weight[h][r] * value[r][i]. Threads split channels and rows; what
// the rows' threads hold is added in a fixed order, first within a warp, then across warps.
template <int kHeads, typename Part, bool kRotated>
__device__ void accumulate(const float (*weight)[kFoldRows], int heads, std::uint32_t dim,
                           const Rows& rows, int count, float (*of_warp)[kMaxHeadDim], float* acc) {
  const int lanes = lanes_of(dim);
  const int part = threadIdx.x % lanes;
  const int together = kThreads / lanes;  // rows
  const bool loads = part * kPart < static_cast<int>(dim);
  float sum[kHeads][kPart] = {};
  if (loads) {
    for (int first = static_cast<int>(threadIdx.x) / lanes; first < count;
         first += kAhead * together) {
      typename Part::Raw raw[kAhead] = {};
#pragma unroll
      for (int a = 0; a < kAhead; ++a) {
        const int r = first + a * together;
        if (r < count) raw[a] = Part::load(rows.value[r], dim, part);
      }
#pragma unroll
      for (int a = 0; a < kAhead; ++a) {
        const int r = first + a * together;
        if (r >= count) break;
        float value[kPart];
        Part::unpack(raw[a], value);
#pragma unroll
        for (int h = 0; h < kHeads; ++h)
#pragma unroll
          for (int i = 0; i < kPart; ++i)
            sum[h][i] = fmaf(h < heads ? weight[h][r] : 0.0f, value[i], sum[h][i]);
      }
    }
  }
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
#pragma unroll
    for (int i = 0; i < kPart; ++i)
      for (int step = lanes; step < kWarp; step *= 2)
        sum[h][i] += __shfl_xor_sync(kWholeWarp, sum[h][i], step);
    if (h >= heads) continue;  // the same for all threads
    if (lane < lanes && loads) {
#pragma unroll
      for (int i = 0; i < kPart; ++i) of_warp[warp][part * kPart + i] = sum[h][i];
    }
    __syncthreads();
    float total = 0.0f;
    if (threadIdx.x < dim) {
      total = of_warp[0][threadIdx.x];
      for (int w = 1; w < kWarps; ++w) total += of_warp[w][threadIdx.x];
    }
    __syncthreads();
    if constexpr (kRotated) total = hadamard(of_warp[0], dim, total);
    if (threadIdx.x < dim) acc[h * dim + threadIdx.x] = total;
  }
}

// Block (fold, group of kHeads query heads).
template <int kHeads>
__global__ void __launch_bounds__(kThreads)
    attend_fold(HeadShape shape, const HeadFold* folds, States partial) {
  __shared__ Rows rows;
  __shared__ float weight[kHeads][kFoldRows];
  __shared__ float of_warp[kWarps][kMaxHeadDim];
  const HeadFold& task = folds[blockIdx.x];
  const std::uint32_t first_head = blockIdx.y * kHeads;
  const int heads = static_cast<int>(min(shape.heads - first_head, std::uint32_t{kHeads}));
  const std::size_t state = std::size_t{blockIdx.x} * shape.heads + first_head;

  const int count = list_rows(task.fold, shape.heads, &rows);
  const float* query = task.query + std::size_t{first_head} * shape.key_dim;
  if (task.fold.scored)
    take_scores<kHeads>(rows, count, first_head, heads, weight);
  else if (task.fold.key_format == RowFormat::int8)
    score<kHeads, PartInt8>(query, heads, shape.key_dim, rows, count, weight);
  else if (task.fold.key_format == RowFormat::lowrank)
    score<kHeads, PartF32>(query, heads, shape.key_dim, rows, count, weight);
  else if (task.fold.key_format == RowFormat::q8_0)
    score<kHeads, PartQ8_0>(query, heads, shape.key_dim, rows, count, weight);
  else
    score<kHeads, PartF16>(query, heads, shape.key_dim, rows, count, weight);

  weigh<kHeads>(weight, heads, count, partial.max + state, partial.sum + state);

  float* acc = partial.acc + state * shape.value_dim;
  const auto add = [&](auto reader, auto rotated) {
    accumulate<kHeads, decltype(reader), decltype(rotated)::value>(weight, heads, shape.value_dim,
                                                                   rows, count, of_warp, acc);
  };
  switch (task.fold.value_format) {
    case RowFormat::int8:
      add(PartInt8(), std::false_type());
      break;
    case RowFormat::q8_0:
      add(PartQ8_0(), std::false_type());
      break;
    case RowFormat::rotated2:
      add(PartRotated<2>(), std::true_type());
      break;
    case RowFormat::rotated4:
      add(PartRotated<4>(), std::true_type());
      break;
    default:
      add(PartF16(), std::false_type());
  }
  // Its rows' weights are in others' sums already.
  if (task.fold.residual && static_cast<int>(threadIdx.x) < heads)
    partial.sum[state + threadIdx.x] = 0.0f;
}

// A state as a thread has it: of one channel, with all that a head has in common.
struct Running {
  float max = kNone, sum = 0.0f, acc = 0.0f;
  __device__ void take(float from_max, float from_sum, float from_acc) {
    if (from_max == kNone) return;
    const float larger = fmaxf(from_max, max);
    const float keep = max == kNone ? 0.0f : expf(max - larger);
    const float by = expf(from_max - larger);
    max = larger;
    sum = sum * keep + from_sum * by;
    acc = fmaf(from_acc, by, acc * keep);
  }
};

// Block (list, head): as many groups as there is room for, of `width` threads each, a thread a
// channel. Each merges a part of the states that are not empty, as many as the others, so that what
// is merged with what is the list's business, wherever there are empty ones between them.
__global__ void __launch_bounds__(kMergeThreads)
    merge_list(HeadShape shape, unsigned width, States partial, const std::uint32_t* first,
               States merged) {
  __shared__ float group_max[kMergeThreads / kWarp], group_sum[kMergeThreads / kWarp];
  __shared__ float group_acc[kMergeThreads];
  const std::uint32_t begin = first[blockIdx.x], end = first[blockIdx.x + 1];
  const unsigned group = threadIdx.x / width, channel = threadIdx.x % width;
  const unsigned groups = kMergeThreads / width, lane = threadIdx.x % kWarp;
  const bool has_channel = channel < shape.value_dim && group < groups;
  const auto state_of = [&](std::uint32_t i) { return std::size_t(i) * shape.heads + blockIdx.y; };

  unsigned mine = 0;
  for (std::uint32_t i = begin + threadIdx.x; i < end; i += kMergeThreads)
    mine += partial.max[state_of(i)] != kNone ? 1 : 0;
  const unsigned count = reduce<kMergeThreads>(mine, Add());
  const unsigned share = (count + groups - 1) / groups;
  const unsigned low = min(count, group * share), high = min(count, low + share);

  Running state;
  unsigned rank = 0;  // of the states before `at`
  for (std::uint32_t at = begin; at < end && rank < high; at += kWarp) {
    const bool is_one = at + lane < end;
    const float max = is_one ? partial.max[state_of(at + lane)] : kNone;
    const float sum = is_one ? partial.sum[state_of(at + lane)] : 0.0f;
    unsigned left = __ballot_sync(kWholeWarp, max != kNone);
    const unsigned here = __popc(left);
    unsigned skipped = 0;
    for (; rank + skipped < low && left != 0; ++skipped) left &= left - 1;
    unsigned due = left == 0 ? 0 : high - rank - skipped;
    rank += here;
    while (left != 0 && due > 0) {
      float acc[kAhead];
      int from[kAhead];
      int taken = 0;
#pragma unroll
      for (int a = 0; a < kAhead; ++a) {
        from[a] = 0;
        acc[a] = 0.0f;
        if (left == 0 || due == 0) continue;
        from[a] = __ffs(left) - 1;
        left &= left - 1;
        --due;
        ++taken;
        if (has_channel) acc[a] = partial.acc[state_of(at + from[a]) * shape.value_dim + channel];
      }
#pragma unroll
      for (int a = 0; a < kAhead; ++a) {
        const float from_max = __shfl_sync(kWholeWarp, max, from[a]);
        const float from_sum = __shfl_sync(kWholeWarp, sum, from[a]);
        if (a < taken) state.take(from_max, from_sum, acc[a]);
      }
    }
  }
  if (channel == 0 && group < groups) {
    group_max[group] = state.max;
    group_sum[group] = state.sum;
  }
  if (has_channel) group_acc[group * width + channel] = state.acc;
  __syncthreads();
  if (group > 0) return;
  for (unsigned other = 1; other < groups; ++other)
    state.take(group_max[other], group_sum[other],
               has_channel ? group_acc[other * width + channel] : 0.0f);
  const std::size_t to = std::size_t(blockIdx.x) * shape.heads + blockIdx.y;
  if (channel == 0) {
    merged.max[to] = state.max;
    merged.sum[to] = state.sum;
  }
  if (has_channel) merged.acc[to * shape.value_dim + channel] = state.acc;
}

struct Choice {
  std::uint32_t heads;  // a thread block's
  void (*kernel)(HeadShape, const HeadFold*, States);
};

Choice choose(std::uint32_t heads) {
  if (heads == 1) return {1, attend_fold<1>};
  if (heads == 2) return {2, attend_fold<2>};
  if (heads <= 4) return {4, attend_fold<4>};
  return {8, attend_fold<8>};
}

bool takes(std::uint32_t dim) { return dim >= 16 && dim <= kMaxHeadDim && dim % 16 == 0; }

// A grid's first extent.
Status can_launch(std::size_t count, const char* what) {
  if (count <= static_cast<std::size_t>(std::numeric_limits<int>::max())) return {};
  return fail(ErrorCode::invalid_argument, what, ": ", count, " in one launch, at most ",
              std::numeric_limits<int>::max());
}

Status check_shape(HeadShape shape) {
  if (shape.heads < 1 || shape.heads > kMaxHeads)
    return fail(ErrorCode::unsupported, "CUDA attention takes 1 to ", kMaxHeads,
                " query heads a KV head, not ", shape.heads);
  if (!takes(shape.key_dim) || !takes(shape.value_dim))
    return fail(ErrorCode::unsupported, "CUDA attention takes head sizes of 16 to ", kMaxHeadDim,
                " in steps of 16, not ", shape.key_dim, " (keys) and ", shape.value_dim,
                " (values)");
  return {};
}

}  // namespace

Status can_attend(HeadShape shape, const Fold& fold) {
  TL_TRY(check_shape(shape));
  if (!fold.scored && fold.key_format == RowFormat::lowrank)
    return fail(ErrorCode::unsupported,
                "CUDA attention takes keys at low rank only of rows that the device chose");
  if (!takes(fold))
    return fail(ErrorCode::unsupported,
                "CUDA attention takes rows in f16, int8 or q8_0, and as rotated codes only values "
                "whose scores are given");
  return {};
}

Status attend(Stream& stream, HeadShape shape, std::span<const HeadFold> folds, States partial) {
  TL_TRY(check_shape(shape));
  TL_TRY(can_launch(folds.size(), "folds"));
  if (folds.empty()) return {};
  const Choice choice = choose(shape.heads);
  const dim3 grid(static_cast<unsigned>(folds.size()),
                  (shape.heads + choice.heads - 1) / choice.heads);
  return launch(stream, "attend", grid, dim3(kThreads), choice.kernel, shape, folds.data(),
                partial);
}

Status merge(Stream& stream, HeadShape shape, States partial, std::span<const std::uint32_t> first,
             States merged) {
  TL_TRY(check_shape(shape));
  TL_TRY(can_launch(first.size(), "lists"));
  if (first.size() < 2) return {};
  const dim3 grid(static_cast<unsigned>(first.size() - 1), shape.heads);
  const unsigned width = (shape.value_dim + kWarp - 1) / kWarp * kWarp;
  return launch(stream, "merge", grid, dim3(kMergeThreads), merge_list, shape, width, partial,
                first.data(), merged);
}

}  // namespace thermocline::cuda
