// Coded weights times many activation rows: the prefill's dense work, by oneDNN.
//
// The rows of a matrix are cut into tiles of kGemmTileRows. A tile's arithmetic is done by one
// thread and is the same whoever does it, so results do not depend on the number of threads:
// callers spread the tiles over theirs.
#pragma once

#include <cstddef>
#include <span>
#include <string_view>

#include "kernels/base/error.h"
#include "kernels/base/view.h"
#include "kernels/format/weight.h"
#include "kernels/matvec.h"

namespace thermocline {

// Measured on a core with 512 KiB of L2 (Zen 3): 64 rows of 576 to 1,536 weights as floats stay in
// it beside the activations; 16 and 32 lose a tenth to a fifth, more than 96 lose again.
inline constexpr std::size_t kGemmTileRows = 64;

constexpr std::size_t gemm_tiles(std::size_t rows) {
  return (rows + kGemmTileRows - 1) / kGemmTileRows;
}
// Floats that a tile of weights needs while it is multiplied.
constexpr std::size_t gemm_scratch(std::size_t cols) { return kGemmTileRows * cols; }

// out[t][r] = dot(w row r, x row t) for the rows r of one tile; x [tokens][w.cols], out
// [tokens][w.rows], scratch gemm_scratch(w.cols). `ops` reads the weights. Any thread may call it,
// and several at once with scratch of their own; it never starts one. An error of oneDNN's (memory)
// comes back as `exhausted`.
Status gemm_tile(const MatvecOps& ops, WeightView w, std::size_t tile, MatView<const float> x,
                 MatView<float> out, std::span<float> scratch);

// Holds oneDNN to the instruction set of the CPU table of this name; to SSE4.1, its least, for
// "scalar". oneDNN keeps one for the process, from its first product on: unsupported, where that
// was another.
Status bind_gemm(std::string_view isa);

}  // namespace thermocline
