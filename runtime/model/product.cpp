#include "runtime/model/product.h"

#include <algorithm>
#include <mutex>

namespace thermocline {
namespace {

constexpr std::size_t kRowGrain = 16;  // rows of activations that a task rounds

// Weights that one task of decode multiplies: about 5 us, so that a small model's layer still
// splits and what a task costs does not show.
constexpr std::size_t kTaskWeights = std::size_t{1} << 16;

std::size_t tile_rows(std::size_t x_rows, std::size_t cols) {
  if (x_rows > kFewRows) return kGemmTileRows;
  return std::clamp<std::size_t>(round_up(kTaskWeights / cols, 8), 8, 512);
}

void add_bias(std::span<const float> bias, std::size_t first, std::size_t last,
              MatView<float> out) {
  if (bias.empty()) return;
  for (std::size_t t = 0; t < out.rows(); ++t)
    for (std::size_t r = first; r < last; ++r) out.row(t)[r] += bias[r];
}

// Of a few rows that are rounded for the kernels' integer products.
struct FewBytes {
  std::size_t values, scales;
  FewBytes(std::size_t rows, std::size_t cols)
      : values(round_up(std::min(rows, kFewRows) * cols * sizeof(std::int16_t), 64)),
        scales(round_up(std::min(rows, kFewRows) * (cols / kActivationBlock) * sizeof(float), 64)) {
  }
  std::size_t all() const { return values + 2 * scales; }
};

// The first error of many threads.
class FirstError {
 public:
  void note(Status status) {
    if (status) return;
    const std::lock_guard lock(mutex_);
    if (first_) first_ = std::move(status);
  }
  Status take() { return std::move(first_); }

 private:
  std::mutex mutex_;
  Status first_;
};

}  // namespace

Result<ProductScratch> ProductScratch::create(const Machine& machine, std::size_t rows,
                                              std::size_t cols) {
  ProductScratch scratch;
  const FewBytes few(rows, cols);
  TL_TRY_ASSIGN(scratch.memory_, Buffer::create(few.all()));
  std::byte* memory = scratch.memory_.data();
  scratch.rounded_.value = reinterpret_cast<std::int16_t*>(memory);
  scratch.rounded_.scale = reinterpret_cast<float*>(memory + few.values);
  scratch.rounded_.sum = reinterpret_cast<float*>(memory + few.values + few.scales);
  if (rows <= kFewRows) return scratch;
  const GemmType type = machine.cpu->gemm;
  if (type == GemmType::bf16) {
    TL_TRY_ASSIGN(scratch.bfloats_, Buffer::create(rows * cols * sizeof(bf16)));
  }
  for (int t = 0; t < machine.workers->threads(); ++t) {
    TL_TRY_ASSIGN(Buffer tile, Buffer::create(gemm_scratch(type, cols)));
    scratch.tiles_.push_back(std::move(tile));
  }
  return scratch;
}

std::uint64_t ProductScratch::bytes_for(const Machine& machine, std::size_t rows,
                                        std::size_t cols) {
  const std::uint64_t few = FewBytes(rows, cols).all();
  if (rows <= kFewRows) return few;
  const GemmType type = machine.cpu->gemm;
  const auto threads = static_cast<std::uint64_t>(machine.workers->threads());
  return few + (type == GemmType::bf16 ? rows * cols * sizeof(bf16) : 0) +
         threads * gemm_scratch(type, cols);
}

std::uint64_t ProductScratch::bytes() const {
  std::uint64_t bytes = memory_.size() + bfloats_.size();
  for (const Buffer& tile : tiles_) bytes += tile.size();
  return bytes;
}

GemmRows ProductScratch::gemm_rows(const Machine& machine, MatView<const float> x) {
  if (machine.cpu->gemm == GemmType::f32)
    return {GemmType::f32, x.data(), x.rows(), x.cols(), x.stride()};
  bf16* rounded = bfloats_.as<bf16>().data();
  machine.workers->parallel(x.rows(), kRowGrain, [&](std::size_t first, std::size_t last) {
    for (std::size_t r = first; r < last; ++r)
      machine.cpu->dense.to_bfloat(x.row(r), x.cols(), rounded + r * x.cols());
  });
  return {GemmType::bf16, rounded, x.rows(), x.cols(), x.cols()};
}

// Calls body(i, tile) for every tile of every weight: one region for all.
template <typename Body>
Status ProductScratch::for_tiles(const Machine& machine, MatView<const float> x,
                                 std::span<const WeightView> weights, const Body& body) {
  if (x.rows() <= kFewRows) {
    rounded_.real = x;
    machine.cpu->matvec.round_activations(rounded_);
  } else {
    many_ = gemm_rows(machine, x);
  }
  const std::size_t rows = tile_rows(x.rows(), x.cols());
  const auto tiles = [&](const WeightView& w) { return (w.rows + rows - 1) / rows; };
  std::size_t count = 0;
  for (const WeightView& w : weights) count += tiles(w);
  FirstError error;
  machine.workers->parallel(count, 1, [&](std::size_t at, std::size_t last) {
    for (; at < last; ++at) {
      std::size_t i = 0, tile = at;
      for (; tile >= tiles(weights[i]); ++i) tile -= tiles(weights[i]);
      error.note(body(i, Tile{tile * rows, std::min((tile + 1) * rows, weights[i].rows)}));
    }
  });
  return error.take();
}

Status ProductScratch::multiply_tile(const Machine& machine, WeightView w, Tile tile,
                                     MatView<const float> x, MatView<float> out) {
  if (x.rows() <= kFewRows) {
    machine.cpu->matvec.multiply(w, tile.first, tile.last, rounded_, out);
    return {};
  }
  return gemm_tile(*machine.cpu, w, tile.first / kGemmTileRows, many_, out,
                   tiles_[Workers::slot()].bytes());
}

Status ProductScratch::multiply(const Machine& machine, MatView<const float> x,
                                std::span<const Product> products) {
  std::array<WeightView, kMaxProducts> weights;
  TL_CHECK(products.size() <= weights.size());
  std::transform(products.begin(), products.end(), weights.begin(),
                 [](const Product& p) { return p.weight; });
  return for_tiles(machine, x, std::span(weights).first(products.size()),
                   [&](std::size_t i, Tile tile) -> Status {
                     const Product& p = products[i];
                     TL_TRY(multiply_tile(machine, p.weight, tile, x, p.out));
                     add_bias(p.bias, tile.first, tile.last, p.out);
                     return {};
                   });
}

Status ProductScratch::multiply_gated(const Machine& machine, MatView<const float> x,
                                      WeightView gate, WeightView up, Activation activation,
                                      MatView<float> up_rows, MatView<float> out) {
  const DenseOps& dense = machine.cpu->dense;
  const auto act = activation == Activation::silu ? dense.silu_mul : dense.gelu_mul;
  return for_tiles(machine, x, {&gate, 1}, [&](std::size_t, Tile tile) -> Status {
    TL_TRY(multiply_tile(machine, gate, tile, x, out));
    TL_TRY(multiply_tile(machine, up, tile, x, up_rows));
    for (std::size_t t = 0; t < x.rows(); ++t)
      act(out.row(t) + tile.first, up_rows.row(t) + tile.first, tile.last - tile.first,
          out.row(t) + tile.first);
    return {};
  });
}

}  // namespace thermocline
