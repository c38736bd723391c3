// How fast one thread multiplies coded weights by activations: bytes of weights and GB/s for the
// shapes of a small model, and the share of what the same thread reads from the same memory and
// does nothing with: the measured peak.
//
//   matvec_bench [table] [MiB of weights a measurement] [activation rows]
//
// Every figure is the median of seven passes over matrices that together exceed the caches, and
// every output is summed up, checked against the double reference, and hashed.
#include <time.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "kernels/base/buffer.h"
#include "kernels/cpu/table.h"
#include "kernels/reference.h"

namespace thermocline {
namespace {

// This thread's own time: other programs on the machine disturb it less than the clock on the wall.
double thread_seconds() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

struct Shape {
  std::size_t cols, rows;
};

struct Activated {
  std::vector<float> real;
  std::vector<std::int16_t> value;
  std::vector<float> scale, sum;
  Activations view;

  Activated(const CpuTable& table, std::size_t rows, std::size_t cols, std::mt19937& rng)
      : real(rows * cols), value(rows * cols), scale(rows * cols / 32), sum(scale.size()) {
    std::normal_distribution<float> normal;
    for (float& v : real) v = normal(rng);
    view = {{real.data(), rows, cols}, value.data(), scale.data(), sum.data()};
    table.matvec.round_activations(view);
  }
};

template <typename Work>
double median_seconds(const Work& work) {
  std::vector<double> seconds;
  for (int pass = 0; pass < 7; ++pass) {
    const double start = thread_seconds();
    work();
    seconds.push_back(thread_seconds() - start);
  }
  std::sort(seconds.begin(), seconds.end());
  return seconds[seconds.size() / 2];
}

// Small scales everywhere: 0x24 bytes are f16 0.0157 and floats of 3e-17, so nothing overflows.
void fill(Buffer& weights, WeightType type, std::mt19937& rng) {
  const WeightTypeInfo& t = info(type);
  for (std::uint32_t& word : weights.as<std::uint32_t>()) word = static_cast<std::uint32_t>(rng());
  for (std::size_t at = 0; at + t.block_bytes <= weights.size(); at += t.block_bytes) {
    std::byte* scale = weights.data() + at + (type == WeightType::q6_k ? 208 : 0);
    const std::size_t bytes = t.block_values == 1        ? t.block_bytes
                              : type == WeightType::q6_k ? 2
                                                         : 4;
    std::fill_n(scale, bytes, std::byte{0x24});
    if (t.block_values == 1) scale[0] = static_cast<std::byte>(rng() & 255);
  }
}

// Largest error of the first matrix's outputs, relative to the norms of what was multiplied.
double error(const CpuTable& table, const WeightView& w, const Activated& x) {
  const std::size_t checked = std::min<std::size_t>(w.rows, 64), tokens = x.view.rows();
  std::vector<float> out(tokens * w.rows), row(w.cols);
  table.matvec.multiply(w, 0, w.rows, x.view, {out.data(), tokens, w.rows});
  const WeightView few{w.type, w.data, checked, w.cols};
  std::vector<double> want(tokens * checked);
  reference::multiply(few, x.view.real, {want.data(), tokens, checked});
  double worst = 0.0;
  for (std::size_t r = 0; r < checked; ++r) {
    reference::dequantize(few, r, row.data());
    double norm = 1e-30;
    for (const float v : row) norm += double{v} * double{v};
    for (std::size_t t = 0; t < tokens; ++t)
      worst = std::max(worst, std::abs(double{out[t * w.rows + r]} - want[t * checked + r]) /
                                  std::sqrt(norm * static_cast<double>(w.cols)));
  }
  return worst;
}

std::uint64_t read_everything(const Buffer& memory) {
  std::uint64_t sums[8] = {};
  const auto words = memory.as<std::uint64_t>();
  for (std::size_t i = 0; i + 8 <= words.size(); i += 8)
    for (std::size_t k = 0; k < 8; ++k) sums[k] += words[i + k];
  std::uint64_t sum = 0;
  for (const std::uint64_t s : sums) sum ^= s;
  return sum;
}

int run(const CpuTable& table, std::size_t bytes, std::size_t tokens) {
  constexpr Shape kShapes[] = {{576, 576}, {576, 1536}, {1536, 576}, {576, 49152}};
  std::mt19937 rng(1);
  Result<Buffer> memory = Buffer::create(bytes);
  if (!memory) return std::fprintf(stderr, "%s\n", memory.error().message.c_str()), 1;
  std::fill(memory->bytes().begin(), memory->bytes().end(), std::byte{1});
  volatile std::uint64_t seen = 0;
  const double reading = median_seconds([&] { seen = read_everything(*memory); });
  const double peak = static_cast<double>(bytes) / reading * 1e-9;
  std::printf("table %.*s, %zu MiB, %zu activation rows; reading alone %.1f GB/s\n",
              static_cast<int>(table.name.size()), table.name.data(), bytes >> 20, tokens, peak);
  int failures = 0;
  for (const WeightTypeInfo& t : weight_types()) {
    fill(*memory, t.type, rng);
    for (const Shape& shape : kShapes) {
      const std::size_t cols = round_up(shape.cols, t.block_values);
      WeightView w{t.type, memory->data(), shape.rows, cols};
      const std::size_t copies = memory->size() / w.bytes();
      if (copies == 0) continue;
      const Activated x(table, tokens, cols, rng);
      std::vector<float> out(tokens * w.rows);
      double hash = 0.0;
      const double seconds = median_seconds([&] {
        for (std::size_t copy = 0; copy < copies; ++copy) {
          const WeightView here{t.type, memory->data() + copy * w.bytes(), w.rows, cols};
          table.matvec.multiply(here, 0, w.rows, x.view, {out.data(), tokens, w.rows});
          hash += double{out[copy % out.size()]};
        }
      });
      const double err = error(table, w, x);
      const double gb = static_cast<double>(copies * w.bytes()) * 1e-9;
      std::printf(
          "%-5.*s %5zu -> %5zu  %6.1f MB  %6.2f GB/s, %3.0f %% of reading  %6.2f Gweights/s  "
          "error %.1e  hash %.6g\n",
          static_cast<int>(t.name.size()), t.name.data(), cols, w.rows, gb * 1e3, gb / seconds,
          gb / seconds / peak * 100, static_cast<double>(copies * w.rows * cols) / seconds * 1e-9,
          err, hash);
      if (!(err < 2e-5)) ++failures;
    }
  }
  return failures;
}

}  // namespace
}  // namespace thermocline

int main(int argc, char** argv) {
  const auto number = [&](int i, std::size_t otherwise) {
    return argc > i ? static_cast<std::size_t>(std::strtoul(argv[i], nullptr, 10)) : otherwise;
  };
  const auto table = thermocline::choose_cpu_table(argc > 1 ? argv[1] : "auto");
  if (!table) return std::fprintf(stderr, "%s\n", table.error().message.c_str()), 2;
  return thermocline::run(**table, number(2, 128) << 20, number(3, 1)) == 0 ? 0 : 1;
}
