#include "kernels/cuda/turn.h"

#include <cuda_fp16.h>

#include <algorithm>
#include <limits>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/warp.h"

namespace thermocline::cuda {
namespace {

constexpr float kLargest = 65504.0f;  // f16
constexpr float kNone = -std::numeric_limits<float>::infinity();

// Channel d of a head's row `x` as its embedding leaves it.
__device__ float turned(const TurnedLayer& layer, const TurnedRow& row, const float* x,
                        unsigned d) {
  const bool halves = layer.halves != 0;
  if (d >= 2 * layer.pairs) return x[d];
  const unsigned pair = halves ? d % layer.pairs : d / 2;
  const bool second = halves ? d >= layer.pairs : d % 2 != 0;
  const float a = x[halves ? pair : 2 * pair], b = x[halves ? layer.pairs + pair : 2 * pair + 1];
  const float cosine = row.cosine[pair], sine = row.sine[pair];
  return second ? a * sine + b * cosine : a * cosine - b * sine;
}

// Block (row, head): query heads, then KV heads. A thread a channel.
__global__ void __launch_bounds__(kMaxHeadDim) turn_head(TurnedLayer layer) {
  const TurnedRow& row = layer.row[blockIdx.x];
  const HeadShape shape = layer.head;
  const unsigned d = threadIdx.x, q_heads = layer.kv_heads * shape.heads;
  if (blockIdx.y < q_heads) {
    const std::size_t at = (std::size_t(blockIdx.x) * q_heads + blockIdx.y) * shape.key_dim;
    if (d >= shape.key_dim) return;
    float x = turned(layer, row, layer.q + at, d);
    if (layer.query_by != nullptr) x *= layer.query_by[d];
    layer.query[at + d] = x * layer.scale;
    return;
  }
  const unsigned head = blockIdx.y - q_heads;
  const std::size_t of = std::size_t(blockIdx.x) * layer.kv_heads + head;
  auto* const kept = reinterpret_cast<__half*>(row.record + head * row.head_apart);
  auto* const back =
      reinterpret_cast<__half*>(layer.records) + of * (shape.key_dim + shape.value_dim);
  if (d < shape.key_dim) {
    float x = turned(layer, row, layer.k + of * shape.key_dim, d);
    if (layer.key_by != nullptr) x = fminf(fmaxf(x * layer.key_by[d], -kLargest), kLargest);
    kept[d] = back[d] = __float2half(x);
  }
  if (d < shape.value_dim)
    kept[shape.key_dim + d] = back[shape.key_dim + d] =
        __float2half(layer.v[of * shape.value_dim + d]);
}

// Block (list, head), a thread a channel.
__global__ void __launch_bounds__(kMaxHeadDim)
    mix_list(HeadShape shape, States first, States second, const std::uint32_t* chosen,
             float* out) {
  const std::size_t state = std::size_t(blockIdx.x) * shape.heads + blockIdx.y;
  const std::uint32_t other = chosen[blockIdx.x];
  const unsigned d = threadIdx.x;
  if (d >= shape.value_dim) return;
  float max = first.max[state], sum = first.sum[state],
        acc = first.acc[state * shape.value_dim + d];
  if (other != kNoState) {
    const std::size_t from = std::size_t(other) * shape.heads + blockIdx.y;
    if (second.max[from] != kNone) {
      const float larger = fmaxf(max, second.max[from]);
      const float keep = max == kNone ? 0.0f : expf(max - larger);
      const float take = expf(second.max[from] - larger);
      sum = sum * keep + second.sum[from] * take;
      acc = fmaf(second.acc[from * shape.value_dim + d], take, acc * keep);
    }
  }
  out[state * shape.value_dim + d] = sum > 0.0f ? acc / sum : 0.0f;
}

dim3 channels(std::uint32_t most) { return dim3((most + kWarp - 1) / kWarp * kWarp); }

}  // namespace

Status turn(Stream& stream, const TurnedLayer& layer) {
  TL_CHECK(layer.rows > 0 && 2 * layer.pairs <= layer.head.key_dim);
  const dim3 grid(layer.rows, layer.kv_heads * (layer.head.heads + 1));
  return launch(stream, "turn", grid, channels(std::max(layer.head.key_dim, layer.head.value_dim)),
                turn_head, layer);
}

Status mix(Stream& stream, HeadShape shape, std::uint32_t lists, States first, States second,
           const std::uint32_t* chosen, float* out) {
  return launch(stream, "mix", dim3(lists, shape.heads), channels(shape.value_dim), mix_list, shape,
                first, second, chosen, out);
}

}  // namespace thermocline::cuda
