#include "kernels/attend.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

#include "kernels/attend_reference.h"
#include "kernels/cpu/table.h"
#include "kernels/format/row_allotted.h"
#include "kernels/format/row_channels.h"
#include "kernels/format/row_hadamard.h"
#include "kernels/format/row_lowrank.h"
#include "kernels/format/row_nuq4.h"
#include "kernels/format/row_pruned.h"
#include "kernels/hadamard.h"
#include "tiers/codec/bf16.h"
#include "tiers/codec/groups.h"
#include "tiers/codec/raw.h"

namespace thermocline {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

// Whole blocks of rows, K beside V, and the fold over some of them.
struct Blocks {
  std::uint32_t stride;
  HeadShape shape;
  std::vector<f16> data;
  std::vector<BlockView> views;

  Blocks(std::size_t blocks, HeadShape s, std::mt19937* random, float size = 1.0f)
      : stride((s.key_dim + s.value_dim) * 2), shape(s) {
    std::normal_distribution<float> normal(0.0f, size);
    data.resize(blocks * kBlockRows * stride / 2);
    for (f16& x : data) x = to_f16(normal(*random));
    for (std::size_t b = 0; b < blocks; ++b) {
      const std::byte* at =
          reinterpret_cast<const std::byte*>(data.data()) + b * kBlockRows * stride;
      views.push_back({at, at + s.key_dim * 2, kAllRows, nullptr});
    }
  }
  // To values that bf16 has too.
  void round() {
    for (f16& x : data) x = to_f16(to_float(to_bf16(to_float(x))));
  }
  f16* key(std::size_t row) { return data.data() + row * stride / 2; }
  f16* value(std::size_t row) { return key(row) + shape.key_dim; }
  Fold fold() const { return {RowFormat::f16, RowFormat::f16, stride, stride, views}; }
};

struct States {
  std::vector<float> acc;
  std::vector<AttnState> head;
  explicit States(HeadShape shape) : acc(shape.heads * shape.value_dim, 77.0f), head(shape.heads) {
    for (std::uint32_t h = 0; h < shape.heads; ++h) head[h].acc = &acc[h * shape.value_dim];
  }
};

std::vector<float> rounded(std::vector<float> x) {
  for (float& v : x) v = to_float(to_bf16(v));
  return x;
}

class AttendOfEveryTable : public testing::TestWithParam<const CpuTable*> {
 protected:
  void SetUp() override {
    if (!usable(*GetParam()))
      GTEST_SKIP() << GetParam()->name << ": this machine lacks " << lacking(*GetParam());
  }
  const AttendOps& ops() const { return GetParam()->attend; }
  std::vector<float> normals(std::size_t n, float size = 1.0f) {
    std::normal_distribution<float> normal(0.0f, size);
    std::vector<float> out(n);
    for (float& x : out) x = normal(random_);
    return out;
  }
  // What a tile's output may differ by from the reference when its operands are as `rounded` below
  // leaves them: floats' own error; or weights between 0 and 1 that are rounded to 8 bits.
  double tile_bound() const { return ops().tile_type == GemmType::f32 ? 3e-5 : 8e-3; }
  RowSet some_rows() {
    return (RowSet{random_()} << 32 | random_()) & (RowSet{random_()} << 32 | random_());
  }

  void expect_near_reference(const States& states, HeadShape shape, const float* query,
                             std::span<const Fold> folds) {
    for (std::uint32_t h = 0; h < shape.heads; ++h) {
      const std::vector<double> expected =
          attend_reference(query + h * shape.key_dim, shape, folds);
      std::vector<float> got(shape.value_dim);
      finish(states.head[h], got);
      for (std::uint32_t d = 0; d < shape.value_dim; ++d)
        ASSERT_NEAR(got[d], expected[d], 3e-5) << "head " << h << ", channel " << d;
    }
  }
  std::mt19937 random_{11};
};

TEST_P(AttendOfEveryTable, TakesTheScoresOfAScoredFold) {
  for (const std::uint32_t heads : {1u, 2u, 3u, 4u, 7u, 9u}) {
    const HeadShape shape{heads, 64, 80};
    Blocks blocks(4, shape, &random_);
    const std::vector<float> query = normals(heads * 64);
    const std::vector<float> scores = normals(256 * heads, 3.0f);
    std::size_t rows = 0;
    for (BlockView& view : blocks.views) {
      view.rows = some_rows();
      view.log_weight = &scores[rows * heads];
      view.key = nullptr;  // not to be read
      rows += static_cast<std::size_t>(count(view.rows));
    }
    Fold fold = blocks.fold();
    fold.scored = true;
    States states(shape);
    ops().attend(query.data(), shape, fold, nullptr, states.head.data());
    for (BlockView& view : blocks.views) view.key = view.value;  // the oracle reads, in vain
    for (std::uint32_t h = 0; h < heads; ++h) {
      const std::vector<double> expected =
          attend_reference(query.data() + h * 64, shape, {&fold, 1}, {}, 0, h);
      std::vector<float> got(shape.value_dim);
      finish(states.head[h], got);
      for (std::uint32_t d = 0; d < shape.value_dim; ++d)
        ASSERT_NEAR(got[d], expected[d], 3e-5) << "head " << h << ", channel " << d;
    }
  }
}

// Rows whose means are weighed in one fold and whose differences from those are added in another.
TEST_P(AttendOfEveryTable, AResidualFoldAddsToValuesAlone) {
  const HeadShape shape{3, 64, 80};
  Blocks means(1, shape, &random_), differences(1, shape, &random_);
  const std::vector<float> query = normals(3 * 64), scores = normals(64 * 3, 3.0f);
  Fold folds[2];
  for (Fold* fold : {&folds[0], &folds[1]}) {
    Blocks& blocks = fold == &folds[0] ? means : differences;
    blocks.views[0].log_weight = scores.data();
    *fold = blocks.fold();
    fold->scored = true;
  }
  folds[1].residual = true;
  States merged(shape);
  for (const Fold* fold : {&folds[1], &folds[0]}) {  // a state without a sum comes first
    States states(shape);
    ops().attend(query.data(), shape, *fold, nullptr, states.head.data());
    if (fold->residual) {
      EXPECT_EQ(states.head[0].sum, 0.0f);
    }
    for (std::uint32_t h = 0; h < shape.heads; ++h)
      ops().merge(states.head[h], shape.value_dim, &merged.head[h]);
  }
  for (std::uint32_t h = 0; h < shape.heads; ++h) {
    double max = scores[h], sum = 0;
    for (std::size_t r = 0; r < 64; ++r) max = std::max<double>(max, scores[r * 3 + h]);
    std::vector<double> expected(shape.value_dim);
    for (std::size_t r = 0; r < 64; ++r) {
      const double weight = std::exp(scores[r * 3 + h] - max);
      sum += weight;
      for (std::uint32_t d = 0; d < shape.value_dim; ++d)
        expected[d] +=
            weight * (double{to_float(means.value(r)[d])} + to_float(differences.value(r)[d]));
    }
    std::vector<float> got(shape.value_dim);
    finish(merged.head[h], got);
    for (std::uint32_t d = 0; d < shape.value_dim; ++d)
      ASSERT_NEAR(got[d], expected[d] / sum, 3e-5) << "head " << h << ", channel " << d;
  }
}

TEST_P(AttendOfEveryTable, AgreesWithTheReference) {
  for (const std::uint32_t key_dim : {16, 48, 64, 96, 128, 256})
    for (std::uint32_t heads = 1; heads <= 9; ++heads) {
      const HeadShape shape{heads, key_dim, heads % 2 ? key_dim : 80};
      Blocks blocks(4, shape, &random_);
      const std::vector<float> query = normals(heads * key_dim, 0.3f);
      for (const int rows : {1, 2, 63, 64, 129, 256}) {
        for (int b = 0; b < 4; ++b)
          blocks.views[static_cast<std::size_t>(b)].rows =
              first_rows(std::clamp(rows - 64 * b, 0, 64));
        States states(shape);
        ops().attend(query.data(), shape, blocks.fold(), nullptr, states.head.data());
        const Fold fold = blocks.fold();
        expect_near_reference(states, shape, query.data(), {&fold, 1});
      }
    }
}

TEST_P(AttendOfEveryTable, MaskedRowsAndGatheredRowsGiveTheSameBits) {
  const HeadShape shape{3, 64, 64};
  for (int round = 0; round < 20; ++round) {
    Blocks blocks(3, shape, &random_);
    std::vector<float> weights(3 * kBlockRows);
    for (float& w : weights) w = std::log(static_cast<float>(1 + random_() % 20));
    // The same rows moved together: other addresses, the same ranks.
    Blocks gathered(3, shape, &random_);
    std::size_t n = 0;
    for (std::size_t b = 0; b < 3; ++b) {
      blocks.views[b].rows = some_rows();
      if (round % 2) blocks.views[b].log_weight = &weights[n];
      for (std::size_t r = 0; r < kBlockRows; ++r)
        if (blocks.views[b].rows >> r & 1)
          std::memcpy(gathered.key(n++), blocks.key(b * kBlockRows + r), blocks.stride);
    }
    for (std::size_t b = 0; b < 3; ++b) {
      const int rest = static_cast<int>(n) - static_cast<int>(64 * b);
      gathered.views[b].rows = first_rows(std::clamp(rest, 0, 64));
      if (round % 2) gathered.views[b].log_weight = &weights[b * kBlockRows];
    }
    const std::vector<float> query = normals(3 * 64);
    States a(shape), b(shape);
    ops().attend(query.data(), shape, blocks.fold(), nullptr, a.head.data());
    ops().attend(query.data(), shape, gathered.fold(), nullptr, b.head.data());
    EXPECT_EQ(a.acc, b.acc);
    for (std::size_t h = 0; h < 3; ++h) {
      EXPECT_EQ(a.head[h].max, b.head[h].max);
      EXPECT_EQ(a.head[h].sum, b.head[h].sum);
    }
    const Fold fold = blocks.fold();
    expect_near_reference(a, shape, query.data(), {&fold, 1});
  }
}

TEST_P(AttendOfEveryTable, ALogWeightOfNIsARowNTimes) {
  const HeadShape shape{2, 32, 32};
  Blocks once(1, shape, &random_), often(1, shape, &random_);
  once.views[0].rows = first_rows(2);
  often.views[0].rows = first_rows(8);
  for (std::size_t r = 0; r < 8; ++r)
    std::memcpy(often.key(r), once.key(r < 3 ? 0 : 1), once.stride);
  const float weights[2] = {std::log(3.0f), std::log(5.0f)};
  once.views[0].log_weight = weights;
  const std::vector<float> query = normals(64);
  States states(shape);
  ops().attend(query.data(), shape, once.fold(), nullptr, states.head.data());
  const Fold fold = often.fold();
  expect_near_reference(states, shape, query.data(), {&fold, 1});
}

TEST_P(AttendOfEveryTable, SurvivesOutliers) {
  const HeadShape shape{4, 64, 64};
  Blocks blocks(2, shape, &random_);
  for (std::uint32_t d = 0; d < 64; ++d) {
    blocks.key(70)[d] = to_f16(60000.0f);
    blocks.key(71)[d] = to_f16(-60000.0f);
    blocks.value(70)[d] = to_f16(0.25f);
  }
  const std::vector<float> query(4 * 64, 50.0f);  // scores of +-2e8
  States states(shape);
  ops().attend(query.data(), shape, blocks.fold(), nullptr, states.head.data());
  const Fold fold = blocks.fold();
  expect_near_reference(states, shape, query.data(), {&fold, 1});
  EXPECT_NEAR(states.head[0].acc[5] / states.head[0].sum, 0.25, 1e-6);
}

TEST_P(AttendOfEveryTable, NoRowsAreTheIdentity) {
  const HeadShape shape{3, 32, 48};
  Blocks blocks(1, shape, &random_);
  blocks.views[0].rows = 0;
  States none(shape);
  const std::vector<float> query = normals(3 * 32);
  ops().attend(query.data(), shape, blocks.fold(), nullptr, none.head.data());
  for (const AttnState& s : none.head) {
    EXPECT_EQ(s.max, -kInf);
    EXPECT_EQ(s.sum, 0.0f);
  }
  EXPECT_EQ(none.acc, std::vector<float>(3 * 48, 0.0f));
  std::vector<float> out(48, 5.0f);
  finish(none.head[0], out);
  EXPECT_EQ(out, std::vector<float>(48, 0.0f));

  blocks.views[0].rows = some_rows() | 1;
  States full(shape);
  ops().attend(query.data(), shape, blocks.fold(), nullptr, full.head.data());
  const std::vector<float> before = full.acc;
  const AttnState was = full.head[1];
  ops().merge(none.head[1], 48, &full.head[1]);
  EXPECT_EQ(full.acc, before);
  EXPECT_EQ(full.head[1].sum, was.sum);
  ops().merge(full.head[1], 48, &none.head[1]);  // the other way round
  EXPECT_EQ(none.head[1].max, was.max);
  EXPECT_EQ(none.head[1].sum, was.sum);
  for (std::uint32_t d = 0; d < 48; ++d) EXPECT_EQ(none.head[1].acc[d], was.acc[d]);
}

TEST_P(AttendOfEveryTable, MergeDoesNotCareAboutGrouping) {
  const HeadShape shape{2, 64, 64};
  std::vector<Blocks> blocks;
  std::vector<Fold> folds;
  for (int i = 0; i < 5; ++i) blocks.emplace_back(4, shape, &random_, i == 2 ? 4.0f : 1.0f);
  for (const Blocks& b : blocks) folds.push_back(b.fold());
  const std::vector<float> query = normals(2 * 64);
  std::vector<States> parts;
  for (const Fold& f : folds) {
    parts.emplace_back(shape);
    ops().attend(query.data(), shape, f, nullptr, parts.back().head.data());
  }
  const auto merged = [&](std::vector<std::vector<std::size_t>> groups) {
    States all(shape);
    ops().attend(query.data(), shape, Fold{}, nullptr, all.head.data());
    for (const auto& group : groups) {
      States inner(shape);
      ops().attend(query.data(), shape, Fold{}, nullptr, inner.head.data());
      for (const std::size_t i : group)
        for (std::size_t h = 0; h < 2; ++h) ops().merge(parts[i].head[h], 64, &inner.head[h]);
      for (std::size_t h = 0; h < 2; ++h) ops().merge(inner.head[h], 64, &all.head[h]);
    }
    return all;
  };
  expect_near_reference(merged({{0, 1, 2, 3, 4}}), shape, query.data(), folds);
  expect_near_reference(merged({{0}, {1, 2}, {3, 4}}), shape, query.data(), folds);
  expect_near_reference(merged({{4, 3, 2}, {1}, {0}}), shape, query.data(), folds);
}

TEST_P(AttendOfEveryTable, TilesAgreeWithTheReferenceUnderMasksAndWindows) {
  for (const std::uint32_t dim : {16, 64, 96, 256})
    for (const std::uint32_t window : {0, 1, 20, 200}) {
      const HeadShape shape{1, dim, dim == 64 ? 80 : dim};
      Blocks before(3, shape, &random_), inside(1, shape, &random_);
      before.round();
      inside.round();
      std::vector<float> weights(64, std::log(3.0f));
      before.views[1].log_weight = weights.data();
      before.views[2].rows = first_rows(41);
      inside.views[0].rows = first_rows(37);
      const std::uint32_t start = window == 0 ? 1000 : 169;  // of the masked fold
      const Fold folds[2] = {before.fold(), inside.fold()};
      const Visibility visible[2] = {
          window == 0 ? Visibility{} : Visibility{true, start - 169, window},
          Visibility{true, start, window}};
      const std::size_t rows = 64;  // 37 queries and padding, out of order
      std::vector<std::uint32_t> position(rows);
      for (std::size_t q = 0; q < rows; ++q)
        position[q] = start + static_cast<std::uint32_t>(q * 7 % 37);
      const std::vector<float> query = rounded(normals(rows * dim, 0.3f));
      std::vector<float> turned(rows * dim);
      for (std::size_t q = 0; q < rows; ++q)
        for (std::size_t d = 0; d < dim; ++d) turned[d * rows + q] = query[q * dim + d];
      std::vector<float> max(rows, -kInf), sum(rows, 0.0f), acc(rows * shape.value_dim, 0.0f);
      std::vector<float> scratch(tile_scratch_floats(shape));
      const QueryTile tile{turned.data(), position.data(), rows,
                           max.data(),    sum.data(),      acc.data()};
      for (int f = 0; f < 2; ++f)
        ops().attend_tile(tile, shape, folds[f], visible[f], scratch.data());
      for (std::size_t q = 0; q < rows; ++q) {
        const std::vector<double> expected =
            attend_reference(&query[q * dim], shape, folds, visible, position[q]);
        for (std::uint32_t d = 0; d < shape.value_dim; ++d)
          ASSERT_NEAR(acc[d * rows + q] / sum[q], expected[d], tile_bound())
              << dim << " channels, window " << window << ", query " << q;
      }
    }
}

TEST_P(AttendOfEveryTable, ATileThatSeesNothingStaysTheIdentity) {
  constexpr std::size_t kRows = kTileLanes;
  const HeadShape shape{1, 32, 32};
  Blocks blocks(1, shape, &random_);
  blocks.round();
  std::vector<std::uint32_t> position(kRows, 9);
  position[3] = 10;  // one query sees the first row
  std::vector<float> query = normals(kRows * 32, 100.0f), scratch(tile_scratch_floats(shape));
  std::vector<float> max(kRows, -kInf), sum(kRows, 0.0f), acc(kRows * 32, 0.0f);
  ops().attend_tile({query.data(), position.data(), kRows, max.data(), sum.data(), acc.data()},
                    shape, blocks.fold(), Visibility{true, 10, 0}, scratch.data());
  for (std::size_t q = 0; q < kRows; ++q) {
    EXPECT_EQ(sum[q], q == 3 ? 1.0f : 0.0f);
    EXPECT_EQ(std::isinf(max[q]), q != 3);
    for (std::size_t d = 0; d < 32; ++d)
      EXPECT_EQ(acc[d * kRows + q], q == 3 ? to_float(blocks.value(0)[d]) : 0.0f);
  }
}

bool is_pruned(RowFormat format) {
  return format == RowFormat::pruned5 || format == RowFormat::pruned6;
}
bool has_order(RowFormat format) {
  return format == RowFormat::hadamard2 || format == RowFormat::hadamard4;
}
bool is_allotted(RowFormat format) {
  return format == RowFormat::allotted2 || format == RowFormat::allotted3 ||
         format == RowFormat::allotted4;
}
// What three blocks of rows of the second of three heads share, in a format that is fitted, near
// normal values; in an order of their own, far into a text.
struct DrawnFit {
  static constexpr std::uint32_t kHeads = 3, kRows = 3 * kBlockRows, kKept = 5, kFirst = 777'000;
  std::vector<std::byte> common, own;
  std::vector<std::uint16_t> offset;
  Rotation rotation;
  SideFit side;

  DrawnFit(RowFormat format, std::uint32_t dim, std::mt19937* random) : offset(kRows) {
    std::iota(offset.begin(), offset.end(), std::uint16_t{0});
    std::shuffle(offset.begin(), offset.end(), *random);
    std::vector<float> frequency(dim / 4);
    for (std::size_t i = 0; i < frequency.size(); ++i)
      frequency[i] = std::pow(10000.0f, -static_cast<float>(i) / static_cast<float>(dim / 4));
    rotation = Rotation::of(frequency, dim % 32 ? RopePairs::neighbours : RopePairs::halves, 1.5f);
    if (format == RowFormat::channels2) draw_channels(0.8f, dim, random);
    if (format == RowFormat::channels4) draw_channels(0.15f, dim, random);
    if (format == RowFormat::lowrank) draw_basis(dim, random);
    if (format == RowFormat::nuq4) draw_levels(dim, random);
    if (has_order(format)) draw_orders(dim, random);
    if (format == RowFormat::pruned5) draw_channels_kept<RowPruned5>(dim, random);
    if (format == RowFormat::pruned6) draw_channels_kept<RowPruned6>(dim, random);
    if (is_allotted(format)) draw_bits(8 * (row_bytes(format, dim) - 2), dim, random);
    const bool turns = has_order(format) || is_allotted(format) || format == RowFormat::lowrank ||
                       format == RowFormat::nuq4;
    side = {common.empty() ? nullptr : common.data(),
            own.empty() ? nullptr : own.data(),
            kHeads,
            kRows,
            1,
            kFirst,
            offset.data(),
            turns ? &rotation : nullptr};
  }

  static void put_normals(float size, std::byte* at, std::size_t count, std::mt19937* random) {
    std::normal_distribution<float> normal(0.0f, size);
    for (std::size_t i = 0; i < count; ++i) reinterpret_cast<f16*>(at)[i] = to_f16(normal(*random));
  }
  void draw_channels(float step, std::uint32_t dim, std::mt19937* random) {
    own.resize(RowChannels2::own_bytes(kHeads, kRows, dim));
    put_normals(0.3f, own.data(), own.size() / sizeof(f16), random);
    for (std::size_t at = 0; at < own.size() / sizeof(f16); ++at)
      if (at / dim % 2 == 0) reinterpret_cast<f16*>(own.data())[at] = to_f16(step);
  }
  void draw_orders(std::uint32_t dim, std::mt19937* random) {
    own.resize(RowHadamard2::own_bytes(kHeads, dim));
    auto* order = reinterpret_cast<std::uint16_t*>(own.data());
    for (std::uint32_t h = 0; h < kHeads; ++h, order += dim) {
      std::iota(order, order + dim, std::uint16_t{0});
      std::shuffle(order, order + dim, *random);
    }
  }
  // Of some channels many bits, of others few or none: as many as a row has at most.
  void draw_bits(std::uint32_t all, std::uint32_t dim, std::mt19937* random) {
    own.resize(Allotted::own_bytes(kHeads, dim));
    for (std::uint32_t h = 0; h < kHeads; ++h) {
      auto* longer = reinterpret_cast<std::uint16_t*>(own.data() + h * Allotted::head_bytes(dim));
      std::uint32_t left = all, most = dim;
      for (std::uint32_t k = 0; k < Allotted::kMostBits; ++k) {
        const auto eighths = static_cast<std::uint32_t>(1 + (*random)() % 8);
        most = std::min({most, left, dim / 8 * eighths}) / 8 * 8;
        longer[k] = static_cast<std::uint16_t>(most);
        left -= most;
      }
      std::uint16_t* const order = longer + Allotted::kMostBits;
      std::iota(order, order + dim, std::uint16_t{0});
      std::shuffle(order, order + dim, *random);
      put_normals(0.5f, reinterpret_cast<std::byte*>(order + dim), 2 * dim, random);
    }
  }
  template <typename Pruned>
  void draw_channels_kept(std::uint32_t dim, std::mt19937* random) {
    own.resize(ChannelsKept::own_bytes(kHeads, Pruned::kept(dim)));
    auto* kept = reinterpret_cast<std::uint16_t*>(own.data());
    std::vector<std::uint16_t> channels(dim);
    for (std::uint32_t h = 0; h < kHeads; ++h, kept += Pruned::kept(dim)) {
      std::iota(channels.begin(), channels.end(), std::uint16_t{0});
      std::shuffle(channels.begin(), channels.end(), *random);
      std::copy_n(channels.begin(), Pruned::kept(dim), kept);
      std::sort(kept, kept + Pruned::kept(dim));
    }
  }
  // Of channels and of rows by turns; with outliers of first and last rows and channels.
  void draw_levels(std::uint32_t dim, std::mt19937* random) {
    RowNuq4::Header header{static_cast<std::uint32_t>((*random)() % 2), 4 * kHeads, {}};
    for (std::uint32_t k = 0; k < RowNuq4::kLevels; ++k)
      header.level[k] = std::pow(static_cast<float>(k) / 7.5f - 1.0f, 3.0f);
    own.resize(RowNuq4::own_bytes(header.by, kHeads, kRows, dim, header.outliers));
    std::memcpy(own.data(), &header, sizeof header);
    auto* const range = reinterpret_cast<f16*>(own.data() + sizeof header);
    const std::size_t ranges = RowNuq4::ranges(header.by, kHeads, kRows, dim);
    put_normals(1.0f, own.data() + sizeof header, ranges, random);
    auto* const start = reinterpret_cast<std::uint32_t*>(range + ranges);
    const std::size_t groups = RowNuq4::groups(kRows);
    auto* const value = start + kHeads * groups + 1;
    auto* const place = reinterpret_cast<std::uint16_t*>(value) + header.outliers;
    put_normals(3.0f, reinterpret_cast<std::byte*>(value), header.outliers, random);
    for (std::uint32_t h = 0; h < kHeads; ++h) {
      start[h * groups] = 4 * h;
      std::fill_n(start + h * groups + 1, groups - 1, 4 * h + 3);  // and one of the last group
      const std::uint32_t at[] = {0, dim - 1, 31 * RowNuq4::kRowPlaces + dim / 2, 5};
      std::copy_n(at, 4, place + 4 * h);
    }
    start[kHeads * groups] = header.outliers;
  }
  void draw_basis(std::uint32_t dim, std::mt19937* random) {
    const std::uint32_t rank = 32;
    common.resize(RowLowRank::common_bytes(kHeads, rank, dim));
    put_normals(0.2f, common.data() + RowLowRank::kHeader, kHeads * rank * dim, random);
    std::memcpy(common.data(), &rank, sizeof rank);
    own.resize(RowLowRank::own_bytes(kHeads, kRows, rank, dim, kKept));
    std::byte* at = own.data() + RowLowRank::kHeader;
    put_normals(0.6f, at, kRows * rank, random);
    at += kRows * rank * sizeof(f16);
    std::memcpy(own.data(), &kKept, sizeof kKept);
    const std::uint32_t first[] = {0, 1, 4, kKept};
    std::memcpy(at, first, sizeof first);
    put_normals(1.0f, at + sizeof first, kKept * dim, random);
    const std::uint16_t number[] = {9, 1, 17, 130, 2};
    std::memcpy(at + sizeof first + kKept * dim * sizeof(f16), number, sizeof number);
  }
};

const std::vector<RowFormat>& all_formats() {
  static const std::vector<RowFormat> all = [] {
    std::vector<RowFormat> found;
    for (std::uint32_t number = 0; number < 256; ++number)
      if (const auto format = row_format_of(number)) found.push_back(*format);
    return found;
  }();
  return all;
}

// Each format with f16, with itself and with the next one: either side is read by itself.
std::vector<std::pair<RowFormat, RowFormat>> pairs_of_formats() {
  std::vector<std::pair<RowFormat, RowFormat>> pairs;
  const std::vector<RowFormat>& all = all_formats();
  for (std::size_t f = 0; f < all.size(); ++f) {
    pairs.emplace_back(all[f], all[f]);
    pairs.emplace_back(all[f], all[(f + 1) % all.size()]);
    if (f == 0) continue;
    pairs.emplace_back(all[f], RowFormat::f16);
    pairs.emplace_back(RowFormat::f16, all[f]);
  }
  return pairs;
}

bool rotates(RowFormat format) {
  return format == RowFormat::rotated2 || format == RowFormat::rotated3 ||
         format == RowFormat::rotated4;
}
bool is_fitted(RowFormat format) {
  return format == RowFormat::channels2 || format == RowFormat::channels4 ||
         format == RowFormat::lowrank || format == RowFormat::nuq4 || has_order(format) ||
         is_pruned(format) || is_allotted(format);
}

// Whole blocks of rows in any pair of formats, and a few of them left out.
struct CodedBlocks {
  std::vector<std::byte> data;
  std::vector<BlockView> views;
  DrawnFit key_fit, value_fit;
  Fold fold;

  CodedBlocks(RowFormat key, RowFormat value, HeadShape shape, std::mt19937* random)
      : views(3),
        key_fit(key, shape.key_dim, random),
        value_fit(value, shape.value_dim, random),
        fold{key, value, 0, 0, {}} {
    fold.key_fit = key_fit.side;
    fold.value_fit = value_fit.side;
    const std::uint32_t key_bytes = row_bytes(key, shape.key_dim);
    fold.key_stride = fold.value_stride = key_bytes + row_bytes(value, shape.value_dim);
    data.resize(views.size() * kBlockRows * fold.key_stride);
    for (std::size_t r = 0; r < views.size() * kBlockRows; ++r) {
      std::byte* row = data.data() + r * fold.key_stride;
      fill(key, shape.key_dim, row, random);
      fill(value, shape.value_dim, row + key_bytes, random);
    }
    for (std::size_t b = 0; b < views.size(); ++b) {
      const std::byte* at = data.data() + b * kBlockRows * fold.key_stride;
      views[b] = {at, at + key_bytes, first_rows(60) & ~RowSet{0x5008}, nullptr,
                  static_cast<std::uint32_t>(b) * kBlockRows};
    }
    fold.blocks = views;
  }

  static void fill(RowFormat format, std::uint32_t dim, std::byte* row, std::mt19937* random) {
    std::normal_distribution<float> normal;
    std::vector<f16> raw(dim);
    for (f16& x : raw) x = to_f16(normal(*random));
    if (format == RowFormat::f16) return RawCodec().encode(raw.data(), dim, row);
    if (format == RowFormat::bf16) return Bf16Codec().encode(raw.data(), dim, row);
    if (is_pruned(format)) return RawCodec().encode(raw.data(), row_bytes(format, dim) / 2, row);
    if (has_order(format)) {
      const RowFormat of_group =
          format == RowFormat::hadamard2 ? RowFormat::kivi2 : RowFormat::q4_1;
      return GroupCodec(of_group).encode(raw.data(), dim, row);
    }
    if (is_fitted(format) && !is_allotted(format)) {
      for (std::uint32_t i = 0; i < row_bytes(format, dim); ++i)
        row[i] = static_cast<std::byte>((*random)());
      return;
    }
    if (!rotates(format) && !is_allotted(format) && format != RowFormat::int8)
      return GroupCodec(format).encode(raw.data(), dim, row);
    const std::uint32_t codes = format == RowFormat::int8 ? dim : row_bytes(format, dim) - 2;
    for (std::uint32_t i = 0; i < codes; ++i)
      row[i] = static_cast<std::byte>(static_cast<int>((*random)() % 255) - 127);
    const float step = format == RowFormat::int8 ? 0.01f : is_allotted(format) ? 0.5f : 0.1f;
    const f16 scale = to_f16(step + step * std::abs(normal(*random)));
    std::memcpy(row + codes, &scale, sizeof scale);
  }
};

TEST(RowFormats, ReadAsTheirDefinitionsSay) {
  const f16 halves[] = {to_f16(-1.5f), to_f16(0.0f), to_f16(65504.0f), {1}};
  float out[4];
  read_row(RowFormat::f16, reinterpret_cast<const std::byte*>(halves), 4, out);
  EXPECT_EQ((std::vector<float>{out, out + 4}),
            (std::vector<float>{-1.5f, 0.0f, 65504.0f, std::ldexp(1.0f, -24)}));
  alignas(4) std::int8_t codes[20] = {127, -127, 0, 3};
  const f16 scale = to_f16(0.375f);
  std::memcpy(codes + 16, &scale, 2);
  float all[16];
  read_row(RowFormat::int8, reinterpret_cast<const std::byte*>(codes), 16, all);
  EXPECT_EQ((std::vector<float>{all, all + 5}),
            (std::vector<float>{47.625f, -47.625f, 0.0f, 1.125f, 0.0f}));
  EXPECT_EQ(row_bytes(RowFormat::f16, 48), 96u);
  EXPECT_EQ(row_bytes(RowFormat::int8, 48), 52u);
  // 16 codes of two bits, the first in the lowest; then of four.
  alignas(2) const std::uint8_t pairs[6] = {0b11100100, 0, 0, 0, 0x00, 0x40};  // scale 2
  float expected[16] = {-3, -1, 1, 3};
  std::fill_n(expected + 4, 12, -3.0f);
  hadamard(expected, 16);
  read_row(RowFormat::rotated2, reinterpret_cast<const std::byte*>(pairs), 16, all);
  EXPECT_EQ((std::vector<float>{all, all + 16}), (std::vector<float>{expected, expected + 16}));
  alignas(2) const std::uint8_t nibbles[10] = {0xf0, 0x97, 0, 0, 0, 0, 0, 0, 0x00, 0x40};
  const float first[] = {-15, 15, -1, 3};
  std::copy_n(first, 4, expected);
  std::fill_n(expected + 4, 12, -15.0f);
  hadamard(expected, 16);
  read_row(RowFormat::rotated4, reinterpret_cast<const std::byte*>(nibbles), 16, all);
  EXPECT_EQ((std::vector<float>{all, all + 16}), (std::vector<float>{expected, expected + 16}));
  // Codes 0, 5 and 7 of three bits: their lower two, then the thirds.
  alignas(2) const std::uint8_t threes[8] = {0b110100, 0, 0, 0, 0b110, 0, 0x00, 0x40};
  const float of_three[] = {-7, 3, 7};
  std::copy_n(of_three, 3, expected);
  std::fill_n(expected + 3, 13, -7.0f);
  hadamard(expected, 16);
  read_row(RowFormat::rotated3, reinterpret_cast<const std::byte*>(threes), 16, all);
  EXPECT_EQ((std::vector<float>{all, all + 16}), (std::vector<float>{expected, expected + 16}));
  EXPECT_EQ(row_bytes(RowFormat::rotated2, 64), 18u);
  EXPECT_EQ(row_bytes(RowFormat::rotated3, 64), 26u);
  EXPECT_EQ(row_bytes(RowFormat::allotted3, 64), 22u);
  EXPECT_EQ(row_bytes(RowFormat::rotated4, 64), 34u);
}

TEST_P(AttendOfEveryTable, EveryPairOfFormatsAgreesWithTheReference) {
  for (const auto& [key, value] : pairs_of_formats())
    for (const std::uint32_t dim : {16, 48, 64, 256})
      for (std::uint32_t heads = 1; heads <= 5; ++heads) {
        const HeadShape shape{heads, dim, heads % 2 ? dim : 80};
        const CodedBlocks blocks(key, value, shape, &random_);
        const std::vector<float> query = normals(heads * dim, 0.1f);
        States states(shape);
        ops().attend(query.data(), shape, blocks.fold, nullptr, states.head.data());
        expect_near_reference(states, shape, query.data(), {&blocks.fold, 1});

        const CodedBlocks others(key, value, shape, &random_);
        States announced(shape);
        ops().attend(query.data(), shape, blocks.fold, &others.fold, announced.head.data());
        EXPECT_TRUE(std::equal(announced.acc.begin(), announced.acc.end(), states.acc.begin()));
      }
}

TEST_P(AttendOfEveryTable, TilesOfEveryPairOfFormatsAgreeWithTheReference) {
  // Keys and queries as they come: bf16 moves scores of about 1 by some 1e-3 as well.
  const double bound = ops().tile_type == GemmType::f32 ? 3e-5 : 2e-2;
  for (const auto& [key, value] : pairs_of_formats()) {
    const HeadShape shape{1, 48, 80};
    const CodedBlocks blocks(key, value, shape, &random_);
    const Visibility visible{true, 100, 0};
    const std::size_t rows = 2 * kTileLanes;
    std::vector<std::uint32_t> position(rows);
    for (std::size_t q = 0; q < rows; ++q)
      position[q] = 100 + static_cast<std::uint32_t>(q * 41 % 180);
    const std::vector<float> turned = normals(rows * shape.key_dim, 0.1f);
    std::vector<float> max(rows, -kInf), sum(rows, 0.0f), acc(rows * shape.value_dim, 0.0f);
    std::vector<float> scratch(tile_scratch_floats(shape));
    ops().attend_tile({turned.data(), position.data(), rows, max.data(), sum.data(), acc.data()},
                      shape, blocks.fold, visible, scratch.data());
    for (std::size_t q = 0; q < rows; ++q) {
      std::vector<float> query(shape.key_dim);
      for (std::uint32_t d = 0; d < shape.key_dim; ++d) query[d] = turned[d * rows + q];
      const std::vector<double> expected =
          attend_reference(query.data(), shape, {&blocks.fold, 1}, {&visible, 1}, position[q]);
      for (std::uint32_t d = 0; d < shape.value_dim; ++d)
        ASSERT_NEAR(acc[d * rows + q] / sum[q], expected[d], bound) << "query " << q;
    }
  }
}

// One row has the weight 1, so its value is the answer; and of a query that is one channel, the key
// there is the score. Bytes are any: only where they stand for infinities or NaNs may a channel be
// another's sum.
TEST_P(AttendOfEveryTable, AnyBytesAreReadAsTheDefinitionSaysToTheBit) {
  for (const RowFormat format : all_formats()) {
    if (rotates(format)) continue;    // rounds, as it rotates back
    if (is_fitted(format)) continue;  // says nothing by itself
    SCOPED_TRACE(static_cast<int>(format));
    for (const std::uint32_t dim : {16u, 48u, 80u, 256u})
      for (int round = 0; round < 40; ++round) {
        const HeadShape shape{1, dim, dim};
        // Exactly as long as it says, so that the sanitizer sees what is read beyond.
        const std::vector<std::byte> row = [&] {
          std::vector<std::byte> bytes(row_bytes(format, dim));
          for (std::byte& byte : bytes) byte = static_cast<std::byte>(random_());
          return bytes;
        }();
        std::vector<float> wanted(dim);
        read_row(format, row.data(), dim, wanted.data());
        const BlockView view{row.data(), row.data(), 1, nullptr};
        const Fold fold{format, format, 0, 0, {&view, 1}};
        const bool finite =
            std::all_of(wanted.begin(), wanted.end(), [](float x) { return std::isfinite(x); });
        std::vector<float> query(dim, 0.0f);
        const std::uint32_t channel = static_cast<std::uint32_t>(random_()) % dim;
        query[channel] = 1.0f;
        States states(shape);
        ops().attend(query.data(), shape, fold, nullptr, states.head.data());
        if (!finite) continue;
        EXPECT_EQ(states.head[0].max, wanted[channel]);
        for (std::uint32_t i = 0; i < dim; ++i) ASSERT_EQ(states.head[0].acc[i], wanted[i]) << i;
      }
  }
}

// Whatever other rows of a block are read with it: a fold of one row has that row's own bits.
TEST_P(AttendOfEveryTable, ARowIsRebuiltTheSameWhateverIsRebuiltWithIt) {
  for (const RowFormat format : all_formats()) {
    if (!is_fitted(format)) continue;
    const HeadShape shape{3, 48, 48};
    CodedBlocks blocks(format, format, shape, &random_);
    const std::vector<float> query = normals(3 * 48, 0.1f);
    const std::vector<BlockView> all = blocks.views;
    std::vector<float> alone;
    for (const BlockView& view : all)
      for (RowSet left = view.rows; left != 0; left &= left - 1) {
        const BlockView one{view.key, view.value, left & ~(left - 1), nullptr, view.first_number};
        Fold fold = blocks.fold;
        fold.blocks = {&one, 1};
        States states(shape);
        ops().attend(query.data(), shape, fold, nullptr, states.head.data());
        alone.push_back(states.head[2].max);  // the row's score
      }
    // Rows that end a fold are rebuilt with fewer others.
    for (int count = 1; count < static_cast<int>(alone.size()); count += 7) {
      std::vector<BlockView> views = all;
      int left = count;
      for (BlockView& view : views)
        for (RowSet rows = std::exchange(view.rows, 0); rows != 0 && left > 0; --left) {
          view.rows |= rows & ~(rows - 1);
          rows &= rows - 1;
        }
      const float most = *std::max_element(alone.begin(), alone.begin() + count);
      Fold fold = blocks.fold;
      fold.blocks = views;
      States states(shape);
      ops().attend(query.data(), shape, fold, nullptr, states.head.data());
      EXPECT_EQ(states.head[2].max, most) << count;
    }
  }
}

// The same row again, and one before it: what is looked up from row to row begins anew.
TEST_P(AttendOfEveryTable, RowsOfABlockMayComeInAnyOrder) {
  for (const RowFormat format : all_formats()) {
    if (!is_fitted(format)) continue;
    const HeadShape shape{3, 48, 48};
    CodedBlocks blocks(format, format, shape, &random_);
    const std::vector<float> query = normals(3 * 48, 0.3f);
    std::vector<BlockView> views(4, blocks.views[0]);
    const int row[] = {31, 31, 0, 31};
    for (std::size_t v = 0; v < views.size(); ++v) views[v].rows = RowSet{1} << row[v];
    blocks.fold.blocks = views;
    States states(shape);
    ops().attend(query.data(), shape, blocks.fold, nullptr, states.head.data());
    expect_near_reference(states, shape, query.data(), {&blocks.fold, 1});
  }
}

INSTANTIATE_TEST_SUITE_P(Tables, AttendOfEveryTable,
                         testing::ValuesIn(all_cpu_tables().begin(), all_cpu_tables().end()),
                         [](const auto& table) { return std::string(table.param->name); });

}  // namespace
}  // namespace thermocline
