#include "kernels/cuda/prefill.h"

#include <cuda_fp16.h>
#include <mma.h>

#include <cstdint>
#include <limits>
#include <type_traits>

#include "kernels/cuda/attend.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/row_part.h"
#include "kernels/cuda/warp.h"

namespace thermocline::cuda {
namespace {

namespace wmma = nvcuda::wmma;

constexpr unsigned kSide = 16;  // of a matrix that tensor cores multiply
constexpr unsigned kTile = kPrefillTile;
constexpr unsigned kWarps = kTile / kSide;  // each has a side of the tile's queries
constexpr unsigned kThreads = kWarps * kWarp;
constexpr unsigned kBlock = kBlockRows;  // rows that a tile meets at a time
// Between rows of a tile, lest their banks meet.
constexpr unsigned kHalvesApart = 8;
constexpr unsigned kScoresApart = kBlock + 8;
constexpr float kNone = -std::numeric_limits<float>::infinity();
// Scores are in powers of two. A weight is at most 2^kMostWeight: so high that those which f16 has
// no bits for are nothing beside it, and sums of products stay far below the largest float.
constexpr float kLog2e = 1.4426950408889634f;
constexpr float kMostWeight = 15.0f;

// Of channels up to so many, keys and values of a block have a tile each; of more, which devices
// with less shared memory have no room for, one after the other.
constexpr unsigned kApartUpTo = 128;

struct Shared {
  unsigned key_apart, value_apart;  // halves from a row to the next
  bool apart;
  __host__ __device__ explicit Shared(HeadShape head)
      : key_apart(head.key_dim + kHalvesApart),
        value_apart(head.value_dim + kHalvesApart),
        apart(head.key_dim <= kApartUpTo && head.value_dim <= kApartUpTo) {}
  // In halves, as what follows: of queries, keys, values; then scores.
  __host__ __device__ unsigned keys() const { return kTile * key_apart; }
  __host__ __device__ unsigned values() const { return keys() + (apart ? kBlock * key_apart : 0); }
  __host__ __device__ unsigned scores() const {
    const unsigned wider = key_apart > value_apart ? key_apart : value_apart;
    return apart ? values() + kBlock * value_apart : keys() + kBlock * wider;
  }
  __host__ __device__ unsigned bytes() const {
    return scores() * 2 + kTile * kScoresApart * static_cast<unsigned>(sizeof(float));
  }
};

__device__ unsigned pair_of(float low, float high) {
  return __half_as_ushort(__float2half_rn(low)) | unsigned{__half_as_ushort(__float2half_rn(high))}
                                                      << 16;
}

// The queries of a tile; zeros behind the last one.
__device__ void read_queries(const PrefillShape& shape, const std::byte* queries, unsigned head,
                             unsigned first, unsigned count, __half* tile, unsigned apart) {
  const unsigned parts = shape.head.key_dim / kPart;
  for (unsigned i = threadIdx.x; i < kTile * parts; i += kThreads) {
    const unsigned row = i / parts, part = i % parts, q = first + row;
    uint4 raw = {0, 0, 0, 0};
    if (q < count) {
      const unsigned token = q / shape.head.heads, of_group = q % shape.head.heads;
      const std::size_t at =
          std::size_t{token} * shape.q_heads() + head * shape.head.heads + of_group;
      raw = read_as<uint4>(queries + at * shape.query_bytes() + part * sizeof(uint4));
    }
    *reinterpret_cast<uint4*>(tile + row * apart + part * kPart) = raw;
  }
}

// What undoes the power of two that a query was multiplied by.
__device__ float scale_of(const PrefillShape& shape, const std::byte* queries, unsigned head,
                          unsigned q) {
  const unsigned token = q / shape.head.heads, of_group = q % shape.head.heads;
  const std::size_t at = std::size_t{token} * shape.q_heads() + head * shape.head.heads + of_group;
  return read_as<float>(queries + at * shape.query_bytes() + shape.head.key_dim * 2);
}

// One side of the rows in the slots [from, to) of a block, of which `slot0` would be the first; the
// other slots are zeros, since what is in them is multiplied by weights of 0.
template <typename Part>
__device__ void read_side(const std::byte* slot0, std::size_t row_bytes, unsigned dim,
                          unsigned from, unsigned to, __half* tile, unsigned apart) {
  constexpr unsigned kLoads = 4;  // asked for before the first is needed
  const unsigned parts = dim / kPart;
  for (unsigned first = threadIdx.x; first < kBlock * parts; first += kLoads * kThreads) {
    typename Part::Raw raw[kLoads] = {};
#pragma unroll
    for (unsigned a = 0; a < kLoads; ++a) {
      const unsigned i = first + a * kThreads, row = i / parts;
      if (i < kBlock * parts && row >= from && row < to)
        raw[a] = Part::load(slot0 + row * row_bytes, dim, static_cast<int>(i % parts));
    }
#pragma unroll
    for (unsigned a = 0; a < kLoads; ++a) {
      const unsigned i = first + a * kThreads;
      if (i >= kBlock * parts) break;
      uint4* const to_part = reinterpret_cast<uint4*>(tile + i / parts * apart + i % parts * kPart);
      if constexpr (std::is_same_v<Part, PartF16>) {
        *to_part = raw[a];
      } else {
        float x[kPart];
        Part::unpack(raw[a], x);
        *to_part = {pair_of(x[0], x[1]), pair_of(x[2], x[3]), pair_of(x[4], x[5]),
                    pair_of(x[6], x[7])};
      }
    }
  }
}

__device__ void read_side(RowFormat format, const std::byte* slot0, std::size_t row_bytes,
                          unsigned dim, unsigned from, unsigned to, __half* tile, unsigned apart) {
  if (format == RowFormat::int8)
    read_side<PartInt8>(slot0, row_bytes, dim, from, to, tile, apart);
  else if (format == RowFormat::q8_0)
    read_side<PartQ8_0>(slot0, row_bytes, dim, from, to, tile, apart);
  else
    read_side<PartF16>(slot0, row_bytes, dim, from, to, tile, apart);
}

using Sum = wmma::fragment<wmma::accumulator, kSide, kSide, kSide, float>;

// Of a warp's queries, each of which two lanes have: the scores of a block become weights, in
// place. Returns whether any query's sums so far are to be multiplied; by how much lies behind its
// weights then.
struct Softmax {
  float largest, sum;  // of this lane's query: the largest score, and of its weights
  float scale;         // of its scores
  long long position;

  // Slots [from, to) have rows, the slot 0 at position `at`.
  __device__ bool weigh(float* scores, bool masked, unsigned window, unsigned from, unsigned to,
                        long long at) {
    const unsigned lane = threadIdx.x % kWarp, half = lane % 2;
    float* const row = scores + lane / 2 * kScoresApart;
    int first = static_cast<int>(from), last = static_cast<int>(to);  // that the query sees
    if (masked) {
      const long long end = position + 1 - at, begin = end - window;
      if (end < last) last = static_cast<int>(max(end, 0ll));
      if (window > 0 && begin > first) first = static_cast<int>(min(begin, 0ll + kBlock));
    }
    constexpr unsigned kQuads = kBlock / 8;  // of four scores, every other one is this lane's
    float score[kQuads][4];
    float most = largest;
#pragma unroll
    for (unsigned i = 0; i < kQuads; ++i) {
      const unsigned column = (2 * i + half) * 4;
      const float4 quad = *reinterpret_cast<const float4*>(row + column);
      const float of_quad[] = {quad.x, quad.y, quad.z, quad.w};
#pragma unroll
      for (unsigned j = 0; j < 4; ++j) {
        const int slot = static_cast<int>(column + j);
        score[i][j] = slot >= first && slot < last ? of_quad[j] * scale : kNone;
        most = fmaxf(most, score[i][j]);
      }
    }
    most = fmaxf(most, __shfl_xor_sync(kWholeWarp, most, 1));
    // Both none: there is nothing to keep, and -inf - -inf is not a number.
    const float keep = largest == most ? 1.0f : exp2f(largest - most);
    const float base = most == kNone ? 0.0f : most;
    __syncwarp();  // all have read their scores
    float total = 0.0f;
#pragma unroll
    for (unsigned i = 0; i < kQuads; ++i) {
      float weight[4];
#pragma unroll
      for (unsigned j = 0; j < 4; ++j) {
        // Of -inf it is 0.
        const __half rounded = __float2half_rn(exp2f(score[i][j] - base + kMostWeight));
        weight[j] = __half2float(rounded);
        total += weight[j];
      }
      *reinterpret_cast<uint2*>(reinterpret_cast<__half*>(row) + (2 * i + half) * 4) = {
          pair_of(weight[0], weight[1]), pair_of(weight[2], weight[3])};
    }
    total += __shfl_xor_sync(kWholeWarp, total, 1);
    largest = most;
    sum = sum * keep + total;
    const bool rescaled = __ballot_sync(kWholeWarp, keep != 1.0f) != 0;
    if (rescaled) {
#pragma unroll
      for (unsigned i = 0; i < kSide / 2; ++i) row[kBlock / 2 + half * kSide / 2 + i] = keep;
    }
    __syncwarp();
    return rescaled;
  }
};

// Block (tile, KV head), the last tiles, which see most, first. Up to kMost channels a value.
template <unsigned kMost>
__global__ void __launch_bounds__(kThreads)
    attend_tile(PrefillShape shape, const std::byte* queries, PrefillLaunch of,
                PrefillStates states) {
  const unsigned head = blockIdx.y, tile = of.last_tile - 1 - blockIdx.x;
  const unsigned first_stretch = of.first_of_head[head], last_stretch = of.first_of_head[head + 1];
  if (first_stretch == last_stretch) return;  // the whole block
  const unsigned key_dim = shape.head.key_dim, value_dim = shape.head.value_dim;
  const Shared shared(shape.head);
  __half* const tile_q = reinterpret_cast<__half*>(launch_shared);
  __half* const tile_k = tile_q + shared.keys();
  __half* const tile_v = tile_q + shared.values();
  float* const tile_s = reinterpret_cast<float*>(tile_q + shared.scores());
  const unsigned warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  float* const scores = tile_s + warp * kSide * kScoresApart;
  const __half* const weights = reinterpret_cast<const __half*>(scores);

  const unsigned count = shape.rows * shape.head.heads;
  const unsigned first = tile * kTile;
  const std::size_t state = (std::size_t{head} * tiles_of(shape) + tile) * kTile;
  const long long oldest = shape.first_position + first / shape.head.heads;
  const unsigned last = min(first + kTile, count) - 1;
  const long long newest = shape.first_position + last / shape.head.heads;

  // Queries behind the last one are zeros, and see what that does.
  const unsigned mine = warp * kSide + lane / 2, q = min(first + mine, last);
  Softmax softmax = {states.max[state + mine], states.sum[state + mine],
                     scale_of(shape, queries, head, q) * kLog2e,
                     shape.first_position + q / shape.head.heads};
  read_queries(shape, queries, head, first, count, tile_q, shared.key_apart);
  Sum acc[kMost / kSide];
  float* const acc_at = states.acc + (state + warp * kSide) * value_dim;
#pragma unroll
  for (unsigned n = 0; n < kMost / kSide; ++n)
    if (n * kSide < value_dim)
      wmma::load_matrix_sync(acc[n], acc_at + n * kSide, value_dim, wmma::mem_row_major);

  for (unsigned s = first_stretch; s < last_stretch; ++s) {
    const RowStretch stretch = of.stretches[s];
    const unsigned end = stretch.first_slot + stretch.count;
    for (unsigned slot = stretch.first_slot / kBlock * kBlock; slot < end; slot += kBlock) {
      const unsigned from = stretch.first_slot > slot ? stretch.first_slot - slot : 0;
      const unsigned to = min(end - slot, kBlock);
      const long long at =
          static_cast<long long>(stretch.first_position) - stretch.first_slot + slot;
      if (of.format.masked) {
        if (at + from > newest) break;
        if (shape.window > 0 && at + to - 1 + shape.window <= oldest) continue;
      }
      const std::byte* const slot0 =
          stretch.rows + (static_cast<long long>(slot) - stretch.first_slot) *
                             static_cast<long long>(of.format.row_bytes);
      const auto read_values = [&] {
        read_side(of.format.value, slot0 + of.format.key_bytes, of.format.row_bytes, value_dim,
                  from, to, tile_v, shared.value_apart);
      };
      read_side(of.format.key, slot0, of.format.row_bytes, key_dim, from, to, tile_k,
                shared.key_apart);
      if (shared.apart) read_values();
      __syncthreads();
      Sum score[kBlock / kSide];
#pragma unroll
      for (Sum& sum : score) wmma::fill_fragment(sum, 0.0f);
      for (unsigned k = 0; k < key_dim; k += kSide) {
        wmma::fragment<wmma::matrix_a, kSide, kSide, kSide, __half, wmma::row_major> a;
        wmma::load_matrix_sync(a, tile_q + warp * kSide * shared.key_apart + k, shared.key_apart);
#pragma unroll
        for (unsigned n = 0; n < kBlock / kSide; ++n) {
          wmma::fragment<wmma::matrix_b, kSide, kSide, kSide, __half, wmma::col_major> b;
          wmma::load_matrix_sync(b, tile_k + n * kSide * shared.key_apart + k, shared.key_apart);
          wmma::mma_sync(score[n], a, b, score[n]);
        }
      }
#pragma unroll
      for (unsigned n = 0; n < kBlock / kSide; ++n)
        wmma::store_matrix_sync(scores + n * kSide, score[n], kScoresApart, wmma::mem_row_major);
      __syncwarp();
      if (softmax.weigh(scores, of.format.masked, shape.window, from, to, at)) {
        Sum keep;
        wmma::load_matrix_sync(keep, scores + kBlock / 2, kScoresApart, wmma::mem_row_major);
#pragma unroll
        for (unsigned n = 0; n < kMost / kSide; ++n) {
          if (n * kSide >= value_dim) break;
#pragma unroll
          for (int i = 0; i < Sum::num_elements; ++i) acc[n].x[i] *= keep.x[i];
        }
      }
      if (!shared.apart) {
        __syncthreads();
        read_values();
        __syncthreads();
      }
      for (unsigned k = 0; k < kBlock; k += kSide) {
        wmma::fragment<wmma::matrix_a, kSide, kSide, kSide, __half, wmma::row_major> a;
        wmma::load_matrix_sync(a, weights + k, 2 * kScoresApart);
#pragma unroll
        for (unsigned n = 0; n < kMost / kSide; ++n) {
          if (n * kSide >= value_dim) break;
          wmma::fragment<wmma::matrix_b, kSide, kSide, kSide, __half, wmma::row_major> b;
          wmma::load_matrix_sync(b, tile_v + k * shared.value_apart + n * kSide,
                                 shared.value_apart);
          wmma::mma_sync(acc[n], a, b, acc[n]);
        }
      }
      __syncthreads();  // the tiles may be written again
    }
  }
#pragma unroll
  for (unsigned n = 0; n < kMost / kSide; ++n)
    if (n * kSide < value_dim)
      wmma::store_matrix_sync(acc_at + n * kSide, acc[n], value_dim, wmma::mem_row_major);
  if (lane % 2 == 0) {
    states.max[state + mine] = softmax.largest;
    states.sum[state + mine] = softmax.sum;
  }
}

constexpr unsigned kPlainThreads = 64;

// Block (tile, KV head).
__global__ void __launch_bounds__(kPlainThreads)
    clear_tile(PrefillShape shape, PrefillStates states) {
  const std::size_t state = (std::size_t{blockIdx.y} * tiles_of(shape) + blockIdx.x) * kTile;
  for (unsigned i = threadIdx.x; i < kTile; i += kPlainThreads) {
    states.max[state + i] = kNone;
    states.sum[state + i] = 0.0f;
  }
  const unsigned value_dim = shape.head.value_dim;
  for (unsigned i = threadIdx.x; i < kTile * value_dim; i += kPlainThreads)
    states.acc[state * value_dim + i] = 0.0f;
}

// A block a row. Adding 0 makes one zero of two: which of them a sum that vanished is depends on
// the blocks that its tile looked at.
__global__ void __launch_bounds__(kPlainThreads)
    finish_row(PrefillShape shape, PrefillStates states, std::uint32_t first, float* out) {
  const unsigned row = first + blockIdx.x, heads = shape.head.heads;
  const unsigned value_dim = shape.head.value_dim, all = shape.q_heads() * value_dim;
  for (unsigned i = threadIdx.x; i < all; i += kPlainThreads) {
    const unsigned q_head = i / value_dim, d = i % value_dim;
    const std::size_t state = std::size_t{q_head / heads} * tiles_of(shape) * kTile +
                              std::size_t{row} * heads + q_head % heads;
    const float sum = states.sum[state];
    out[std::size_t{blockIdx.x} * all + i] =
        sum > 0.0f ? states.acc[state * value_dim + d] / sum + 0.0f : 0.0f;
  }
}

}  // namespace

Status clear_states(Stream& stream, const PrefillShape& shape, PrefillStates states) {
  return launch(stream, "clear states", dim3(tiles_of(shape), shape.kv_heads), dim3(kPlainThreads),
                clear_tile, shape, states);
}

Status attend_tiles(Stream& stream, const PrefillShape& shape, const std::byte* queries,
                    const PrefillLaunch& of, PrefillStates states) {
  if (of.first_tile >= of.last_tile) return {};
  const LaunchSize size = {dim3(of.last_tile - of.first_tile, shape.kv_heads), dim3(kThreads),
                           Shared(shape.head).bytes()};
  const auto kernel = shape.head.value_dim <= 64    ? attend_tile<64>
                      : shape.head.value_dim <= 128 ? attend_tile<128>
                                                    : attend_tile<kMaxHeadDim>;
  return launch(stream, "attend a prefill", size, kernel, shape, queries, of, states);
}

Status finish_rows(Stream& stream, const PrefillShape& shape, PrefillStates states,
                   std::uint32_t first, std::uint32_t rows, float* out) {
  return launch(stream, "finish a prefill", dim3(rows), dim3(kPlainThreads), finish_row, shape,
                states, first, out);
}

}  // namespace thermocline::cuda
