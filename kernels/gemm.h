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
#include "kernels/cpu/table.h"
#include "kernels/format/weight.h"

namespace thermocline {

// Measured on a core with 512 KiB of L2 (Zen 3): 64 rows of 576 to 1,536 weights as floats stay in
// it beside the activations; 16 and 32 lose a tenth to a fifth, more than 96 lose again.
inline constexpr std::size_t kGemmTileRows = 64;

constexpr std::size_t gemm_tiles(std::size_t rows) {
  return (rows + kGemmTileRows - 1) / kGemmTileRows;
}

// Activation rows as they are multiplied: [rows][cols] of `type`, one after the other.
struct GemmRows {
  GemmType type = GemmType::f32;
  const void* data = nullptr;
  std::size_t rows = 0, cols = 0;
  std::size_t stride = 0;  // values between rows
};

// Bytes that a tile of weights with `cols` columns needs while it is multiplied.
constexpr std::size_t gemm_scratch(GemmType type, std::size_t cols) {
  return kGemmTileRows * cols * value_bytes(type) +
         (type == GemmType::f32 ? 0 : cols * sizeof(float));
}

// out[t][r] = dot(w row r, x row t) for the rows r of one tile; x has w.cols columns, out is
// [x.rows][w.rows], scratch gemm_scratch(x.type, w.cols), aligned to a float. `cpu` reads and
// rounds the weights. Any thread may call it, and several at once with scratch of their own; it
// never starts one. An error of oneDNN's (memory, or that it has no bf16 on this machine) comes
// back as `exhausted`.
Status gemm_tile(const CpuTable& cpu, WeightView w, std::size_t tile, const GemmRows& x,
                 MatView<float> out, std::span<std::byte> scratch);

// Holds oneDNN to the instruction set of the CPU table of this name; to SSE4.1, its least, for
// "scalar". oneDNN keeps one for the process, from its first product on: unsupported, where that
// was another.
Status bind_gemm(std::string_view isa);

}  // namespace thermocline
