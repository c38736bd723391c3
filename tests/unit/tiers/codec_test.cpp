#include "tiers/codec/codec.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "tiers/codec/int8.h"
#include "tiers/codec/raw.h"

namespace thermocline {
namespace {

std::vector<f16> halves(const std::vector<float>& of) {
  std::vector<f16> out;
  for (const float x : of) out.push_back(to_f16(x));
  return out;
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
  for (std::uint32_t i = 0; i < dim; ++i) EXPECT_EQ(half[i].bits, to_f16(out[i]).bits);
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

// Each side by its own codec, rows in an order, and back.
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
