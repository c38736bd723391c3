#include "kernels/cuda/rebuild.h"

#include <cuda_fp16.h>
#include <mma.h>

#include "kernels/cuda/board.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/row_part.h"
#include "kernels/cuda/warp.h"

namespace thermocline::cuda {
namespace {

namespace wmma = nvcuda::wmma;

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kSide = 16;         // of a matrix that tensor cores multiply
constexpr int kRows = 2 * kSide;  // that a thread block rebuilds: rows of one fold
constexpr int kStep = 4 * kSide;  // basis vectors at a time
constexpr int kApart = 8;         // values between a tile's rows, lest their banks meet
constexpr int kAcross = kWarps * kSide / kRows;  // warps that share a row's channels
constexpr int kTilesAWarp = kMaxHeadDim / kSide / kAcross;
constexpr int kQuad = 4;  // values a load: what a fit holds lies at 8 bytes
static_assert(kFoldRows % kRows == 0);

// What a block multiplies, and then what comes of it.
struct Operands {
  __half along[kRows][kStep + kApart];
  __half basis[kStep][kMaxHeadDim + kApart];
};
union Tile {
  Operands operands;
  float key[kRows][kMaxHeadDim];
};

// Where a row's key comes from.
struct Source {
  const f16* along;  // null: beyond the last row
  const f16* kept;   // null: it is rebuilt
  std::uint32_t position;
};

__device__ Source source_of(const LowRankKeys& of, std::uint32_t row, std::uint32_t dim) {
  const std::uint32_t offset = of.offset != nullptr ? of.offset[row] : row;
  Source source{of.coefficients + std::size_t(offset) * of.rank, nullptr,
                of.first_position + offset};
  std::uint32_t low = 0, high = of.kept;  // the first kept row that is not before it
  while (low < high) {
    const std::uint32_t middle = (low + high) / 2;
    if (of.kept_number[middle] < row)
      low = middle + 1;
    else
      high = middle;
  }
  if (low < of.kept && of.kept_number[low] == row)
    source.kept = of.kept_key + std::size_t(low) * dim;
  return source;
}

// Four neighbouring values; zeros, of null.
__device__ void copy_quad(const f16* from, __half* to) {
  *reinterpret_cast<uint2*>(to) =
      from != nullptr ? *reinterpret_cast<const uint2*>(from) : uint2{0, 0};
}

// By all threads of a block: coefficients times basis, to tile->key.
__device__ void multiply(const LowRankKeys& of, std::uint32_t dim, const Source* source,
                         Tile* tile) {
  const int warp = threadIdx.x / kWarp;
  const int first_row = warp / kAcross * kSide, first_tile = warp % kAcross;
  const int tiles = static_cast<int>(dim) / kSide;
  wmma::fragment<wmma::accumulator, kSide, kSide, kSide, float> sum[kTilesAWarp];
  for (auto& part : sum) wmma::fill_fragment(part, 0.0f);
  Operands& operands = tile->operands;
  for (std::uint32_t first = 0; first < of.rank; first += kStep) {
    const std::uint32_t vectors = min(of.rank - first, std::uint32_t{kStep});
    const std::uint32_t along_quads = vectors / kQuad, basis_quads = dim / kQuad;
    for (std::uint32_t i = threadIdx.x; i < kRows * along_quads; i += kThreads) {
      const std::uint32_t r = i / along_quads, at = i % along_quads * kQuad;
      const f16* const along = source[r].along;
      copy_quad(along != nullptr ? along + first + at : nullptr, operands.along[r] + at);
    }
    for (std::uint32_t i = threadIdx.x; i < vectors * basis_quads; i += kThreads) {
      const std::uint32_t k = i / basis_quads, at = i % basis_quads * kQuad;
      copy_quad(of.basis + std::size_t(first + k) * dim + at, operands.basis[k] + at);
    }
    __syncthreads();
    for (std::uint32_t k = 0; k < vectors; k += kSide) {
      wmma::fragment<wmma::matrix_a, kSide, kSide, kSide, __half, wmma::row_major> a;
      wmma::load_matrix_sync(a, operands.along[first_row] + k, kStep + kApart);
#pragma unroll
      for (int n = 0; n < kTilesAWarp; ++n) {
        const int t = first_tile + n * kAcross;
        if (t >= tiles) break;
        wmma::fragment<wmma::matrix_b, kSide, kSide, kSide, __half, wmma::row_major> b;
        wmma::load_matrix_sync(b, operands.basis[k] + t * kSide, kMaxHeadDim + kApart);
        wmma::mma_sync(sum[n], a, b, sum[n]);
      }
    }
    __syncthreads();  // the tile may be written again
  }
#pragma unroll
  for (int n = 0; n < kTilesAWarp; ++n) {
    const int t = first_tile + n * kAcross;
    if (t >= tiles) break;
    wmma::store_matrix_sync(tile->key[first_row] + t * kSide, sum[n], kMaxHeadDim,
                            wmma::mem_row_major);
  }
  __syncthreads();
}

// Block (rows of a fold, list). In memory, since attention reads a row's key once for all query
// heads, though it works on eight of them at a time; as floats, since there a second rounding would
// be the only one that the host does not make. They are read back from the second-level cache.
__global__ void __launch_bounds__(kThreads) rebuild_keys(ChoiceShape shape, const ChoiceList* lists,
                                                         ChoiceBoard boards, Rotation rotation) {
  alignas(32) __shared__ Tile tile;
  __shared__ Source source[kRows];
  __shared__ std::uint64_t step[kMaxHeadDim / 2];  // lanes want others: not one argument for all
  constexpr std::uint32_t kParts = kFoldRows / kRows;  // of a fold
  const ChoiceList& list = lists[blockIdx.y];
  const ChoiceBoard board = board_of(shape, boards, blockIdx.y);
  const Fold& fold = board.folds[blockIdx.x / kParts].fold;
  const std::uint32_t first = blockIdx.x % kParts * kRows;
  const auto rows = static_cast<std::uint32_t>(fold.blocks.size());  // a view each
  if (first >= rows) return;
  const std::uint32_t count = min(rows - first, std::uint32_t{kRows});
  const auto rank = static_cast<std::uint32_t>(fold.blocks.data() - board.views) + first;
  const ChoiceRun& run = list.runs.data()[run_of(list, &ChoiceRun::first_row, board.rebuilt[rank])];
  const LowRankKeys& of = run.low_rank;
  const std::uint32_t dim = shape.head.key_dim;
  if (threadIdx.x < kRows)
    source[threadIdx.x] =
        threadIdx.x < count ? source_of(of, board.rebuilt[rank + threadIdx.x] - run.first_row, dim)
                            : Source{nullptr, nullptr, 0};
  for (std::uint32_t i = threadIdx.x; i < rotation.pairs; i += kThreads) step[i] = rotation.step[i];
  __syncthreads();

  multiply(of, dim, source, &tile);

  // Two channels a thread: of a pair, or behind them.
  const bool halves = rotation.layout == RopePairs::halves;
  for (std::uint32_t i = threadIdx.x; i < count * dim / 2; i += kThreads) {
    const std::uint32_t r = i / (dim / 2), pair = i % (dim / 2);
    const bool turns = pair < rotation.pairs;
    const std::uint32_t one = turns && halves ? pair : 2 * pair;
    const std::uint32_t other = turns && halves ? rotation.pairs + pair : one + 1;
    float* const key = board.keys + std::size_t(rank + r) * dim;
    if (const f16* const kept = source[r].kept; kept != nullptr) {
      key[one] = half_bits_to_float(kept[one].bits);
      key[other] = half_bits_to_float(kept[other].bits);
      continue;
    }
    const Angle angle =
        turns ? angle_at(step[pair], source[r].position, rotation.magnitude) : Angle();
    const float a = tile.key[r][one], b = tile.key[r][other];
    key[one] = turns ? a * angle.cosine - b * angle.sine : a;
    key[other] = turns ? a * angle.sine + b * angle.cosine : b;
  }
}

}  // namespace

Status rebuild(Stream& stream, const ChoiceShape& shape, std::span<const ChoiceList> lists,
               const ChoiceBoard& board) {
  constexpr std::uint32_t kParts = kFoldRows / kRows;
  const dim3 grid(shape.row_folds() * kParts, static_cast<unsigned>(lists.size()));
  return launch(stream, "rebuild keys", grid, dim3(kThreads), rebuild_keys, shape, lists.data(),
                board, shape.rotation != nullptr ? *shape.rotation : Rotation());
}

}  // namespace thermocline::cuda
