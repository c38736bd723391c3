// Codecs that are fitted to a segment: what is read back, within their bounds, of rows like those
// of a model: low rank, with outlying channels and rows, and keys rotated by their position.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <random>
#include <vector>

#include "kernels/format/row_allotted.h"
#include "kernels/format/row_channels.h"
#include "kernels/format/row_hadamard.h"
#include "kernels/format/row_lowrank.h"
#include "kernels/format/row_nuq4.h"
#include "kernels/format/row_pruned.h"
#include "kernels/hadamard.h"
#include "tiers/codec/allotted.h"
#include "tiers/codec/channels.h"
#include "tiers/codec/codec.h"
#include "tiers/codec/hadamard.h"
#include "tiers/codec/lowrank.h"
#include "tiers/codec/nuq.h"
#include "tiers/codec/pruned.h"
#include "tiers/codec/raw.h"

namespace thermocline {
namespace {

constexpr std::uint32_t kHeads = 3, kDim = 32, kWidth = kHeads * kDim;

Rotation rotation_of_test() {
  std::vector<float> frequency(kDim / 2);
  for (std::size_t i = 0; i < frequency.size(); ++i)
    frequency[i] = static_cast<float>(std::pow(10000.0, -2.0 * static_cast<double>(i) / kDim));
  return Rotation::of(frequency, RopePairs::halves, 1.0f);
}

// Keys of some content: `rank` directions of which each row has something, then noise.
struct Content {
  std::vector<float> directions;  // [rank][width]
  std::uint32_t rank = 0;

  Content(std::uint32_t of_rank, std::mt19937* random) : rank(of_rank) {
    std::normal_distribution<float> normal;
    directions.resize(std::size_t{rank} * kWidth);
    for (float& x : directions) x = normal(*random);
    for (std::uint32_t k = 0; k < rank; ++k) directions[k * kWidth + k % 7] *= 6.0f;  // channels
  }
};

// Raw rows that own their bytes.
struct Rows {
  std::vector<f16> data;
  RawRows view;

  f16* key(std::uint32_t head, std::uint32_t r) {
    return data.data() + (std::size_t{head} * view.rows + r) * 2 * kDim;
  }

  Rows(std::uint32_t rows, std::uint32_t first_position, const Content& content, float noise,
       const Rotation* rotation, std::mt19937* random)
      : data(std::size_t{kHeads} * rows * 2 * kDim) {
    view = {raw_layout(kDim, kDim),
            kHeads,
            first_position,
            rows,
            reinterpret_cast<const std::byte*>(data.data()),
            std::size_t{rows} * 4 * kDim};
    std::normal_distribution<float> normal;
    for (std::uint32_t r = 0; r < rows; ++r) {
      float row[kWidth];
      for (float& x : row) x = noise * normal(*random);
      for (std::uint32_t k = 0; k < content.rank; ++k) {
        const float much = normal(*random) / static_cast<float>(1 + k / 4);
        for (std::uint32_t i = 0; i < kWidth; ++i)
          row[i] += much * content.directions[k * kWidth + i];
      }
      for (std::uint32_t h = 0; h < kHeads; ++h) {
        if (rotation) rotate_to(*rotation, first_position + r, row + h * kDim);
        for (std::uint32_t i = 0; i < kDim; ++i) {
          key(h, r)[i] = to_f16(row[h * kDim + i]);
          key(h, r)[kDim + i] = to_f16(normal(*random));
        }
      }
    }
  }
};

const Workers& workers() {
  static const Workers three(3);
  return three;
}

// A segment of the rows with what its codecs fitted, and its records.
struct Sealed {
  Segment segment;
  std::vector<std::byte> records;
  const RowCodec& codec;
  RowLayout layout;

  Sealed(const RowCodec& by, const Rows& rows, const Rotation* rotation,
         const std::vector<std::uint32_t>& order = {},
         const std::vector<std::vector<std::uint32_t>>& always = {},
         const Segment* before = nullptr, const Workers& with = workers(),
         std::span<const float> queries = {})
      : codec(by), layout(by.layout(kDim, kDim)) {
    segment.heads = kHeads;
    segment.rows = rows.view.rows;
    segment.first_position = rows.view.first_position;
    segment.layout = layout;
    segment.offset.assign(order.begin(), order.end());
    for (const Side side : kSides) {
      const Fitter* const fitter = codec.of(side).fitter();
      if (!fitter) continue;
      Fitting fitting{side,
                      rows.view,
                      order,
                      always,
                      side == Side::keys ? rotation : nullptr,
                      before ? &before->fit(side) : nullptr,
                      segment.offset,
                      queries};
      Result<Fit> fit = fitter->fit(fitting, with);
      EXPECT_TRUE(fit);
      SegmentFit& held = segment.fits[static_cast<std::size_t>(side)];
      held.heads = kHeads;
      if (fit->as_before) held.common = before->fit(side).common;
      const auto hold = [](Buffer bytes) {
        auto part = std::make_shared<FitBytes>();
        part->bytes = std::move(bytes);
        return part;
      };
      if (fit->common.size() > 0) held.common = hold(std::move(fit->common));
      if (fit->own.size() > 0) held.own = hold(std::move(fit->own));
      held.rotation = fitting.rotation;
      const auto common = held.common ? held.common->bytes.bytes() : std::span<std::byte>();
      held.facts = fitter->facts({kHeads, kDim}, rows.view.rows, common, held.own->bytes.bytes());
      EXPECT_EQ(fitter->flaw({kHeads, kDim}, rows.view.rows, common, held.own->bytes.bytes()),
                nullptr);
      std::uint64_t most = 0;
      for (const auto& head : always) most = std::max<std::uint64_t>(most, head.size());
      EXPECT_LE(common.size() + held.own->bytes.size(),
                fitter->bytes({kHeads, kDim}, rows.view.rows, most));
    }
    const std::size_t head_bytes = std::size_t{segment.rows} * layout.bytes();
    records.resize(kHeads * head_bytes);
    for (std::uint32_t h = 0; h < kHeads; ++h) {
      std::span<const std::uint32_t> of_head;
      if (!order.empty()) of_head = std::span(order).subspan(h * segment.rows, segment.rows);
      codec.encode(rows.view, h, of_head, segment, 0, records.data() + h * head_bytes);
    }
  }

  // A stored row's key, as it is read back.
  std::vector<float> key(std::uint32_t head, std::uint32_t number) const {
    const std::byte* record =
        records.data() + (std::size_t{head} * segment.rows + number) * layout.bytes();
    std::vector<f16> back(2 * kDim);
    codec.decode(record, record + layout.key_bytes, segment, head, number, raw_layout(kDim, kDim),
                 reinterpret_cast<std::byte*>(back.data()));
    std::vector<float> out(kDim);
    std::transform(back.begin(), back.begin() + kDim, out.begin(),
                   [](f16 x) { return to_float(x); });
    return out;
  }
  std::span<std::byte> own() const { return segment.fit(Side::keys).own->bytes.bytes(); }
  const FitFacts& facts() const { return segment.fit(Side::keys).facts; }
};

RowCodec channels(ChannelsCodec::Bits bits) {
  return {std::make_unique<ChannelsCodec>(bits), std::make_unique<RawCodec>()};
}
RowCodec hadamards(HadamardCodec::Bits bits) {
  return {std::make_unique<HadamardCodec>(bits), std::make_unique<RawCodec>()};
}
RowCodec allotted(AllottedCodec::Bits bits) {
  return {std::make_unique<AllottedCodec>(bits), std::make_unique<RawCodec>()};
}
RowCodec pruned(PrunedCodec::Eighths kept) {
  return {std::make_unique<PrunedCodec>(kept), std::make_unique<RawCodec>()};
}
RowCodec lowrank(double rank, double energy = 1.0) {
  return {std::make_unique<LowRankCodec>(LowRankOptions{rank, energy}),
          std::make_unique<RawCodec>()};
}
RowCodec nuq(NuqCodec::By by, double outliers = 0.01) {
  return {std::make_unique<NuqCodec>(by, NuqOptions{outliers}), std::make_unique<RawCodec>()};
}

std::vector<std::uint32_t> shuffled(std::uint32_t rows, std::mt19937* random) {
  std::vector<std::uint32_t> order(std::size_t{kHeads} * rows);
  for (std::uint32_t h = 0; h < kHeads; ++h) {
    const auto head = order.begin() + h * rows;
    std::iota(head, head + rows, 0u);
    std::shuffle(head, head + rows, *random);
  }
  return order;
}

TEST(ChannelsCodec, ReadsBackWithinHalfAStepOfItsGroup) {
  std::mt19937 random(1);
  for (const auto bits : {ChannelsCodec::Bits::two, ChannelsCodec::Bits::four}) {
    const RowCodec codec = channels(bits);
    for (const std::uint32_t rows : {64u, 100u, 256u}) {
      Rows raw(rows, 100, Content(8, &random), 0.3f, nullptr, &random);
      for (std::uint32_t r = 0; r < rows; r += 17) raw.key(1, r)[5] = to_f16(60000.0f - 100.0f * r);
      for (std::uint32_t r = 0; r < rows; ++r) raw.key(2, r)[9] = to_f16(-3.25f);  // all the same
      const std::vector<std::uint32_t> order = shuffled(rows, &random);
      const Sealed sealed(codec, raw, nullptr, order);
      for (std::uint32_t h = 0; h < kHeads; ++h)
        for (std::uint32_t g = 0; g < rows; g += 32)
          for (std::uint32_t i = 0; i < kDim; ++i) {
            double least = 1e9, greatest = -1e9;
            const auto was = [&](std::uint32_t n) {
              return double{to_float(raw.key(h, order[h * rows + n])[i])};
            };
            for (std::uint32_t n = g; n < std::min(rows, g + 32); ++n) {
              least = std::min(least, was(n));
              greatest = std::max(greatest, was(n));
            }
            // One f16 step above the exact quotient at most; what is read is rounded to f16.
            const double steps = (1 << static_cast<int>(bits)) - 1;
            const double scale = (greatest - least) / steps * (1 + 0x1.0p-10) + 0x1.0p-24;
            for (std::uint32_t n = g; n < std::min(rows, g + 32); ++n) {
              const double rounding = std::abs(was(n)) * 0x1.0p-10 + scale * 0x1.0p-10;
              ASSERT_LE(std::abs(sealed.key(h, n)[i] - was(n)), scale / 2 + rounding)
                  << "head " << h << ", row " << n << ", channel " << i;
            }
          }
    }
  }
}

TEST(ChannelsCodec, HidesNothingThatIsNotFiniteAndSpoilsNoOtherChannel) {
  std::mt19937 random(2);
  const RowCodec codec = channels(ChannelsCodec::Bits::four);
  for (const float bad : {std::numeric_limits<float>::infinity(), std::nanf("")}) {
    Rows raw(64, 0, Content(4, &random), 0.1f, nullptr, &random);
    raw.key(1, 40)[3] = to_f16(bad);
    const Sealed sealed(codec, raw, nullptr);
    for (std::uint32_t n = 0; n < 64; ++n)
      for (std::uint32_t i = 0; i < kDim; ++i)
        EXPECT_EQ(std::isnan(sealed.key(1, n)[i]), n >= 32 && i == 3);
  }
}

// The share of the squares of all rows that is lost when they are read back.
double lost(const Sealed& sealed, Rows& raw, const std::vector<std::uint32_t>& order = {}) {
  double missed = 0, all = 0;
  for (std::uint32_t h = 0; h < kHeads; ++h)
    for (std::uint32_t n = 0; n < raw.view.rows; ++n) {
      const f16* was = raw.key(h, order.empty() ? n : order[h * raw.view.rows + n]);
      const std::vector<float> got = sealed.key(h, n);
      for (std::uint32_t i = 0; i < kDim; ++i) {
        missed += std::pow(double{got[i]} - to_float(was[i]), 2);
        all += std::pow(double{to_float(was[i])}, 2);
      }
    }
  return missed / all;
}

TEST(LowRankCodec, LosesWhatItsBasisDoesNotCapture) {
  std::mt19937 random(3);
  const Rotation rotation = rotation_of_test();
  const Content content(20, &random);
  for (const std::uint32_t first : {0u, 4096u, 1'000'000u}) {
    Rows raw(512, first, content, 0.05f, &rotation, &random);
    double before = 1.0;
    for (const double rank : {0.16, 0.33, 0.5, 1.0}) {
      const RowCodec codec = lowrank(rank);
      const std::vector<std::uint32_t> order = shuffled(512, &random);
      const Sealed sealed(codec, raw, &rotation, order);
      EXPECT_EQ(sealed.layout.key_bytes, 0u);
      EXPECT_EQ(sealed.facts().rank, rank == 0.16   ? 16u
                                     : rank == 0.33 ? 32u
                                     : rank == 0.5  ? 48u
                                                    : 96u);
      const double missing = lost(sealed, raw, order);
      EXPECT_NEAR(missing, 1.0 - sealed.facts().captured, 2e-4) << rank << " at " << first;
      EXPECT_LT(missing, before);
      before = missing;
    }
    EXPECT_LT(before, 1e-6);
  }
}

TEST(LowRankCodec, WithAsManyVectorsAsChannelsOnlyRoundingIsLost) {
  std::mt19937 random(4);
  const Rotation rotation = rotation_of_test();
  Rows raw(128, 900'000, Content(10, &random), 0.5f, &rotation, &random);
  const RowCodec codec = lowrank(1.0);
  const Sealed sealed(codec, raw, &rotation);
  for (std::uint32_t n = 0; n < 128; ++n) {
    double length = 0;
    for (std::uint32_t h = 0; h < kHeads; ++h)
      for (std::uint32_t i = 0; i < kDim; ++i) length += std::pow(to_float(raw.key(h, n)[i]), 2);
    for (std::uint32_t h = 0; h < kHeads; ++h)
      for (std::uint32_t i = 0; i < kDim; ++i)
        ASSERT_NEAR(sealed.key(h, n)[i], to_float(raw.key(h, n)[i]), 0x1.0p-9 * std::sqrt(length));
  }
}

TEST(LowRankCodec, TakesAsFewVectorsAsTheEnergyAsksFor) {
  std::mt19937 random(5);
  Rows raw(256, 0, Content(16, &random), 0.01f, nullptr, &random);
  const RowCodec few = lowrank(1.0, 0.9), most = lowrank(0.5, 0.99999999);
  const Sealed sealed(few, raw, nullptr), capped(most, raw, nullptr);
  EXPECT_EQ(sealed.facts().rank, 16u);
  EXPECT_GE(sealed.facts().captured, 0.9f);
  EXPECT_EQ(capped.facts().rank, 48u);
}

TEST(LowRankCodec, ChoosesItsRankWhereItIsToldTo) {
  std::mt19937 random(25);
  const double automatic = LowRankOptions::kAutoRank;
  for (const std::uint32_t directions : {4u, 12u, 40u}) {
    Rows raw(256, 0, Content(directions, &random), 0.01f, nullptr, &random);
    const RowCodec choosing = lowrank(automatic), less = lowrank(automatic, 0.9);
    const RowCodec half = lowrank(0.5), asked = lowrank(0.5, 0.99);
    const Sealed chosen(choosing, raw, nullptr), fewer(less, raw, nullptr);
    EXPECT_EQ(chosen.facts().rank, Sealed(asked, raw, nullptr).facts().rank);
    EXPECT_TRUE(chosen.facts().captured >= 0.99f || chosen.facts().rank == kWidth / 2);
    EXPECT_LE(fewer.facts().rank, chosen.facts().rank);
    EXPECT_EQ(choosing.keys->fitter()->bytes({kHeads, kDim}, 256, 0),
              half.keys->fitter()->bytes({kHeads, kDim}, 256, 0));
  }
}

TEST(LowRankCodec, RowsThatAreAlwaysReadStayAsTheyAre) {
  std::mt19937 random(6);
  const Rotation rotation = rotation_of_test();
  Rows raw(128, 5000, Content(40, &random), 1.0f, &rotation, &random);
  const std::vector<std::vector<std::uint32_t>> always = {{3, 4, 5}, {}, {0, 127}};
  for (const bool ordered : {false, true}) {
    const std::vector<std::uint32_t> order =
        ordered ? shuffled(128, &random) : std::vector<std::uint32_t>();
    const RowCodec codec = lowrank(0.156);
    const Sealed sealed(codec, raw, &rotation, order, always);
    for (std::uint32_t h = 0; h < kHeads; ++h)
      for (std::uint32_t n = 0; n < 128; ++n) {
        const std::uint32_t r = ordered ? order[h * 128 + n] : n;
        bool same = true;
        for (std::uint32_t i = 0; i < kDim; ++i)
          same = same && sealed.key(h, n)[i] == to_float(raw.key(h, r)[i]);
        EXPECT_EQ(same, std::count(always[h].begin(), always[h].end(), r) > 0) << h << ", " << n;
      }
  }
}

TEST(LowRankCodec, SharesABasisThatSuitsAndMakesOneWhereItDoesNot) {
  std::mt19937 random(7);
  const Rotation rotation = rotation_of_test();
  const Content content(12, &random), other(12, &random);
  Rows first(1024, 4, content, 0.1f, &rotation, &random);
  Rows like(512, 1028, content, 0.1f, &rotation, &random);
  Rows unlike(512, 1540, other, 0.1f, &rotation, &random);
  const RowCodec codec = lowrank(0.17);
  const Sealed one(codec, first, &rotation);
  const Sealed two(codec, like, &rotation, {}, {}, &one.segment);
  const Sealed three(codec, unlike, &rotation, {}, {}, &two.segment);
  const auto basis = [](const Sealed& of) { return of.segment.fit(Side::keys).common; };
  EXPECT_EQ(basis(two), basis(one));
  EXPECT_NE(basis(three), basis(one));
  EXPECT_GT(two.facts().captured, 0.95f);
  EXPECT_GT(three.facts().captured, 0.95f);
  EXPECT_NEAR(lost(two, like), 1.0 - two.facts().captured, 2e-4);
  // Cut, and coded again from what was read back: the same basis, and hardly anything more is lost.
  Rows again = like;
  again.view.data = reinterpret_cast<const std::byte*>(again.data.data());
  for (std::uint32_t h = 0; h < kHeads; ++h)
    for (std::uint32_t n = 0; n < 512; ++n)
      for (std::uint32_t i = 0; i < kDim; ++i) again.key(h, n)[i] = to_f16(two.key(h, n)[i]);
  const Sealed cut(codec, again, &rotation, {}, {}, &one.segment);
  EXPECT_EQ(basis(cut), basis(one));
  EXPECT_LT(lost(cut, again), 1e-5);
}

TEST(LowRankCodec, ARowThatIsNotFiniteIsNoneInEveryHeadAndSpoilsNoOther) {
  std::mt19937 random(8);
  Rows raw(128, 0, Content(10, &random), 0.1f, nullptr, &random);
  raw.key(1, 77)[3] = to_f16(std::numeric_limits<float>::infinity());
  const RowCodec codec = lowrank(0.2);
  const Sealed sealed(codec, raw, nullptr);
  for (std::uint32_t h = 0; h < kHeads; ++h)
    for (std::uint32_t n = 0; n < 128; ++n)
      for (const float x : sealed.key(h, n)) ASSERT_EQ(std::isnan(x), n == 77);
  EXPECT_GT(sealed.facts().captured, 0.9f);
}

TEST(LowRankCodec, RowsOfZerosAndFewerRowsThanVectorsHaveABasis) {
  std::mt19937 random(9);
  Rows few(16, 0, Content(30, &random), 1.0f, nullptr, &random);
  const RowCodec codec = lowrank(1.0);
  EXPECT_LT(lost(Sealed(codec, few, nullptr), few), 1e-6);
  std::fill(few.data.begin(), few.data.end(), f16{});
  const Sealed nothing(codec, few, nullptr);
  for (const float x : nothing.key(2, 5)) EXPECT_EQ(x, 0.0f);
  EXPECT_EQ(nothing.facts().captured, 1.0f);
}

// A row of all heads before its rotation; `of` is a head's row, rotated.
std::vector<float> turned_back(const Rotation* rotation, std::uint32_t position,
                               std::vector<float> of) {
  if (rotation) rotate_back(*rotation, position, of.data());
  return of;
}

// Half of the shortest stretch that holds all but `out` of the values, and where that is.
struct Shortest {
  float least = 0, greatest = 0;

  Shortest(std::vector<float> x, std::size_t out) {
    std::sort(x.begin(), x.end());
    least = x.front(), greatest = x[x.size() - 1 - out];
    for (std::size_t below = 1; below <= out; ++below)
      if (x[x.size() - 1 - out + below] - x[below] < greatest - least)
        least = x[below], greatest = x[x.size() - 1 - out + below];
  }
  bool holds(float x) const { return x >= least && x <= greatest; }
};

TEST(NuqCodec, ReadsBackTheNearestLevelAndOutliersAsTheyWere) {
  std::mt19937 random(12);
  const Rotation rotation = rotation_of_test();
  for (const auto by : {NuqCodec::By::channel, NuqCodec::By::row})
    for (const Rotation* turn : {static_cast<const Rotation*>(nullptr), &rotation})
      for (const std::uint32_t rows : {1u, 2u, 64u, 333u}) {
        const bool by_row = by == NuqCodec::By::row;
        const RowCodec codec = nuq(by, 0.03);
        Rows raw(rows, 7000, Content(8, &random), 0.3f, turn, &random);
        for (std::uint32_t r = 0; r < rows; r += 100) raw.key(1, r)[5] = to_f16(3000.0f - r);
        for (std::uint32_t r = 0; r < rows; ++r) raw.key(2, r)[9] = to_f16(-3.25f);
        const std::vector<std::uint32_t> order = shuffled(rows, &random);
        const Sealed sealed(codec, raw, turn, order);
        const SideFit fit = sealed.segment.fit_of(Side::keys, 0);
        const float* level = RowNuq4::header(fit).level;
        EXPECT_TRUE(std::is_sorted(level, level + RowNuq4::kLevels));
        // How far a value from -1 to 1 may be from the nearest.
        double gap = std::max(level[0] + 1.0, 1.0 - level[RowNuq4::kLevels - 1]);
        for (std::uint32_t k = 1; k < RowNuq4::kLevels; ++k)
          gap = std::max(gap, (double{level[k]} - level[k - 1]) / 2);
        for (std::uint32_t h = 0; h < kHeads; ++h) {
          std::vector<std::vector<float>> was(rows), got(rows);
          double longest = 0;
          for (std::uint32_t n = 0; n < rows; ++n) {
            const std::uint32_t r = order[h * rows + n];
            std::vector<float> row(kDim);
            std::transform(raw.key(h, r), raw.key(h, r) + kDim, row.begin(),
                           [](f16 x) { return to_float(x); });
            was[n] = turned_back(turn, 7000 + r, row);
            got[n] = turned_back(turn, 7000 + r, sealed.key(h, n));
          }
          for (std::uint32_t a = 0; a < (by_row ? rows : kDim); ++a) {
            std::vector<float> together;
            for (std::uint32_t b = 0; b < (by_row ? kDim : rows); ++b)
              together.push_back(by_row ? was[a][b] : was[b][a]);
            const auto share = static_cast<std::size_t>(std::ceil(0.03 * together.size()));
            const Shortest range(together, std::min(share, together.size() / 2));
            const double scale = (range.greatest - range.least) / 2.0;
            for (std::uint32_t b = 0; b < together.size(); ++b) {
              const std::uint32_t n = by_row ? a : b, i = by_row ? b : a;
              // What is read is rounded to f16 after the rotation, by a pair's length.
              const std::uint32_t other = (i + kDim / 2) % kDim;
              longest = std::hypot(got[n][i], got[n][other]) + std::hypot(was[n][i], was[n][other]);
              const double rounding = longest * 0x1.0p-10 + scale * 0x1.0p-9 + 0x1.0p-23;
              const double most = range.holds(was[n][i]) ? scale * gap : 0;
              ASSERT_LE(std::abs(got[n][i] - was[n][i]), most + rounding)
                  << "head " << h << ", row " << n << ", channel " << i << ", of " << rows;
            }
          }
        }
      }
}

// Levels are where values are: of normal values less is lost than with levels of equal distance
// between their ends, which lose a twelfth of the square of that distance.
TEST(NuqCodec, LevelsLoseLessThanEqualSteps) {
  std::mt19937 random(13);
  Rows raw(2048, 0, Content(0, &random), 1.0f, nullptr, &random);
  const RowCodec codec = nuq(NuqCodec::By::channel, 0.01);
  const double missing = lost(Sealed(codec, raw, nullptr), raw);
  // Without the outermost hundredth normal values end at 2.58 deviations.
  const double equal = std::pow(2 * 2.58 / 15, 2) / 12;
  EXPECT_LT(missing, equal);
  EXPECT_GT(missing, 0.5 * equal);
  // Sixteen values a channel has, each a level: nothing but rounding is lost.
  for (f16& x : raw.data) x = to_f16(std::round(std::clamp(4 * to_float(x), -7.0f, 8.0f)));
  EXPECT_LT(lost(Sealed(nuq(NuqCodec::By::channel, 0), raw, nullptr), raw), 1e-6);
}

TEST(NuqCodec, HidesNothingThatIsNotFiniteAndSpoilsNoOtherChannel) {
  std::mt19937 random(14);
  const Rotation rotation = rotation_of_test();
  for (const float bad : {std::numeric_limits<float>::infinity(), std::nanf("")})
    for (const auto by : {NuqCodec::By::channel, NuqCodec::By::row}) {
      Rows raw(128, 0, Content(4, &random), 0.1f, &rotation, &random);
      raw.key(1, 40)[3] = to_f16(bad);
      const RowCodec codec = nuq(by);
      const Sealed sealed(codec, raw, &rotation);
      for (std::uint32_t h = 0; h < kHeads; ++h)
        for (std::uint32_t n = 0; n < 128; ++n)
          for (std::uint32_t i = 0; i < kDim; ++i)
            ASSERT_EQ(std::isnan(sealed.key(h, n)[i]),
                      h == 1 && (by == NuqCodec::By::row ? n == 40 : i % (kDim / 2) == 3));
    }
}

// What groups of 32 may lose: a rotation moves no lengths, so a row is that near.
TEST(HadamardCodec, ReadsBackWithinWhatItsGroupsLose) {
  std::mt19937 random(16);
  const Rotation rotation = rotation_of_test();
  for (const auto bits : {HadamardCodec::Bits::two, HadamardCodec::Bits::four})
    for (const Rotation* turn : {static_cast<const Rotation*>(nullptr), &rotation})
      for (const std::uint32_t rows : {1u, 64u, 333u}) {
        const RowCodec codec = hadamards(bits);
        Rows raw(rows, 7000, Content(8, &random), 0.3f, turn, &random);
        for (std::uint32_t r = 0; r < rows; r += 17) raw.key(1, r)[5] = to_f16(3000.0f - r);
        for (std::uint32_t i = 0; i < kDim; ++i) raw.key(2, 0)[i] = to_f16(-3.25f);
        const std::vector<std::uint32_t> order = shuffled(rows, &random);
        const Sealed sealed(codec, raw, turn, order);
        for (std::uint32_t h = 0; h < kHeads; ++h)
          for (std::uint32_t n = 0; n < rows; ++n) {
            const std::uint32_t r = order[h * rows + n];
            std::vector<float> was(kDim);
            std::transform(raw.key(h, r), raw.key(h, r) + kDim, was.begin(),
                           [](f16 x) { return to_float(x); });
            const std::vector<float> got = sealed.key(h, n);
            double missed = 0, length = 0;
            for (std::uint32_t i = 0; i < kDim; ++i) {
              missed += std::pow(double{got[i]} - was[i], 2);
              length += std::pow(double{was[i]}, 2);
            }
            std::vector<float> rotated = turned_back(turn, 7000 + r, was);
            hadamard(rotated.data(), kDim);
            const auto [least, most] = std::minmax_element(rotated.begin(), rotated.end());
            const double step = (*most - *least) / ((1 << static_cast<int>(bits)) - 1.0);
            const double rounding = std::sqrt(length) * 0x1.0p-9 + 0x1.0p-20;
            ASSERT_LE(std::sqrt(missed), std::sqrt(kDim) * step / 2 + rounding)
                << "head " << h << ", row " << n << " of " << rows;
          }
      }
}

// Rows that have something in common: channels in the order of their means lose less than in any
// other, since a group's range is then of what rows differ by.
TEST(HadamardCodec, ChannelsWhoseMeansAreAlikeShareAGroup) {
  constexpr std::uint32_t kWide = 128, kRows = 200;
  std::mt19937 random(17);
  std::normal_distribution<float> normal;
  std::vector<float> mean(kWide);
  for (float& x : mean) x = 4 * normal(random);
  std::vector<f16> data(2 * kRows * kWide);
  for (std::size_t i = 0; i < data.size(); ++i)
    data[i] = to_f16(i / kWide % 2 ? 0.0f : mean[i % kWide] + 0.3f * normal(random));
  RawRows rows{
      raw_layout(kWide, kWide), 1, 0, kRows, reinterpret_cast<const std::byte*>(data.data()),
      data.size() * sizeof(f16)};
  for (const auto bits : {HadamardCodec::Bits::two, HadamardCodec::Bits::four}) {
    const HadamardCodec codec(bits);
    Result<Fit> fit = codec.fit({Side::keys, rows}, workers());
    ASSERT_TRUE(fit);
    const auto lost_in = [&](const std::uint16_t* order) {
      const SideFit side{
          .own = reinterpret_cast<const std::byte*>(order), .heads = 1, .rows = kRows};
      std::vector<std::byte> record(row_bytes(codec.format(), kWide));
      std::vector<f16> back(kWide);
      double missed = 0;
      for (std::uint32_t r = 0; r < kRows; ++r) {
        codec.write(rows.key(0, r), kWide, side, r, record.data());
        codec.read(record.data(), kWide, side, r, back.data());
        for (std::uint32_t i = 0; i < kWide; ++i)
          missed += std::pow(double{to_float(back[i])} - to_float(rows.key(0, r)[i]), 2);
      }
      return missed;
    };
    std::vector<std::uint16_t> as_they_are(kWide);
    std::iota(as_they_are.begin(), as_they_are.end(), std::uint16_t{0});
    const auto* order = reinterpret_cast<const std::uint16_t*>(fit->own.data());
    EXPECT_LT(lost_in(order), 0.5 * lost_in(as_they_are.data()));
    std::vector<float> rotated = mean;
    hadamard(rotated.data(), kWide);
    for (std::uint32_t i = 1; i < kWide; ++i)
      EXPECT_LT(rotated[order[i - 1]], rotated[order[i]] + 0.2f);
  }
}

TEST(HadamardCodec, HidesNothingThatIsNotFiniteAndSpoilsNoOtherRow) {
  std::mt19937 random(18);
  const Rotation rotation = rotation_of_test();
  for (const float bad : {std::numeric_limits<float>::infinity(), std::nanf("")})
    for (const auto bits : {HadamardCodec::Bits::two, HadamardCodec::Bits::four}) {
      Rows raw(128, 0, Content(4, &random), 0.1f, &rotation, &random);
      raw.key(1, 40)[3] = to_f16(bad);
      const RowCodec codec = hadamards(bits);
      const Sealed sealed(codec, raw, &rotation);
      for (std::uint32_t h = 0; h < kHeads; ++h)
        for (std::uint32_t n = 0; n < 128; ++n)
          for (const float x : sealed.key(h, n)) ASSERT_EQ(std::isnan(x), h == 1 && n == 40);
    }
}

TEST(HadamardCodec, AnOrderThatIsNotOfEachChannelOnceIsRefused) {
  std::mt19937 random(19);
  Rows raw(80, 300, Content(20, &random), 0.2f, nullptr, &random);
  const RowCodec codec = hadamards(HadamardCodec::Bits::four);
  const Sealed whole(codec, raw, nullptr);
  const Fitter& fitter = *codec.keys->fitter();
  const auto flaw = [&](std::size_t at, std::uint16_t channel) {
    std::vector<std::byte> own(whole.own().begin(), whole.own().end());
    std::memcpy(own.data() + at * sizeof channel, &channel, sizeof channel);
    return fitter.flaw({kHeads, kDim}, 80, {}, own);
  };
  std::uint16_t first = 0, last = 0;
  std::memcpy(&first, whole.own().data(), sizeof first);
  std::memcpy(&last, whole.own().last(sizeof last).data(), sizeof last);
  EXPECT_EQ(flaw(0, first), nullptr);
  for (const std::uint16_t channel : {std::uint16_t{kDim}, std::uint16_t{65535}, last}) {
    EXPECT_EQ(flaw(0, channel) == nullptr, channel == first) << channel;
    EXPECT_EQ(flaw(kWidth - 1, channel) == nullptr, channel == last) << channel;
  }
  EXPECT_NE(flaw(kWidth - 1, static_cast<std::uint16_t>(last ^ 1)), nullptr);
  EXPECT_NE(fitter.flaw({kHeads, kDim}, 80, {}, whole.own().subspan(2)), nullptr);
  EXPECT_NE(fitter.flaw({kHeads, kDim}, 80, {}, {}), nullptr);
  EXPECT_NE(fitter.flaw({kHeads, kDim}, 80, whole.own(), whole.own()), nullptr);
}

// Channels of a head by what its queries and keys have in them, each the oracle's own sum.
std::vector<std::uint16_t> largest(Rows& raw, std::uint32_t head, const float* query,
                                   std::uint32_t kept) {
  std::vector<std::pair<double, std::uint16_t>> matters(kDim);
  for (std::uint32_t i = 0; i < kDim; ++i) {
    double sum = 0;
    for (std::uint32_t r = 0; r < raw.view.rows; ++r)
      sum += std::pow(double{to_float(raw.key(head, r)[i])}, 2);
    matters[i] = {-sum * (query ? query[i] : 1.0), static_cast<std::uint16_t>(i)};
  }
  std::sort(matters.begin(), matters.end());
  std::vector<std::uint16_t> channels;
  for (std::uint32_t i = 0; i < kept; ++i) channels.push_back(matters[i].second);
  std::sort(channels.begin(), channels.end());
  return channels;
}

struct PrunedFit {
  const PrunedCodec& codec;
  Segment segment;

  PrunedFit(const PrunedCodec& by, const Rows& rows, std::span<const float> queries,
            const Segment* before = nullptr)
      : codec(by) {
    segment.heads = kHeads;
    segment.rows = rows.view.rows;
    Fitting fitting{Side::keys, rows.view};
    fitting.query_squares = queries;
    fitting.before = before ? &before->fit(Side::keys) : nullptr;
    Result<Fit> fit = codec.fit(fitting, workers());
    EXPECT_TRUE(fit);
    SegmentFit& held = segment.fits[static_cast<std::size_t>(Side::keys)];
    held.heads = kHeads;
    if (fit->as_before) held.common = fitting.before->common;
    for (auto& [bytes, part] : {std::pair(&fit->common, &held.common), {&fit->own, &held.own}})
      if (bytes->size() > 0) {
        auto made = std::make_shared<FitBytes>();
        made->bytes = std::move(*bytes);
        *part = std::move(made);
      }
    const auto common = held.common ? held.common->bytes.bytes() : std::span<std::byte>();
    EXPECT_EQ(codec.flaw({kHeads, kDim}, rows.view.rows, common, held.own->bytes.bytes()), nullptr);
    EXPECT_LE(common.size() + held.own->bytes.size(),
              codec.bytes({kHeads, kDim}, rows.view.rows, 0));
  }
  std::vector<std::uint16_t> channels(std::uint32_t head) const {
    const std::uint32_t kept = row_bytes(codec.format(), kDim) / sizeof(f16);
    const auto* all = segment.fit(Side::keys).own->bytes.as<std::uint16_t>().data();
    return {all + head * kept, all + (head + 1) * kept};
  }
};

TEST(PrunedCodec, KeepsTheChannelsThatQueriesAndKeysHaveMostIn) {
  std::mt19937 random(21);
  for (const auto share : {PrunedCodec::Eighths::five, PrunedCodec::Eighths::six}) {
    const PrunedCodec codec(share);
    const std::uint32_t kept = kDim / 8 * static_cast<std::uint32_t>(share);
    Rows raw(200, 70, Content(6, &random), 0.3f, nullptr, &random);
    Rows more(100, 270, Content(6, &random), 0.3f, nullptr, &random);
    std::vector<float> queries(kWidth);
    for (float& x : queries) x = static_cast<float>(random() % 1000) / 100.0f;
    queries[kDim + 7] = 0;  // nobody asks for what is large there
    for (std::uint32_t r = 0; r < 200; ++r) raw.key(1, r)[7] = to_f16(50.0f);
    const PrunedFit asked(codec, raw, queries), alone(codec, raw, {});
    // What is generated goes on as the prompt asked.
    const PrunedFit later(codec, more, {}, &asked.segment);
    const PrunedFit same(codec, more, queries, &asked.segment);
    EXPECT_EQ(later.segment.fit(Side::keys).common, asked.segment.fit(Side::keys).common);
    EXPECT_EQ(same.segment.fit(Side::keys).common, asked.segment.fit(Side::keys).common);
    EXPECT_EQ(alone.segment.fit(Side::keys).common, nullptr);
    for (std::uint32_t h = 0; h < kHeads; ++h) {
      EXPECT_EQ(asked.channels(h), largest(raw, h, &queries[h * kDim], kept));
      EXPECT_EQ(alone.channels(h), largest(raw, h, nullptr, kept));
      EXPECT_EQ(later.channels(h), largest(more, h, &queries[h * kDim], kept));
    }
    const std::vector<std::uint16_t> asked_for = asked.channels(1), large = alone.channels(1);
    EXPECT_EQ(std::count(asked_for.begin(), asked_for.end(), 7), 0);
    EXPECT_EQ(std::count(large.begin(), large.end(), 7), 1);
  }
}

TEST(PrunedCodec, KeptChannelsAreToTheBitAndOthersZeroAlsoWhenTheyAreCutAndCodedAgain) {
  std::mt19937 random(22);
  for (const auto share : {PrunedCodec::Eighths::five, PrunedCodec::Eighths::six}) {
    const RowCodec codec = pruned(share);
    Rows raw(130, 70, Content(6, &random), 0.3f, nullptr, &random);
    const std::vector<std::uint32_t> order = shuffled(130, &random);
    const Sealed sealed(codec, raw, nullptr, order);
    Rows again = raw;
    again.view.data = reinterpret_cast<const std::byte*>(again.data.data());
    const std::uint32_t kept = kDim / 8 * static_cast<std::uint32_t>(share);
    for (std::uint32_t h = 0; h < kHeads; ++h)
      for (std::uint32_t n = 0; n < 130; ++n) {
        const f16* was = raw.key(h, order[h * 130 + n]);
        const std::vector<float> got = sealed.key(h, n);
        std::uint32_t same = 0, zero = 0;
        for (std::uint32_t i = 0; i < kDim; ++i) {
          same += got[i] == to_float(was[i]) ? 1 : 0;
          zero += got[i] == 0.0f ? 1 : 0;
          again.key(h, order[h * 130 + n])[i] = to_f16(got[i]);
        }
        ASSERT_EQ(same, kept);
        ASSERT_EQ(zero, kDim - kept);
      }
    const Sealed cut(codec, again, nullptr, order, {}, &sealed.segment);
    EXPECT_EQ(cut.records, sealed.records);
  }
}

TEST(PrunedCodec, HidesNothingThatIsNotFiniteAndSpoilsNoOtherRow) {
  std::mt19937 random(23);
  const RowCodec codec = pruned(PrunedCodec::Eighths::five);
  for (std::uint32_t channel = 0; channel < kDim; ++channel) {
    Rows raw(64, 0, Content(4, &random), 0.1f, nullptr, &random);
    raw.key(1, 40)[channel] = to_f16(std::numeric_limits<float>::infinity());
    const Sealed sealed(codec, raw, nullptr);
    for (std::uint32_t h = 0; h < kHeads; ++h)
      for (std::uint32_t n = 0; n < 64; ++n) {
        const std::vector<float> got = sealed.key(h, n);
        EXPECT_EQ(std::any_of(got.begin(), got.end(), [](float x) { return std::isnan(x); }),
                  h == 1 && n == 40);
      }
  }
}

TEST(PrunedCodec, ChannelsThatAreNotThereOrNotInOrderAreRefused) {
  std::mt19937 random(24);
  Rows raw(80, 300, Content(20, &random), 0.2f, nullptr, &random);
  const PrunedCodec codec(PrunedCodec::Eighths::five);
  const PrunedFit whole(codec, raw, std::vector<float>(kWidth, 1.0f));
  const SegmentFit& fit = whole.segment.fit(Side::keys);
  const auto bytes = [](std::span<const std::byte> of) {
    return std::vector<std::byte>(of.begin(), of.end());
  };
  const std::vector<std::byte> common = bytes(fit.common->bytes.bytes());
  const std::vector<std::byte> own = bytes(fit.own->bytes.bytes());
  const auto flaw = [&](std::span<const std::byte> c, std::span<const std::byte> o) {
    return codec.flaw({kHeads, kDim}, 80, c, o);
  };
  EXPECT_EQ(flaw(common, own), nullptr);
  EXPECT_EQ(flaw({}, own), nullptr);
  EXPECT_NE(flaw(common, {}), nullptr);
  EXPECT_NE(flaw(std::span(common).subspan(4), own), nullptr);
  EXPECT_NE(flaw(common, std::span(own).subspan(2)), nullptr);
  const std::size_t kept = own.size() / kHeads / sizeof(std::uint16_t);
  for (std::size_t at = 0; at < kHeads * kept; ++at)
    for (const std::uint16_t channel : {std::uint16_t{kDim}, std::uint16_t{65535}}) {
      std::vector<std::byte> changed = own;
      std::memcpy(changed.data() + at * sizeof channel, &channel, sizeof channel);
      EXPECT_NE(flaw(common, changed), nullptr);
      if (at % kept == 0) continue;
      std::memcpy(changed.data() + at * sizeof channel, own.data() + (at - 1) * sizeof channel,
                  sizeof channel);
      EXPECT_NE(flaw(common, changed), nullptr);
    }
  for (const float bad : {-1.0f, std::nanf(""), std::numeric_limits<float>::infinity()}) {
    std::vector<std::byte> changed = common;
    std::memcpy(changed.data() + 5 * sizeof bad, &bad, sizeof bad);
    EXPECT_NE(flaw(changed, own), nullptr);
  }
}

constexpr AllottedCodec::Bits kAllottedBits[] = {
    AllottedCodec::Bits::two, AllottedCodec::Bits::three, AllottedCodec::Bits::four};

// The levels of a width, as the format's file defines them, in spreads.
std::vector<double> levels_of(std::uint32_t width) {
  std::vector<double> levels;
  for (std::uint32_t code = 0; code < 1u << width; ++code) {
    const double u = (2.0 * code + 1) / (1u << width) - 1;
    levels.push_back(u *
                     (double{Allotted::kLinear[width]} + double{Allotted::kCubic[width]} * u * u));
  }
  return levels;
}

TEST(AllottedCodec, LevelsAreWhereANormalDistributionHasTheLeastSquares) {
  // What the best levels there are leave of a variance (Max 1960), and up to 2 % or 8 % more.
  const double left[] = {1, 0.3634, 0.1175, 0.03454, 0.009497, 0.002499};
  for (std::uint32_t width = 0; width < std::size(left); ++width) {
    const std::vector<double> levels = levels_of(width);
    double missed = 0, all = 0;
    for (double x = -8; x <= 8; x += 1.0 / 1024) {
      double least = std::numeric_limits<double>::infinity();
      for (const double level : levels) least = std::min(least, std::pow(x - level, 2));
      missed += least * std::exp(-x * x / 2);
      all += std::exp(-x * x / 2);
    }
    EXPECT_GT(missed / all, left[width] * 0.99) << width;
    EXPECT_LT(missed / all, left[width] * (width < 5 ? 1.03 : 1.08)) << width;
  }
}

TEST(AllottedCodec, ReadsBackWithinTheBoundWhateverLiesFarOut) {
  std::mt19937 random(25);
  const Rotation rotation = rotation_of_test();
  for (const auto bits : kAllottedBits)
    for (const Rotation* turn : {static_cast<const Rotation*>(nullptr), &rotation})
      for (const std::uint32_t rows : {1u, 64u, 333u}) {
        const RowCodec codec = allotted(bits);
        Rows raw(rows, 7000, Content(8, &random), 0.3f, turn, &random);
        for (std::uint32_t r = 0; r < rows; r += 17) raw.key(1, r)[5] = to_f16(3000.0f - r);
        for (std::uint32_t i = 0; i < kDim; ++i) raw.key(2, 0)[i] = to_f16(-3.25f);
        for (std::uint32_t r = 0; r < rows; ++r) raw.key(2, r)[kDim - 1] = to_f16(0.0f);
        const std::vector<std::uint32_t> order = shuffled(rows, &random);
        const Sealed sealed(codec, raw, turn, order);
        SideFit fit = sealed.segment.fit_of(Side::keys, 0);
        for (std::uint32_t h = 0; h < kHeads; ++h) {
          fit.head = h;
          const Allotted of(fit, kDim);
          for (std::uint32_t n = 0; n < rows; ++n) {
            const std::uint32_t r = order[h * rows + n];
            std::vector<float> was(kDim);
            std::transform(raw.key(h, r), raw.key(h, r) + kDim, was.begin(),
                           [](f16 x) { return to_float(x); });
            was = turned_back(turn, 7000 + r, was);
            const std::vector<float> got = turned_back(turn, 7000 + r, sealed.key(h, n));
            double length = 0, scale = 0, coded = 0, bound = 0;
            for (std::uint32_t i = 0; i < kDim; ++i) {
              const float x = was[of.channel[i]];
              length += std::pow(double{x}, 2);
              const double mean = double{to_float(of.mean[i])};
              const double spread = double{to_float(of.spread[i])};
              if (of.width(i) > 0 && spread > 0)
                scale = std::max(
                    scale, std::abs(double{x} - mean) / spread / levels_of(of.width(i)).back());
            }
            const double rounding = std::sqrt(length) * 0x1.0p-9 + 0x1.0p-20;
            for (std::uint32_t i = 0; i < kDim; ++i) {
              const double missed = double{got[of.channel[i]]} - was[of.channel[i]];
              if (of.width(i) == 0) {
                ASSERT_NEAR(got[of.channel[i]], to_float(of.mean[i]), rounding);
                continue;
              }
              const std::vector<double> levels = levels_of(of.width(i));
              double gap = 0;
              for (std::size_t k = 1; k < levels.size(); ++k)
                gap = std::max(gap, levels[k] - levels[k - 1]);
              coded += std::pow(missed, 2);
              bound += std::pow(gap / 2 * double{to_float(of.spread[i])} * scale, 2);
            }
            ASSERT_LE(std::sqrt(coded), std::sqrt(bound) + rounding)
                << "head " << h << ", row " << n << " of " << rows;
          }
        }
      }
}

// Keys of which a few channels are what queries ask for, others large in every row alike, others
// large and never asked for.
TEST(AllottedCodec, BitsGoToWhatScoresAreMadeOf) {
  std::mt19937 random(26);
  std::normal_distribution<float> normal;
  const Rotation rotation = rotation_of_test();
  Rows raw(300, 70, Content(0, &random), 0.0f, nullptr, &random);
  std::vector<float> queries(kWidth, 1e-4f);
  for (std::uint32_t h = 0; h < kHeads; ++h) {
    for (std::uint32_t r = 0; r < 300; ++r) {
      float row[kDim];
      for (std::uint32_t i = 0; i < kDim; ++i)
        row[i] = (i % 16 < 4   ? 1.0f
                  : i % 16 < 8 ? 3.0f
                               : 0.3f) *
                     normal(random) +
                 (i % 16 >= 8 ? 20.0f : 0.0f);
      rotate_to(rotation, 70 + r, row);
      for (std::uint32_t i = 0; i < kDim; ++i) raw.key(h, r)[i] = to_f16(row[i]);
    }
    // Of both halves of a pair at once: the embedding turns what is asked from one to the other.
    for (std::uint32_t i = 0; i < 4; ++i) queries[h * kDim + i] = 30;
  }
  for (const auto bits : kAllottedBits) {
    const RowCodec codec = allotted(bits);
    const Sealed asked(codec, raw, &rotation, {}, {}, nullptr, workers(), queries);
    const Sealed alone(codec, raw, &rotation);
    Rows more(128, 370, Content(4, &random), 0.3f, &rotation, &random);
    const Sealed later(codec, more, &rotation, {}, {}, &asked.segment);
    EXPECT_EQ(later.segment.fit(Side::keys).common, asked.segment.fit(Side::keys).common);
    EXPECT_EQ(alone.segment.fit(Side::keys).common, nullptr);
    for (std::uint32_t h = 0; h < kHeads; ++h) {
      const Allotted by_queries(asked.segment.fit_of(Side::keys, h), kDim);
      const Allotted by_keys(alone.segment.fit_of(Side::keys, h), kDim);
      std::uint32_t of_codes = 0;
      for (std::uint32_t i = 0; i < kDim; ++i) {
        const std::uint32_t first = by_queries.channel[i] % 16, large = by_keys.channel[i] % 16;
        EXPECT_EQ(i < 8, first < 4) << i;
        EXPECT_EQ(i < 8, large >= 4 && large < 8) << i;
        EXPECT_LE(by_queries.width(i), by_queries.width(i > 0 ? i - 1 : 0));
        of_codes += by_queries.width(i);
        // The means are what the rows had before their embedding, and no part of the spreads.
        EXPECT_NEAR(to_float(by_queries.mean[i]), first >= 8 ? 20.0f : 0.0f, 0.8f);
        EXPECT_NEAR(to_float(by_queries.spread[i]),
                    first < 4   ? 1.0f
                    : first < 8 ? 3.0f
                                : 0.3f,
                    0.5f);
      }
      EXPECT_GT(by_queries.width(0), by_queries.width(kDim - 1));
      EXPECT_EQ(of_codes, 8 * (row_bytes(codec.keys->format(), kDim) - 2));
    }
  }
}

TEST(AllottedCodec, HidesNothingThatIsNotFiniteAndSpoilsNoOtherRow) {
  std::mt19937 random(27);
  const Rotation rotation = rotation_of_test();
  for (const float bad : {std::numeric_limits<float>::infinity(), std::nanf("")})
    for (const auto bits : kAllottedBits) {
      Rows raw(128, 0, Content(4, &random), 0.1f, &rotation, &random);
      raw.key(1, 40)[3] = to_f16(bad);
      const RowCodec codec = allotted(bits);
      const Sealed sealed(codec, raw, &rotation);
      for (std::uint32_t h = 0; h < kHeads; ++h)
        for (std::uint32_t n = 0; n < 128; ++n)
          for (const float x : sealed.key(h, n)) ASSERT_EQ(std::isnan(x), h == 1 && n == 40);
    }
}

TEST(AllottedCodec, WhatDoesNotDifferIsItsMean) {
  std::mt19937 random(28);
  Rows raw(100, 0, Content(0, &random), 0.0f, nullptr, &random);
  for (std::uint32_t h = 0; h < kHeads; ++h)
    for (std::uint32_t r = 0; r < 100; ++r)
      for (std::uint32_t i = 0; i < kDim; ++i) raw.key(h, r)[i] = to_f16(h * 100.0f + i);
  const RowCodec codec = allotted(AllottedCodec::Bits::two);
  const Sealed sealed(codec, raw, nullptr);
  for (std::uint32_t h = 0; h < kHeads; ++h)
    for (std::uint32_t i = 0; i < kDim; ++i) EXPECT_EQ(sealed.key(h, 50)[i], h * 100.0f + i);
}

TEST(AllottedCodec, WhatWouldBeReadOutsideOfARowIsRefused) {
  std::mt19937 random(29);
  Rows raw(80, 300, Content(20, &random), 0.2f, nullptr, &random);
  const RowCodec codec = allotted(AllottedCodec::Bits::three);
  const std::vector<float> queries(kWidth, 1.0f);
  const Sealed whole(codec, raw, nullptr, {}, {}, nullptr, workers(), queries);
  const Fitter& fitter = *codec.keys->fitter();
  const auto common = whole.segment.fit(Side::keys).common->bytes.bytes();
  const std::uint64_t head = Allotted::head_bytes(kDim);
  const auto flaw = [&](std::size_t at, std::uint16_t word) {
    std::vector<std::byte> own(whole.own().begin(), whole.own().end());
    std::memcpy(own.data() + at, &word, sizeof word);
    return fitter.flaw({kHeads, kDim}, 80, common, own);
  };
  EXPECT_EQ(fitter.flaw({kHeads, kDim}, 80, common, whole.own()), nullptr);
  EXPECT_EQ(fitter.flaw({kHeads, kDim}, 80, {}, whole.own()), nullptr);
  EXPECT_NE(fitter.flaw({kHeads, kDim}, 80, common.subspan(4), whole.own()), nullptr);
  EXPECT_NE(fitter.flaw({kHeads, kDim}, 80, common, whole.own().subspan(2)), nullptr);
  EXPECT_NE(fitter.flaw({kHeads, kDim}, 80, common, {}), nullptr);
  for (std::uint32_t h = 0; h < kHeads; ++h) {
    const std::uint64_t longer = h * head, channels = longer + 2 * Allotted::kMostBits;
    EXPECT_NE(flaw(longer, kDim + 8), nullptr);      // more channels than there are
    EXPECT_NE(flaw(longer, 12), nullptr);            // no eights
    EXPECT_NE(flaw(longer + 2 * 7, kDim), nullptr);  // an eighth bit of more than have a seventh
    EXPECT_NE(flaw(channels, kDim), nullptr);
    std::uint16_t second = 0;
    std::memcpy(&second, whole.own().data() + channels + 2, sizeof second);
    EXPECT_NE(flaw(channels, second), nullptr);
  }
  // All of four bits: more than rows of three have.
  std::vector<std::byte> own(whole.own().begin(), whole.own().end());
  for (std::uint32_t k = 0; k < 4; ++k) {
    const std::uint16_t all = kDim;
    std::memcpy(own.data() + 2 * k, &all, sizeof all);
  }
  EXPECT_STREQ(fitter.flaw({kHeads, kDim}, 80, common, own), "allots more bits than a row has");
  for (const float bad : {-1.0f, std::nanf(""), std::numeric_limits<float>::infinity()}) {
    std::vector<std::byte> changed(common.begin(), common.end());
    std::memcpy(changed.data() + 5 * sizeof bad, &bad, sizeof bad);
    EXPECT_NE(fitter.flaw({kHeads, kDim}, 80, changed, whole.own()), nullptr);
  }
}

// A retainer drops rows: those at every other position are as those of a text that turns twice as
// fast.
TEST(FittedCodecs, KnowThePositionsOfRowsThatDoNotFollowEachOther) {
  std::mt19937 random(20);
  const Rotation rotation = rotation_of_test();
  Rotation twice = rotation;
  for (std::uint64_t& step : twice.step) step *= 2;
  Rows raw(300, 0, Content(8, &random), 0.3f, &twice, &random);
  const std::vector<std::uint32_t> order = shuffled(300, &random);
  std::vector<std::uint16_t> apart(order.begin(), order.end());
  for (std::uint16_t& offset : apart) offset *= 2;
  for (int which = 0; which < 3; ++which) {
    const RowCodec codec = which == 0   ? nuq(NuqCodec::By::channel)
                           : which == 1 ? hadamards(HadamardCodec::Bits::two)
                                        : allotted(AllottedCodec::Bits::three);
    const Sealed wanted(codec, raw, &twice, order);
    const Result<Fit> fit = codec.keys->fitter()->fit(
        {Side::keys, raw.view, order, {}, &rotation, nullptr, apart}, workers());
    ASSERT_TRUE(fit);
    EXPECT_TRUE(std::ranges::equal(fit->own.bytes(), wanted.own()));
  }
}

TEST(FittedCodecs, HaveTheSameBytesOnAnyNumberOfThreads) {
  std::mt19937 random(10);
  const Rotation rotation = rotation_of_test();
  Rows raw(1000, 300, Content(20, &random), 0.2f, &rotation, &random);
  const Workers one(1);
  for (int which = 0; which < 7; ++which) {
    const RowCodec codec = which == 0   ? lowrank(0.156)
                           : which == 1 ? channels(ChannelsCodec::Bits::two)
                           : which == 2 ? nuq(NuqCodec::By::channel)
                           : which == 4 ? pruned(PrunedCodec::Eighths::six)
                           : which == 3 ? hadamards(HadamardCodec::Bits::four)
                           : which == 5 ? allotted(AllottedCodec::Bits::two)
                                        : nuq(NuqCodec::By::row);
    const Sealed alone(codec, raw, &rotation, {}, {}, nullptr, one);
    const Sealed together(codec, raw, &rotation);
    EXPECT_TRUE(std::ranges::equal(alone.own(), together.own()));
    EXPECT_EQ(alone.records, together.records);
  }
}

TEST(FittedCodecs, PlanNoLessForManyRowsThanTheirBlocksTake) {
  const ChannelsCodec by_channel(ChannelsCodec::Bits::two);
  const LowRankCodec by_basis({0.156, 1.0});
  const NuqCodec levels(NuqCodec::By::channel, {0.004}), of_rows(NuqCodec::By::row, {0.07});
  const HadamardCodec ordered(HadamardCodec::Bits::two);
  const PrunedCodec fewer(PrunedCodec::Eighths::five);
  const AllottedCodec given(AllottedCodec::Bits::four);
  for (const Fitter* fitter :
       {static_cast<const Fitter*>(&ordered), static_cast<const Fitter*>(&fewer),
        static_cast<const Fitter*>(&by_channel), static_cast<const Fitter*>(&by_basis),
        static_cast<const Fitter*>(&levels), static_cast<const Fitter*>(&of_rows),
        static_cast<const Fitter*>(&given)})
    for (std::uint64_t rows = 1; rows <= 8192; rows += rows / 3 + 1)
      EXPECT_LE(fitter->bytes({2, 64}, rows, rows / 100),
                (rows + 63) / 64 * fitter->bytes({2, 64}, 64, 1));
}

// What a file may say of a fit is refused, or read without leaving it.
TEST(FittedCodecs, AnyBytesAreRefusedOrSafe) {
  std::mt19937 random(11);
  const Rotation rotation = rotation_of_test();
  Rows raw(64, 300, Content(20, &random), 0.2f, &rotation, &random);
  const RowCodec codec = lowrank(0.3);
  const Sealed whole(codec, raw, &rotation, shuffled(64, &random), {{1, 2}, {}, {60}});
  const auto bytes = [](std::span<const std::byte> of) {
    return std::vector<std::byte>(of.begin(), of.end());
  };
  const std::vector<std::byte> common = bytes(whole.segment.fit(Side::keys).common->bytes.bytes());
  const std::vector<std::byte> own = bytes(whole.own());
  const Fitter& fitter = *codec.keys->fitter();
  int refused = 0, safe = 0;
  for (int round = 0; round < 3000; ++round) {
    std::vector<std::byte> parts[2] = {common, own};
    std::vector<std::byte>& part = parts[round % 2];
    // Where counts and lists are, mostly.
    const std::size_t lists = 64 * 32 * 2 + 8;
    for (std::uint32_t n = 1 + random() % 3; n > 0; --n) {
      const std::size_t at =
          random() % 3 == 0 ? random() % part.size()
          : round % 2
              ? random() % 2 ? random() % 8 : std::min(lists + random() % 400, part.size() - 1)
              : random() % 8;
      part[at] = static_cast<std::byte>(random() % 4 ? random() % 8 : random());
    }
    if (random() % 8 == 0) part.resize(random() % part.size());
    // Of its own length each, so that a sanitizer sees what lies beyond.
    const std::vector<std::byte> exact[2] = {bytes(parts[0]), bytes(parts[1])};
    if (fitter.flaw({kHeads, kDim}, 64, exact[0], exact[1])) {
      ++refused;
      continue;
    }
    ++safe;
    SideFit fit = whole.segment.fit_of(Side::keys, 0);
    fit.common = exact[0].data();
    fit.own = exact[1].data();
    float out[kDim];
    for (fit.head = 0; fit.head < kHeads; ++fit.head)
      for (std::uint32_t n = 0; n < 64; ++n)
        read_row(RowFormat::lowrank, nullptr, kDim, out, fit, n);
  }
  EXPECT_GT(refused, 300);
  EXPECT_GT(safe, 300);
  const ChannelsCodec by_channel(ChannelsCodec::Bits::two);
  EXPECT_NE(by_channel.flaw({kHeads, kDim}, 64, common, own), nullptr);
  EXPECT_NE(by_channel.flaw({kHeads, kDim}, 64, {}, own), nullptr);
}

TEST(FittedCodecs, AnyBytesOfLevelsAreRefusedOrSafe) {
  std::mt19937 random(15);
  const Rotation rotation = rotation_of_test();
  Rows raw(80, 300, Content(20, &random), 0.2f, &rotation, &random);
  int refused = 0, safe = 0;
  for (const auto by : {NuqCodec::By::channel, NuqCodec::By::row}) {
    const RowCodec codec = nuq(by, 0.05);
    const Sealed whole(codec, raw, &rotation, shuffled(80, &random));
    const std::vector<std::byte> own(whole.own().begin(), whole.own().end());
    const auto axis = static_cast<std::uint32_t>(by);
    const std::size_t lists =
        sizeof(RowNuq4::Header) + RowNuq4::ranges(axis, kHeads, 80, kDim) * sizeof(f16);
    const Fitter& fitter = *codec.keys->fitter();
    for (int round = 0; round < 3000; ++round) {
      std::vector<std::byte> changed = own;
      for (std::uint32_t n = 1 + random() % 3; n > 0; --n) {
        const std::size_t first = random() % 3 == 0 ? 0 : lists;
        const std::size_t at =
            random() % 2 ? random() % own.size() : std::min(first + random() % 48, own.size() - 1);
        changed[at] = static_cast<std::byte>(random() % 4 ? random() % 8 : random());
      }
      if (random() % 8 == 0) changed.resize(random() % changed.size());
      // Of its own length, so that a sanitizer sees what lies beyond.
      const std::vector<std::byte> exact(changed.begin(), changed.end());
      if (fitter.flaw({kHeads, kDim}, 80, {}, exact)) {
        ++refused;
        continue;
      }
      ++safe;
      SideFit fit = whole.segment.fit_of(Side::keys, 0);
      fit.own = exact.data();
      // What lies behind a row, where an outlier of no channel would be put.
      std::vector<float> out(RowNuq4::kRowPlaces, 77.0f);
      const std::vector<std::byte> row(RowNuq4::bytes(kDim), std::byte{0x5a});
      for (fit.head = 0; fit.head < kHeads; ++fit.head)
        for (std::uint32_t n = 0; n < 80; ++n)
          read_row(RowFormat::nuq4, row.data(), kDim, out.data(), fit, n);
      ASSERT_TRUE(std::all_of(out.begin() + kDim, out.end(), [](float x) { return x == 77.0f; }));
    }
    std::vector<std::byte> far = own;  // a group's outliers begin beyond the end
    const std::uint32_t beyond = 1u << 30;
    std::memcpy(far.data() + lists + sizeof beyond, &beyond, sizeof beyond);
    EXPECT_NE(fitter.flaw({kHeads, kDim}, 80, {}, far), nullptr);
    EXPECT_NE(fitter.flaw({kHeads, kDim}, 80, own, own), nullptr);
    EXPECT_NE(fitter.flaw({kHeads, kDim}, 97, {}, own), nullptr);
    EXPECT_NE(fitter.flaw({kHeads, kDim}, 80, {}, {}), nullptr);
    const NuqCodec few(by, {0.001});  // another method's file
    EXPECT_NE(few.flaw({kHeads, kDim}, 80, {}, own), nullptr);
    const NuqCodec other(by == NuqCodec::By::row ? NuqCodec::By::channel : NuqCodec::By::row,
                         {0.05});
    EXPECT_NE(other.flaw({kHeads, kDim}, 80, {}, own), nullptr);
  }
  EXPECT_GT(refused, 600);
  EXPECT_GT(safe, 600);
}

}  // namespace
}  // namespace thermocline
