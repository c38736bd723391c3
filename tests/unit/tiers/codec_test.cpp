#include "tiers/codec/codec.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <random>
#include <vector>

#include "kernels/hadamard.h"
#include "tiers/codec/bf16.h"
#include "tiers/codec/groups.h"
#include "tiers/codec/int8.h"
#include "tiers/codec/raw.h"
#include "tiers/codec/rotated.h"

namespace thermocline {
namespace {

std::vector<f16> halves(const std::vector<float>& of) {
  std::vector<f16> out;
  for (const float x : of) out.push_back(to_f16(x));
  return out;
}

std::vector<std::byte> from_hex(const std::string& text) {
  std::vector<std::byte> bytes;
  for (std::size_t i = 0; i < text.size(); i += 2)
    bytes.push_back(static_cast<std::byte>(std::stoi(text.substr(i, 2), nullptr, 16)));
  return bytes;
}

// Of a row: what is read back.
std::vector<float> round_trip(const PlainCodec& codec, const std::vector<f16>& row) {
  const auto dim = static_cast<std::uint32_t>(row.size());
  std::vector<std::byte> coded(row_bytes(codec.format(), dim), std::byte{0xaa});
  codec.encode(row.data(), dim, coded.data());
  std::vector<float> out(dim);
  read_row(codec.format(), coded.data(), dim, out.data());
  std::vector<f16> half(dim);
  codec.read(coded.data(), dim, {}, 0, half.data());
  for (std::uint32_t i = 0; i < dim; ++i) {
    const float most = std::isfinite(out[i]) ? std::clamp(out[i], -65504.0f, 65504.0f) : out[i];
    EXPECT_EQ(half[i].bits, to_f16(most).bits);
  }
  return out;
}

TEST(Int8Codec, ReadsBackWithinHalfAStepOfTheLargestOver127) {
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  const Int8Codec codec;
  for (int round = 0; round < 2000; ++round) {
    // From subnormal rows to the largest, with an outlier here and there.
    const float size = std::ldexp(1.0f, static_cast<int>(random() % 40) - 26);
    std::vector<float> wanted(16 * (1 + random() % 8));
    for (float& x : wanted) x = std::clamp(size * normal(random), -65504.0f, 65504.0f);
    if (round % 3 == 0) wanted[random() % wanted.size()] *= 0.0f;
    if (round % 5 == 0) wanted[0] = round % 2 ? 65504.0f : -65504.0f;
    const std::vector<f16> row = halves(wanted);
    double largest = 0;
    for (const f16 x : row) largest = std::max(largest, std::abs(double{to_float(x)}));
    // One f16 step above the exact quotient at most.
    const double scale = largest / 127 + std::max(largest / 127 * 0x1.0p-10, 0x1.0p-24);
    const std::vector<float> back = round_trip(codec, row);
    for (std::size_t i = 0; i < row.size(); ++i)
      ASSERT_LE(std::abs(double{back[i]} - to_float(row[i])), scale / 2)
          << "round " << round << ", largest " << largest;
  }
}

TEST(Int8Codec, KeepsWhatABytePlusAScaleCanHold) {
  const Int8Codec codec;
  std::vector<float> row(32);
  for (int i = 0; i < 32; ++i)
    row[static_cast<std::size_t>(i)] = 0.125f * static_cast<float>(8 * i - 121);
  EXPECT_EQ(row[31], 0.125f * 127);
  EXPECT_EQ(round_trip(codec, halves(row)), row);
  EXPECT_EQ(round_trip(codec, halves(std::vector<float>(16, 0.0f))), std::vector<float>(16, 0.0f));
}

TEST(Int8Codec, HidesNothingThatIsNotFinite) {
  const Int8Codec codec;
  for (const float bad : {std::numeric_limits<float>::infinity(),
                          -std::numeric_limits<float>::infinity(), std::nanf("")}) {
    std::vector<float> row(16, 1.0f);
    row[7] = bad;
    for (const float x : round_trip(codec, halves(row))) EXPECT_TRUE(std::isnan(x));
  }
}

TEST(Int8Codec, CodingWhatWasDecodedMovesItLittle) {
  std::mt19937 random(4);
  std::normal_distribution<float> normal;
  const Int8Codec codec;
  for (int round = 0; round < 500; ++round) {
    std::vector<float> row(64);
    for (float& x : row) x = normal(random);
    const std::vector<float> once = round_trip(codec, halves(row));
    const std::vector<float> twice = round_trip(codec, halves(once));
    for (std::size_t i = 0; i < row.size(); ++i)
      ASSERT_LE(std::abs(twice[i] - once[i]), std::abs(once[i]) * 0x1.0p-10f);
  }
}

// What a group may lose at a channel: see the table in tiers/codec/groups.h.
struct GroupBound {
  RowFormat format;
  double levels;       // steps to the largest magnitude, or over the range
  bool of_range;       // a step is of the range, not of the largest magnitude
  double steps = 0.5;  // a channel is off by at most
  bool one_sided = false;

  double operator()(std::span<const f16> group, f16 channel) const {
    double least = to_float(group[0]), most = least;
    for (const f16 x : group) {
      least = std::min<double>(least, to_float(x));
      most = std::max<double>(most, to_float(x));
    }
    const double reach = of_range ? most - least : std::max(std::abs(least), std::abs(most));
    const double step = reach / levels, x = to_float(channel);
    // Of two that are as large, the first has its sign.
    const bool far_end = one_sided && ((x > 0 && -least >= most) || (x < 0 && most >= -least));
    // Floats are computed with, beside the f16s that are kept.
    return (far_end ? 1.0 : steps) * step + std::max(reach * 0x1.0p-11, (levels + 1) * 0x1.0p-25) +
           reach * 1e-6;
  }
};
constexpr GroupBound kGroupBounds[] = {{RowFormat::q8_0, 127, false},
                                       {RowFormat::q4_0, 8, false, 0.5, true},
                                       {RowFormat::q5_0, 16, false, 0.5, true},
                                       {RowFormat::q4_1, 15, true},
                                       {RowFormat::q5_1, 31, true},
                                       {RowFormat::iq4_nl, 127, false, 30},
                                       {RowFormat::kivi2, 3, true}};

class GroupsOfEveryFormat : public testing::TestWithParam<GroupBound> {};

TEST_P(GroupsOfEveryFormat, ReadBackWithinTheBound) {
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  const GroupCodec codec(GetParam().format);
  double worst = 0;
  for (int round = 0; round < 4000; ++round) {
    // From subnormal rows to the largest, some with an outlier, some off zero, some flat.
    const float size = std::ldexp(1.0f, static_cast<int>(random() % 40) - 26);
    const float middle = round % 4 == 0 ? 5 * size : 0.0f;
    std::vector<float> wanted(16 * (1 + random() % 8));
    for (float& x : wanted) x = middle + size * (round % 7 == 0 ? 0.0f : normal(random));
    if (round % 3 == 0) wanted[random() % wanted.size()] *= 100.0f;
    if (round % 5 == 0) wanted[random() % wanted.size()] = round % 2 ? 65504.0f : -65504.0f;
    for (float& x : wanted) x = std::clamp(x, -65504.0f, 65504.0f);
    const std::vector<f16> row = halves(wanted);
    const std::vector<float> back = round_trip(codec, row);
    for (std::size_t i = 0; i < row.size(); ++i) {
      const std::size_t first = i / 32 * 32;
      const auto group =
          std::span(row).subspan(first, std::min<std::size_t>(32, row.size() - first));
      const double bound = GetParam()(group, row[i]);
      const double off = std::abs(double{back[i]} - double{to_float(row[i])});
      ASSERT_LE(off, bound) << "round " << round << ", channel " << i;
      worst = std::max(worst, off / bound);
    }
  }
  EXPECT_GT(worst, 0.6);  // a bound that is never come near says little
}

TEST_P(GroupsOfEveryFormat, AreNotANumberWhereAChannelIsNotAndNowhereElse) {
  const GroupCodec codec(GetParam().format);
  for (const float bad : {std::numeric_limits<float>::infinity(),
                          -std::numeric_limits<float>::infinity(), std::nanf("")}) {
    std::vector<float> row(80, 1.0f);
    row[40] = bad;
    const std::vector<float> back = round_trip(codec, halves(row));
    for (std::size_t i = 0; i < row.size(); ++i) EXPECT_EQ(std::isnan(back[i]), i / 32 == 1) << i;
  }
}

TEST_P(GroupsOfEveryFormat, KeepZerosAndWriteEveryByte) {
  const GroupCodec codec(GetParam().format);
  EXPECT_EQ(round_trip(codec, halves(std::vector<float>(48, 0.0f))), std::vector<float>(48, 0.0f));
  std::mt19937 random(8);
  std::normal_distribution<float> normal;
  std::vector<float> row(80);
  for (float& x : row) x = normal(random);
  std::vector<std::byte> one(row_bytes(codec.format(), 80), std::byte{0x00});
  std::vector<std::byte> other(one.size(), std::byte{0xff});
  codec.encode(halves(row).data(), 80, one.data());
  codec.encode(halves(row).data(), 80, other.data());
  EXPECT_EQ(one, other);
}

// As when a timeline is cut inside a segment.
TEST_P(GroupsOfEveryFormat, TheLargestRowsAreReadBackFinite) {
  const GroupCodec codec(GetParam().format);
  for (const float most : {65504.0f, 65472.0f, 40000.0f}) {
    std::vector<float> row(32, most);
    for (std::size_t i = 0; i < 16; ++i) row[2 * i] = -most;
    std::vector<std::byte> coded(row_bytes(codec.format(), 32));
    codec.encode(halves(row).data(), 32, coded.data());
    std::vector<f16> back(32);
    codec.read(coded.data(), 32, {}, 0, back.data());
    for (const f16 x : back) EXPECT_TRUE(std::isfinite(to_float(x)));
  }
}

INSTANTIATE_TEST_SUITE_P(Formats, GroupsOfEveryFormat, testing::ValuesIn(kGroupBounds),
                         [](const auto& bound) {
                           return std::string(GroupCodec(bound.param.format).name());
                         });

// tests/golden/make_quantize.py
TEST(GroupCodec, WritesTheBitsOfLlamaCpp) {
  std::ifstream file(std::string(THERMOCLINE_SOURCE_DIR) + "/tests/golden/quantize.json");
  const nlohmann::json golden = nlohmann::json::parse(file);
  const std::vector<std::byte> rows = from_hex(golden.at("rows"));
  std::size_t compared = 0;
  for (const GroupBound& bound : kGroupBounds) {
    const GroupCodec codec(bound.format);
    const std::string name(codec.name());
    if (!golden.at("types").contains(name)) continue;
    const std::vector<std::byte> blocks = from_hex(golden.at("types").at(name));
    std::vector<std::byte> got(row_bytes(codec.format(), 32));
    for (std::size_t r = 0; r * 64 < rows.size(); ++r) {
      codec.encode(reinterpret_cast<const f16*>(rows.data() + r * 64), 32, got.data());
      const auto* wanted = blocks.data() + r * got.size();
      EXPECT_EQ(got, std::vector<std::byte>(wanted, wanted + got.size())) << name << ", row " << r;
    }
    ++compared;
  }
  EXPECT_EQ(compared, golden.at("types").size());
}

TEST(Bf16Codec, KeepsEightBitsAndWhatIsNotFinite) {
  std::mt19937 random(9);
  const Bf16Codec codec;
  for (int round = 0; round < 200; ++round) {
    std::vector<f16> row(16);
    for (f16& x : row) x.bits = static_cast<std::uint16_t>(random());
    std::vector<std::byte> coded(row_bytes(codec.format(), 16));
    codec.encode(row.data(), 16, coded.data());
    std::vector<float> back(16);
    read_row(codec.format(), coded.data(), 16, back.data());
    for (std::size_t i = 0; i < row.size(); ++i) {
      const float x = to_float(row[i]);
      if (std::isnan(x))
        EXPECT_TRUE(std::isnan(back[i]));
      else if (std::isinf(x))
        EXPECT_EQ(back[i], x);
      else
        EXPECT_LE(std::abs(back[i] - x), std::abs(x) * 0x1.0p-8f);
    }
  }
}

// Each side by its own codec, rows in an order, and back.
constexpr RotatedCodec::Bits kRotatedBits[] = {RotatedCodec::Bits::two, RotatedCodec::Bits::three,
                                               RotatedCodec::Bits::four};

TEST(RotatedCodec, ReadsBackWithinTheBoundWhateverLiesFarOut) {
  std::mt19937 random(12);
  std::normal_distribution<float> normal;
  for (const auto bits : kRotatedBits) {
    const RotatedCodec codec(bits);
    const double middle = ((1 << static_cast<int>(bits)) - 1) / 2.0;
    for (int round = 0; round < 600; ++round) {
      const float size = std::ldexp(1.0f, static_cast<int>(random() % 20) - 8);
      std::vector<float> wanted(16 * (1 + random() % 16));
      for (float& x : wanted) x = size * normal(random);
      if (round % 3 == 0) wanted[random() % wanted.size()] *= 200.0f;
      if (round % 5 == 0) std::fill(wanted.begin(), wanted.end(), wanted[0]);
      for (float& x : wanted) x = std::clamp(x, -60000.0f, 60000.0f);
      const std::vector<f16> row = halves(wanted);
      std::vector<float> rotated;
      for (const f16 x : row) rotated.push_back(to_float(x));
      hadamard(rotated.data(), rotated.size());
      double most = 0, length = 0;
      for (const float x : rotated) {
        most = std::max(most, std::abs(double{x}));
        length += std::pow(double{x}, 2);
      }
      const std::vector<float> got = round_trip(codec, row);
      double missed = 0;
      for (std::size_t i = 0; i < row.size(); ++i)
        missed += std::pow(double{got[i]} - double{to_float(row[i])}, 2);
      const double rounding = std::sqrt(length) * 0x1.0p-10 + 0x1.0p-20;
      ASSERT_LE(std::sqrt(missed),
                std::sqrt(static_cast<double>(row.size())) * most / middle / 2 + rounding)
          << round;
    }
  }
}

TEST(RotatedCodec, OfNormalRowsLeavesWhatEvenStepsLeave) {
  std::mt19937 random(13);
  std::normal_distribution<float> normal;
  // Of a normal variance, by the best even steps (Max 1960).
  const std::pair<RotatedCodec::Bits, double> left[] = {{RotatedCodec::Bits::two, 0.1188},
                                                        {RotatedCodec::Bits::three, 0.03744},
                                                        {RotatedCodec::Bits::four, 0.01154}};
  for (const auto& [bits, least] : left) {
    double missed = 0, all = 0;
    for (int round = 0; round < 400; ++round) {
      std::vector<float> wanted(256);
      for (float& x : wanted) x = normal(random);
      const std::vector<f16> row = halves(wanted);
      const std::vector<float> got = round_trip(RotatedCodec(bits), row);
      for (std::size_t i = 0; i < row.size(); ++i) {
        missed += std::pow(double{got[i]} - double{to_float(row[i])}, 2);
        all += std::pow(double{to_float(row[i])}, 2);
      }
    }
    EXPECT_LT(missed / all, 1.08 * least);
    EXPECT_GT(missed / all, 0.9 * least);
  }
}

TEST(RotatedCodec, HidesNothingThatIsNotFiniteAndKeepsZeros) {
  for (const auto bits : kRotatedBits)
    for (const std::size_t dim : {16u, 48u, 64u}) {
      std::vector<float> row(dim, 0.0f);
      for (const float x : round_trip(RotatedCodec(bits), halves(row))) EXPECT_EQ(x, 0.0f);
      row[dim - 1] = std::numeric_limits<float>::infinity();
      for (const float x : round_trip(RotatedCodec(bits), halves(row))) EXPECT_TRUE(std::isnan(x));
    }
}

TEST(RowCodec, WritesRecordsAndReadsThemBack) {
  std::mt19937 random(5);
  std::normal_distribution<float> normal;
  const std::uint32_t key_dim = 32, value_dim = 16, rows = 5;
  const RowLayout raw = raw_layout(key_dim, value_dim);
  std::vector<f16> data(2 * rows * raw.bytes() / sizeof(f16));
  for (f16& x : data) x = to_f16(normal(random));
  const RawRows from{raw,
                     2,
                     0,
                     rows,
                     reinterpret_cast<const std::byte*>(data.data()),
                     std::size_t{rows} * raw.bytes()};
  for (const bool coded_keys : {false, true}) {
    RowCodec codec;
    if (coded_keys) {
      codec = {std::make_unique<Int8Codec>(), std::make_unique<RawCodec>()};
    } else {
      codec = {std::make_unique<RawCodec>(), std::make_unique<Int8Codec>()};
    }
    const RowLayout layout = codec.layout(key_dim, value_dim);
    EXPECT_EQ(layout.bytes(), coded_keys ? 36u + 32 : 64u + 20);
    const Segment segment;  // what it says of fits
    const std::vector<std::uint32_t> orders[] = {{}, {4, 0, 3, 1, 2}};
    for (const auto& order : orders) {
      std::vector<std::byte> records(rows * layout.bytes()), back(raw.bytes());
      codec.encode(from, 1, order, segment, 0, records.data());
      for (std::uint32_t r = 0; r < rows; ++r) {
        const std::uint32_t was = order.empty() ? r : order[r];
        const std::byte* record = records.data() + r * layout.bytes();
        codec.decode(record, record + layout.key_bytes, segment, 1, r, raw, back.data());
        const auto* got = reinterpret_cast<const f16*>(back.data());
        for (std::uint32_t i = 0; i < key_dim; ++i)
          EXPECT_NEAR(to_float(got[i]), to_float(from.key(1, was)[i]), coded_keys ? 0.02 : 0.0);
        for (std::uint32_t i = 0; i < value_dim; ++i)
          EXPECT_NEAR(to_float(got[key_dim + i]), to_float(from.value(1, was)[i]),
                      coded_keys ? 0.0 : 0.02);
      }
    }
  }
}

}  // namespace
}  // namespace thermocline
