// Coded weights times rows of floats, over all workers. Few rows take the kernels' integer
// products (matvec.h), many take matrix products (gemm.h); which one depends on the number of rows
// alone, so no answer depends on threads.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/base/buffer.h"
#include "kernels/base/error.h"
#include "kernels/base/view.h"
#include "kernels/base/workers.h"
#include "kernels/cpu/table.h"
#include "kernels/gemm.h"
#include "kernels/matvec.h"
#include "runtime/model/architecture.h"

namespace thermocline {

// What computes: threads and the instruction set. Borrowed.
struct Machine {
  const Workers* workers = nullptr;
  const CpuTable* cpu = nullptr;
};

// out[t][r] = dot(weight row r, x row t) + bias[r]
struct Product {
  WeightView weight;            // [out.cols()][x.cols()]
  std::span<const float> bias;  // [out.cols()], or empty
  MatView<float> out;
};

inline constexpr std::size_t kMaxProducts = 4;  // of one x at a time

// Work memory for products. An error in the middle of a product is memory that oneDNN did not get.
class ProductScratch {
 public:
  // For x of at most `rows` rows and `cols` columns.
  static Result<ProductScratch> create(const Machine& machine, std::size_t rows, std::size_t cols);
  // What that takes; what this one has taken.
  static std::uint64_t bytes_for(const Machine& machine, std::size_t rows, std::size_t cols);
  std::uint64_t bytes() const;

  // Several products of the same x in one parallel region.
  Status multiply(const Machine& machine, MatView<const float> x,
                  std::span<const Product> products);
  // out = activation(gate x) * (up x), in one. `up_rows` is [x.rows()][up.rows], overwritten.
  Status multiply_gated(const Machine& machine, MatView<const float> x, WeightView gate,
                        WeightView up, Activation activation, MatView<float> up_rows,
                        MatView<float> out);

 private:
  // Rows of a weight that one task multiplies.
  struct Tile {
    std::size_t first, last;
  };
  template <typename Body>
  Status for_tiles(const Machine& machine, MatView<const float> x,
                   std::span<const WeightView> weights, const Body& body);
  Status multiply_tile(const Machine& machine, WeightView w, Tile tile, MatView<const float> x,
                       MatView<float> out);

  GemmRows gemm_rows(const Machine& machine, MatView<const float> x);

  Buffer memory_;
  Activations rounded_;        // of at most kFewRows rows
  GemmRows many_;              // of more, as the machine multiplies them
  Buffer bfloats_;             // that many_ may be in
  std::vector<Buffer> tiles_;  // a thread's: a tile of weights, where rows can be many
};

}  // namespace thermocline
