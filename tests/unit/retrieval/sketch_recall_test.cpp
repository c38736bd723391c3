// How many of a long text's best rows the sketch finds, as the methods that ship choose among them.
#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <vector>

#include "retrieval/select/sketch.h"
#include "tests/unit/retrieval/long_text.h"

namespace thermocline {
namespace {

const CpuTable& table() { return **choose_cpu_table("auto"); }

std::unique_ptr<SketchSelector> sketch(const SketchOptions& options) {
  auto made = SketchSelector::create(options, table());
  TL_CHECK(made.has_value());
  return std::move(*made);
}

// How rows are chosen of those that others formed as well, and the least share of the best that is
// found: somewhat less than it was when this was written.
struct Way {
  const char* name;
  SketchOptions options;
  double recall;
};

// Asks each way for `best` rows of a text that the first of them forms.
void check_recall(const std::vector<Way>& ways, std::uint32_t best, const std::set<Form>& forms) {
  LongText text;
  const auto former = sketch(ways.front().options);
  SealedRuns sealed;
  std::vector<std::vector<std::uint32_t>> orders;
  for (std::uint32_t first = 0; first < LongText::kRows; first += kSegmentRows) {
    const Sealing sealing = text.sealing(first, std::min(kSegmentRows, LongText::kRows - first));
    const auto formed = former->form(sealing, Workers(2));
    ASSERT_TRUE(formed) << formed.error().message;
    orders.push_back(formed->order);
    sealed.add(sealing, *formed);
  }
  const std::vector<float> asked[] = {text.query(), text.query(), text.query(), text.query()};
  std::vector<float> for_alike(LongText::kShape.key_dim);
  for_alike.back() = 1;
  for (const Way& way : ways) {
    SCOPED_TRACE(way.name);
    const auto selector = sketch(way.options);
    const auto read = [&](const std::vector<float>& query) {
      return rows_of_text(*selector, query, sealed.runs(), orders, LongText::kRows, forms);
    };
    double found = 0;
    for (const std::vector<float>& query : asked) {
      const std::set<std::uint32_t> rows = read(query);
      EXPECT_EQ(rows.size(), best);
      for (const std::uint32_t row : text.best(query, LongText::kRows, best))
        found += rows.contains(row);
    }
    found /= static_cast<double>(std::size(asked)) * best;
    EXPECT_GE(found, way.recall);
    // One key in 2,400 rows of three segments: no other row is better.
    std::size_t alike = 0;
    for (const std::uint32_t row : read(for_alike))
      alike += std::any_of(
          std::begin(LongText::kBeginAlike), std::end(LongText::kBeginAlike),
          [&](std::uint32_t first) { return first <= row && row < first + LongText::kAlike; });
    EXPECT_EQ(alike,
              std::min<std::size_t>(best, std::size(LongText::kBeginAlike) * LongText::kAlike));
  }
}

TEST(SketchRecall, OfALongTextsBestRows) {
  const SketchOptions sketch1{
      .most_rows = 1024, .candidates = 8, .least_candidates = 8192, .reach = 0.33};
  SketchOptions sketch2 = sketch1, all = sketch1, groups = sketch1, few_groups = sketch1;
  sketch2.candidates = 16;
  sketch2.least_candidates = 1024;
  all.candidates = 1000;
  groups.means = 2048;
  few_groups.means = 64;
  check_recall({{"sketch", sketch1, 0.80},
                {"sketch, all codes", all, 0.81},
                {"sketch, groups", groups, 0.60},
                {"sketch, few groups", few_groups, 0.43},
                {"sketch2", sketch2, 0.80}},
               1024, {Form::rows});
}

// Of a ladder's rows those count that are attended by their codes: which are read says what these
// lose.
TEST(SketchRecall, OfALongTextsBestCodedRows) {
  const SketchOptions ladder{.share = 0.005,
                             .min_rows = 40,
                             .most_rows = 256,
                             .cluster = 24,
                             .coded = 0.1,
                             .most_coded = 5120,
                             .candidates = 32,
                             .least_candidates = 8192,
                             .reach = 0.33};
  SketchOptions groups = ladder;
  groups.means = 64;
  check_recall({{"ladder2", ladder, 0.70}, {"ladder2, groups", groups, 0.30}}, 5120,
               {Form::rows, Form::codes});
}

}  // namespace
}  // namespace thermocline
