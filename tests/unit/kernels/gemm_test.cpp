#include "kernels/gemm.h"

#include <gtest/gtest.h>
#include <omp.h>
#include <oneapi/dnnl/dnnl.h>
#include <signal.h>
#include <sys/time.h>
#include <tbb/parallel_for.h>
#include <tbb/task_arena.h>

#include <algorithm>
#include <bit>
#include <cfloat>
#include <cmath>
#include <cstdlib>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "kernels/cpu/table.h"
#include "kernels/reference.h"
#include "tests/unit/kernels/weights.h"

namespace thermocline {
namespace {

using testing::Scale;
using testing::Weights;

const CpuTable& cpu() { return **choose_cpu_table("auto"); }

// Activations as they are multiplied, and what holds them.
struct Rows {
  std::vector<bf16> rounded;
  GemmRows view;

  Rows(GemmType type, MatView<const float> x)
      : view{type, x.data(), x.rows(), x.cols(), x.stride()} {
    if (type == GemmType::f32) return;
    rounded.resize(x.rows() * x.cols());
    for (std::size_t t = 0; t < x.rows(); ++t)
      cpu().dense.to_bfloat(x.row(t), x.cols(), rounded.data() + t * x.cols());
    view.data = rounded.data();
    view.stride = x.cols();
  }
};

std::vector<std::byte> scratch_for(GemmType type, std::size_t cols) {
  return std::vector<std::byte>(gemm_scratch(type, cols));
}

std::vector<float> random_rows(std::size_t rows, std::size_t cols, std::mt19937& rng) {
  std::normal_distribution<float> normal;
  std::vector<float> x(rows * cols);
  for (float& v : x) v = normal(rng) * (rng() % 101 == 0 ? 200.0f : 1.0f);
  return x;
}

void multiply_all(const WeightView& w, MatView<const float> x, MatView<float> out,
                  GemmType type = GemmType::f32) {
  const Rows rows(type, x);
  std::vector<std::byte> scratch = scratch_for(type, w.cols);
  for (std::size_t tile = 0; tile < gemm_tiles(w.rows); ++tile) {
    const Status status = gemm_tile(cpu(), w, tile, rows.view, out, scratch);
    ASSERT_TRUE(status) << status.error().message;
  }
}

// The product of what operands are rounded to, in double: so it is the rounding to bf16 that is
// wanted, and not one bit less.
void expect_product(const WeightView& w, MatView<const float> x, MatView<const float> out,
                    GemmType type = GemmType::f32) {
  const auto rounded = [&](float v) { return type == GemmType::f32 ? v : to_float(to_bf16(v)); };
  std::vector<float> row(w.cols);
  for (std::size_t r = 0; r < w.rows; ++r) {
    reference::dequantize(w, r, row.data());
    for (std::size_t t = 0; t < x.rows(); ++t) {
      double terms = 0.0, want = 0.0;
      for (std::size_t c = 0; c < w.cols; ++c) {
        const double term = double{rounded(row[c])} * double{rounded(x.row(t)[c])};
        want += term;
        terms += std::abs(term);
      }
      // Some order of float additions: far fewer than cols meet in one sum.
      const double bound = FLT_EPSILON * std::sqrt(static_cast<double>(w.cols)) * terms + FLT_MIN;
      ASSERT_NEAR(out.row(t)[r], want, bound) << info(w.type).name << " " << w.rows << " x "
                                              << w.cols << ", row " << r << ", token " << t;
    }
  }
}

TEST(Gemm, LeavesTheCallersOpenMpAsItWas) {
  const int before = omp_get_max_threads();
  omp_set_num_threads(3);
  std::mt19937 rng(1);
  const Weights w = testing::random_weights(WeightType::f32, 8, 64, Scale::ordinary, rng);
  const std::vector<float> x = random_rows(2, 64, rng);
  std::vector<float> out(2 * 8);
  multiply_all(w.view, {x.data(), 2, 64}, {out.data(), 2, 8});
  EXPECT_EQ(omp_get_max_threads(), 3);
  omp_set_num_threads(before);
}

TEST(Gemm, MultipliesEveryTypeAndAwkwardSizes) {
  std::mt19937 rng(1);
  for (const WeightTypeInfo& t : weight_types())
    for (const std::size_t rows : {1u, 63u, 65u, 130u})
      for (const std::size_t tokens : {1u, 5u, 33u}) {
        const std::size_t cols = t.block_values == 256 ? 512 : 96;
        const Weights w = testing::random_weights(t.type, rows, cols, Scale::ordinary, rng);
        const std::vector<float> x = random_rows(tokens, cols, rng);
        std::vector<float> out(tokens * rows, NAN);
        multiply_all(w.view, {x.data(), tokens, cols}, {out.data(), tokens, rows});
        expect_product(w.view, {x.data(), tokens, cols}, {out.data(), tokens, rows});
      }
}

TEST(Gemm, MultipliesInBfloat) {
  if (cpu().gemm != GemmType::bf16)
    GTEST_SKIP() << "no table of this machine multiplies bf16 (AVX512_BF16 or AMX_BF16)";
  std::mt19937 rng(1);
  for (const WeightTypeInfo& t : weight_types())
    for (const std::size_t rows : {1u, 63u, 65u, 130u})
      for (const std::size_t tokens : {1u, 5u, 33u}) {
        const std::size_t cols = t.block_values == 256 ? 512 : 96;
        const Weights w = testing::random_weights(t.type, rows, cols, Scale::ordinary, rng);
        const std::vector<float> x = random_rows(tokens, cols, rng);
        std::vector<float> out(tokens * rows, NAN);
        multiply_all(w.view, {x.data(), tokens, cols}, {out.data(), tokens, rows}, GemmType::bf16);
        expect_product(w.view, {x.data(), tokens, cols}, {out.data(), tokens, rows},
                       GemmType::bf16);
      }
}

// Rows that lie apart, as in a wider matrix; what lies between them is not touched.
TEST(Gemm, KeepsToItsViews) {
  constexpr std::size_t kTokens = 7, kCols = 64, kRows = 70, kWide = 100;
  std::mt19937 rng(2);
  const Weights w = testing::random_weights(WeightType::q8_0, kRows, kCols, Scale::ordinary, rng);
  const std::vector<float> x = random_rows(kTokens, kWide, rng);
  std::vector<float> out(kTokens * kWide, 7.5f);
  const MatView<const float> from(x.data() + 3, kTokens, kCols, kWide);
  const MatView<float> to(out.data() + 11, kTokens, kRows, kWide);
  multiply_all(w.view, from, to);
  expect_product(w.view, from, to);
  for (std::size_t i = 0; i < out.size(); ++i) {
    const std::size_t column = i % kWide;
    if (column < 11 || column >= 11 + kRows) {
      ASSERT_EQ(out[i], 7.5f) << i;
    }
  }
}

TEST(Gemm, ATileTouchesItsRowsAlone) {
  std::mt19937 rng(3);
  const Weights w = testing::random_weights(WeightType::q4_1, 200, 64, Scale::ordinary, rng);
  const std::vector<float> x = random_rows(4, 64, rng);
  std::vector<float> out(4 * 200, 7.5f);
  std::vector<std::byte> scratch = scratch_for(GemmType::f32, 64);
  const Rows rows(GemmType::f32, {x.data(), 4, 64});
  ASSERT_TRUE(gemm_tile(cpu(), w.view, 1, rows.view, {out.data(), 4, 200}, scratch));
  for (std::size_t i = 0; i < out.size(); ++i)
    EXPECT_EQ(out[i] == 7.5f, i % 200 / kGemmTileRows != 1) << i;
}

TEST(Gemm, TheSameBitsForAnyNumberOfThreads) {
  constexpr std::size_t kTokens = 50, kCols = 576, kRows = 300;
  std::mt19937 rng(4);
  const Weights w = testing::random_weights(WeightType::q4_0, kRows, kCols, Scale::ordinary, rng);
  const std::vector<float> x = random_rows(kTokens, kCols, rng);
  std::vector<float> want(kTokens * kRows);
  multiply_all(w.view, {x.data(), kTokens, kCols}, {want.data(), kTokens, kRows});
  const Rows rows(GemmType::f32, {x.data(), kTokens, kCols});
  for (const int threads : {1, 2}) {
    std::vector<float> out(want.size());
    tbb::task_arena arena(threads);
    arena.execute([&] {
      tbb::parallel_for(std::size_t{0}, gemm_tiles(kRows), [&](std::size_t tile) {
        std::vector<std::byte> scratch = scratch_for(GemmType::f32, kCols);
        EXPECT_TRUE(
            gemm_tile(cpu(), w.view, tile, rows.view, {out.data(), kTokens, kRows}, scratch));
      });
    });
    for (std::size_t i = 0; i < want.size(); ++i)
      ASSERT_EQ(std::bit_cast<std::uint32_t>(out[i]), std::bit_cast<std::uint32_t>(want[i]))
          << threads << " threads, value " << i;
  }
}

volatile sig_atomic_t signals = 0;

// A timer's signals, as a profiler sends them, neither change a product nor damage memory.
TEST(Gemm, SignalsDoNotDisturbIt) {
  constexpr std::size_t kTokens = 512, kCols = 576, kRows = 64;
  std::mt19937 rng(6);
  const Weights w = testing::random_weights(WeightType::q4_0, kRows, kCols, Scale::ordinary, rng);
  const std::vector<float> x = random_rows(kTokens, kCols, rng);
  std::vector<float> want(kTokens * kRows), out(want.size());
  std::vector<std::byte> scratch = scratch_for(GemmType::f32, kCols);
  const Rows rows(GemmType::f32, {x.data(), kTokens, kCols});
  const auto multiply = [&](std::vector<float>& to) {
    return gemm_tile(cpu(), w.view, 0, rows.view, {to.data(), kTokens, kRows}, scratch);
  };
  ASSERT_TRUE(multiply(want));

  struct sigaction count = {}, before = {};
  count.sa_handler = [](int) { signals = signals + 1; };
  ASSERT_EQ(sigaction(SIGALRM, &count, &before), 0);
  const itimerval often{{0, 200}, {0, 200}}, never{};
  ASSERT_EQ(setitimer(ITIMER_REAL, &often, nullptr), 0);
  bool same = true;
  for (int i = 0; i < 300 || signals < 50; ++i)
    same = same && multiply(out).has_value() && out == want;
  setitimer(ITIMER_REAL, &never, nullptr);
  sigaction(SIGALRM, &before, nullptr);
  EXPECT_TRUE(same);
}

TEST(Gemm, NoTokensIsNoWork) {
  std::mt19937 rng(5);
  const Weights w = testing::random_weights(WeightType::f16, 5, 32, Scale::ordinary, rng);
  std::vector<std::byte> scratch = scratch_for(GemmType::f32, 32);
  const GemmRows none{GemmType::f32, nullptr, 0, 32, 32};
  EXPECT_TRUE(gemm_tile(cpu(), w.view, 0, none, {nullptr, 0, 5}, scratch));
}

// In a process of its own, since oneDNN's choice is the process's: binds it, multiplies, and tries
// to bind it again.
[[noreturn]] void multiply_bound(const CpuTable& table, dnnl_cpu_isa_t expected) {
  const auto require = [](bool held, int code) {
    if (!held) std::_Exit(code);
  };
  require(bind_gemm(table.name).has_value(), 1);
  require(dnnl_get_effective_cpu_isa() == expected, 2);
  const std::vector<float> weights(64 * 64, 0.5f), x(20 * 64, 2.0f);
  std::vector<float> out(20 * 64);
  std::vector<std::byte> scratch = scratch_for(table.gemm, 64);
  const Rows rows(table.gemm, {x.data(), 20, 64});
  const WeightView w{WeightType::f32, reinterpret_cast<const std::byte*>(weights.data()), 64, 64};
  require(gemm_tile(table, w, 0, rows.view, {out.data(), 20, 64}, scratch).has_value(), 3);
  require(std::all_of(out.begin(), out.end(), [](float y) { return y == 64.0f; }), 4);
  require(bind_gemm(table.name).has_value(), 5);
  for (const CpuTable* other : all_cpu_tables())
    require(other == &table || !bind_gemm(other->name), 6);
  std::_Exit(0);
}

TEST(GemmDeathTest, IsHeldToTheInstructionSetThatIsForced) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const std::map<std::string_view, dnnl_cpu_isa_t> expected = {
      {"scalar", dnnl_cpu_isa_sse41},
      {"avx2", dnnl_cpu_isa_avx2},
      {"avx512", dnnl_cpu_isa_avx512_core_vnni},
      {"avx512_bf16", dnnl_cpu_isa_avx512_core_bf16},
      {"avx512_amx", dnnl_cpu_isa_avx512_core_amx}};
  for (const CpuTable* table : all_cpu_tables()) {
    ASSERT_TRUE(expected.count(table->name)) << table->name << " has no place in kernels/gemm.cpp";
    if (!usable(*table)) continue;
    EXPECT_EXIT(multiply_bound(*table, expected.at(table->name)), ::testing::ExitedWithCode(0), "")
        << table->name;
  }
}

// A table that cannot be run here too: oneDNN may refuse it, but not for want of its name.
[[noreturn]] void bind_every_table() {
  for (const CpuTable* table : all_cpu_tables()) {
    const Status bound = bind_gemm(table->name);
    if (!bound && bound.error().code == ErrorCode::invalid_argument) std::_Exit(1);
  }
  std::_Exit(0);
}

TEST(GemmDeathTest, KnowsEveryTable) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(bind_every_table(), ::testing::ExitedWithCode(0), "");
}

TEST(Gemm, CannotBeHeldToWhatItDoesNotKnow) { EXPECT_FALSE(bind_gemm("abacus")); }

}  // namespace
}  // namespace thermocline
