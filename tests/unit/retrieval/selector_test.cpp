// What every selector promises whoever plans for it.
#include "retrieval/select/selector.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "runtime/method.h"
#include "tests/unit/retrieval/sealed_keys.h"

namespace thermocline {
namespace {

// Every selector on the shelf, and those of them with parameters at their ends.
std::vector<std::vector<std::string>> all_selectors() {
  std::vector<std::vector<std::string>> all;
  for (const MethodQuestion& question : method_questions())
    if (question.key == "select.by")
      for (const std::string& choice : question.choices) all.push_back({"select.by=" + choice});
  for (const char* by : {"sketch", "clusters"})
    for (const char* cluster : {"4", "5", "63", "64", "65", "256"})
      all.push_back({std::string("select.by=") + by, std::string("select.cluster=") + cluster});
  for (const char* block : {"2", "17", "65", "256"}) {
    all.push_back({"select.by=bounds", std::string("select.block=") + block});
    all.push_back({"select.by=landmarks", std::string("select.chunk=") + block});
  }
  for (const char* blocks : {"1", "3", "16", "8192"})
    all.push_back({"select.by=moments", std::string("select.group_blocks=") + blocks});
  for (const char* channels : {"0", "0.3", "1"})
    all.push_back({"select.by=labels", std::string("select.channels=") + channels});
  for (const char* bits : {"1", "8"})
    all.push_back({"select.by=lowbit", std::string("select.bits=") + bits});
  return all;
}

TEST(Selector, RowsTakeNoMoreThanTheirBlocksWouldAloneAndFormingNoMoreThanWasSaid) {
  const auto cpu = choose_cpu_table("auto");
  ASSERT_TRUE(cpu);
  const auto selectors = all_selectors();
  EXPECT_GE(selectors.size(), 30u);
  for (const auto& overrides : selectors) {
    const auto method =
        load_method("exact", THERMOCLINE_SOURCE_DIR "/configs/methods", overrides, **cpu);
    ASSERT_TRUE(method) << method.error().message;
    const Selector& selector = *method->select;
    for (const HeadShape shape :
         {HeadShape{1, 16, 16}, HeadShape{3, 64, 48}, HeadShape{8, 512, 64}}) {
      SCOPED_TRACE(overrides.back() + ", key size " + std::to_string(shape.key_dim));
      const std::uint64_t index = selector.index_bytes(shape, kBlockRows);
      const std::uint64_t summaries = selector.summary_bytes(shape, kBlockRows);
      for (std::uint64_t rows = 1; rows <= kSegmentRows; ++rows) {
        const std::uint64_t blocks = (rows + kBlockRows - 1) / kBlockRows;
        ASSERT_LE(selector.index_bytes(shape, rows), blocks * index) << rows << " rows";
        ASSERT_LE(selector.summary_bytes(shape, rows), blocks * summaries) << rows << " rows";
      }
      for (const std::uint32_t rows : {1u, 64u, 65u, 700u}) {
        const SyntheticRows synthetic(shape, 2, rows, 5, rows);
        const auto formed = selector.form(synthetic.sealing(), Workers(2));
        ASSERT_TRUE(formed) << formed.error().message;
        EXPECT_LE(formed->index ? formed->index->bytes() : 0,
                  2 * selector.index_bytes(shape, rows));
        EXPECT_LE(formed->summary_rows.size(), 2 * selector.summary_bytes(shape, rows));
        EXPECT_LE(formed->summaries, rows);
      }
    }
  }
}

}  // namespace
}  // namespace thermocline
