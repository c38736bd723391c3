// What a GPU's kernels reach: decode attention (attention_bench.h), that of a prefill
// (prefill_bench.h), products of coded weights (product_bench.h) and whole decode steps
// (step_bench.h), beside what the device's memory and its link give in the same run. The last of
// VECTORS is also how many queries a prefill has; WIDTH and LAYERS are of the model.
//
//     gpu_bench [ROWS[,ROWS...] [BATCH[,BATCH...] [ROUNDS [VECTORS[,VECTORS...] [WIDTH
//               [LAYERS]]]]]]
#include <charconv>
#include <cstdio>
#include <string_view>
#include <vector>

#include "tests/bench/cuda/attention_bench.h"
#include "tests/bench/cuda/prefill_bench.h"
#include "tests/bench/cuda/product_bench.h"
#include "tests/bench/cuda/step_bench.h"

namespace thermocline::cuda {
namespace {

Result<std::vector<std::uint32_t>> numbers(std::string_view text) {
  std::vector<std::uint32_t> found;
  while (!text.empty()) {
    std::uint32_t number = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
    const auto used = static_cast<std::size_t>(end - text.data());
    if (error != std::errc() || number == 0 || (used < text.size() && text[used] != ','))
      return fail(ErrorCode::invalid_argument, "'", text, "' is not a list of numbers");
    found.push_back(number);
    text.remove_prefix(std::min(text.size(), used + 1));
  }
  return found;
}

Status run(int argc, char** argv) {
  TL_TRY_ASSIGN(const auto rows, numbers(argc > 1 ? argv[1] : "8192,32768,122880"));
  TL_TRY_ASSIGN(const auto batches, numbers(argc > 2 ? argv[2] : "1,7"));
  TL_TRY_ASSIGN(const auto rounds, numbers(argc > 3 ? argv[3] : "15"));
  TL_TRY_ASSIGN(const auto vectors, numbers(argc > 4 ? argv[4] : "1,4,16,512"));
  TL_TRY_ASSIGN(const auto widths, numbers(argc > 5 ? argv[5] : "4096"));
  TL_TRY_ASSIGN(const auto layers, numbers(argc > 6 ? argv[6] : "32"));
  for (const std::uint32_t count : rows)
    if (count % kRunRows != 0)
      return fail(ErrorCode::invalid_argument, count, " rows: give multiples of ", kRunRows);
  if (widths[0] % 512 != 0)
    return fail(ErrorCode::invalid_argument, widths[0], " columns: give a multiple of 512");
  cudaDeviceProp device = {};
  TL_TRY(check(cudaGetDeviceProperties(&device, 0), "asking for device 0"));
  TL_TRY_ASSIGN(Stream stream, Stream::create());
  const int times = static_cast<int>(rounds[0]);
  // A large copy; and a small one where a device has little memory.
  const std::size_t copied =
      std::min<std::size_t>(std::size_t{1} << 30, device.totalGlobalMem / 16);
  TL_TRY_ASSIGN(const Limits limits, measure_limits(stream, times, copied));
  int driver = 0, runtime = 0;
  TL_TRY(check(cudaDriverGetVersion(&driver), "asking for the driver"));
  TL_TRY(check(cudaRuntimeGetVersion(&runtime), "asking for the runtime"));
  std::printf("device: %s, %d multiprocessors, %.0f GiB; driver for CUDA %d.%d, runtime %d.%d\n",
              device.name, device.multiProcessorCount,
              static_cast<double>(device.totalGlobalMem) / (1 << 30), driver / 1000,
              driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
  std::printf(
      "copy within the device: %.0f GB/s read and written; from pinned memory: %.1f GB/s\n\n",
      limits.device / 1e9, limits.link / 1e9);
  TL_TRY(bench_attention(stream, limits, rows, batches, times));
  std::printf("\n");
  TL_TRY(bench_prefill(stream, limits, rows, vectors.back(), times));
  std::printf("\n");
  TL_TRY(bench_products(stream, limits, widths[0], vectors, times));
  std::printf("\n");
  return bench_step(limits, rows, widths[0], layers[0], times);
}

}  // namespace
}  // namespace thermocline::cuda

int main(int argc, char** argv) {
  const thermocline::Status status = thermocline::cuda::run(argc, argv);
  if (status) return 0;
  std::fprintf(stderr, "gpu_bench: %s\n", status.error().message.c_str());
  return 1;
}
