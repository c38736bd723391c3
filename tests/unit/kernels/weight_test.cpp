#include "kernels/format/weight.h"

#include <gtest/gtest.h>

#include <bit>
#include <cstdint>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "kernels/cpu/table.h"
#include "kernels/reference.h"
#include "tests/unit/kernels/weights.h"

namespace thermocline {
namespace {

using testing::Scale;

std::vector<std::byte> from_hex(const std::string& hex) {
  std::vector<std::byte> bytes(hex.size() / 2);
  for (std::size_t i = 0; i < bytes.size(); ++i)
    bytes[i] = static_cast<std::byte>(std::stoi(hex.substr(2 * i, 2), nullptr, 16));
  return bytes;
}

void expect_same_bits(const std::vector<float>& got, const std::vector<float>& want,
                      const std::string& what) {
  ASSERT_EQ(got.size(), want.size()) << what;
  for (std::size_t i = 0; i < got.size(); ++i)
    ASSERT_EQ(std::bit_cast<std::uint32_t>(got[i]), std::bit_cast<std::uint32_t>(want[i]))
        << what << ", value " << i << ": " << got[i] << ", not " << want[i];
}

std::vector<float> dequantized(const CpuTable& table, WeightView w, std::size_t row) {
  std::vector<float> out(w.cols);
  table.matvec.dequantize(w, row, out.data());
  return out;
}

TEST(Weight, SizesAreThoseOfTheFile) {
  ASSERT_EQ(weight_types().size(), 11u);
  for (const WeightTypeInfo& t : weight_types()) {
    EXPECT_EQ(&info(t.type), &t);
    const WeightView w{t.type, nullptr, 3, 512};
    EXPECT_EQ(w.row_bytes() * t.block_values, 512u * t.block_bytes) << t.name;
    EXPECT_EQ(w.bytes(), 3 * w.row_bytes()) << t.name;
  }
  EXPECT_EQ(info(WeightType::q4_1).gguf_id, 3u);
  EXPECT_EQ((WeightView{WeightType::q6_k, nullptr, 1, 256}.row_bytes()), 210u);
}

// The values that another implementation, gguf-py, makes of the same bytes.
TEST(Weight, DequantizesAsGgufPyDoes) {
  std::ifstream file(std::string(THERMOCLINE_SOURCE_DIR) + "/tests/golden/dequantize.json");
  const nlohmann::json golden = nlohmann::json::parse(file);
  ASSERT_EQ(golden.at("types").size(), weight_types().size());
  for (const WeightTypeInfo& t : weight_types()) {
    const nlohmann::json& entry = golden.at("types").at(std::string(t.name));
    const std::vector<std::byte> bytes = from_hex(entry.at("bytes"));
    const std::vector<std::byte> raw = from_hex(entry.at("values"));
    std::vector<float> want(raw.size() / sizeof(float));
    std::memcpy(want.data(), raw.data(), raw.size());
    const WeightView w{t.type, bytes.data(), 1, want.size()};
    ASSERT_EQ(w.bytes(), bytes.size()) << t.name;

    std::vector<float> got(w.cols);
    reference::dequantize(w, 0, got.data());
    expect_same_bits(got, want, std::string("reference ") + std::string(t.name));
    for (const CpuTable* table : all_cpu_tables())
      if (usable(*table))
        expect_same_bits(dequantized(*table, w, 0), want,
                         std::string(table->name) + " " + std::string(t.name));
  }
}

TEST(Weight, EveryTableDequantizesToTheSameBits) {
  std::mt19937 rng(3);
  for (const WeightTypeInfo& t : weight_types())
    for (const Scale scale : {Scale::ordinary, Scale::extreme}) {
      const testing::Weights w = testing::random_weights(t.type, 7, 768, scale, rng);
      for (std::size_t r = 0; r < w.view.rows; ++r) {
        std::vector<float> want(w.view.cols);
        reference::dequantize(w.view, r, want.data());
        for (const CpuTable* table : all_cpu_tables())
          if (usable(*table))
            expect_same_bits(dequantized(*table, w.view, r), want,
                             std::string(table->name) + " " + std::string(t.name));
      }
    }
}

TEST(CpuTable, AForcedOneRunsOrIsAnError) {
  const auto automatic = choose_cpu_table("auto");
  ASSERT_TRUE(automatic);
  EXPECT_TRUE(usable(**automatic));
  for (const CpuTable* table : all_cpu_tables()) {
    const auto forced = choose_cpu_table(table->name);
    if (usable(*table)) {
      ASSERT_TRUE(forced) << table->name;
      EXPECT_EQ(*forced, table);
    } else {
      ASSERT_FALSE(forced) << table->name;
      EXPECT_EQ(forced.error().code, ErrorCode::unsupported);
      EXPECT_NE(forced.error().message.find(lacking(*table)), std::string::npos);
    }
  }
  EXPECT_TRUE(usable(*all_cpu_tables().front())) << "the plain table runs anywhere";
}

TEST(CpuTable, AnUnknownNameIsAnErrorThatListsTheKnownOnes) {
  const auto unknown = choose_cpu_table("avx9000");
  ASSERT_FALSE(unknown);
  EXPECT_EQ(unknown.error().code, ErrorCode::invalid_argument);
  EXPECT_NE(unknown.error().message.find("auto, scalar"), std::string::npos);
}

// One test a table, so that those which cannot run here are counted as skips with their reason.
class EachTable : public ::testing::TestWithParam<const CpuTable*> {};

TEST_P(EachTable, RunsHere) {
  if (!usable(*GetParam()))
    GTEST_SKIP() << "this machine lacks " << lacking(*GetParam())
                 << ": nothing compares this table with the reference here";
}

INSTANTIATE_TEST_SUITE_P(CpuTable, EachTable, ::testing::ValuesIn(all_cpu_tables()),
                         [](const auto& it) { return std::string(it.param->name); });

}  // namespace
}  // namespace thermocline
