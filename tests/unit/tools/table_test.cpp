#include "tools/thermocline/table.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <sstream>

namespace thermocline {
namespace {

using Json = nlohmann::ordered_json;

std::string written(TableFormat format, const std::vector<Json>& rows) {
  char* text = nullptr;
  std::size_t size = 0;
  std::FILE* file = open_memstream(&text, &size);
  {
    Table table(file, format, {"name", "rate"});
    for (const Json& row : rows) EXPECT_TRUE(table.add(row));
  }
  std::fclose(file);
  const std::string result(text, size);
  std::free(text);
  return result;
}

const std::vector<Json> kRows{Json{{"name", "a,\"b\""}, {"rate", 12.345}, {"more", nullptr}},
                              Json{{"name", "c"}, {"rate", 0.001}, {"more", {"x", "y"}}}};

TEST(Table, CsvQuotesWhatItMust) {
  EXPECT_EQ(written(TableFormat::csv, kRows),
            "name,rate,more\n\"a,\"\"b\"\"\",12.345,\nc,0.001,x y\n");
}

TEST(Table, CsvHasOneSetOfColumns) {
  const Json wide{{"name", "a"}, {"steps", {1, 2}}, {"words", {"x", "y"}}, {"pairs", {{"x", "y"}}}};
  const Json other{{"rate", 2}, {"beside", 3}, {"name", "b"}, {"words", {1, 2}}};
  EXPECT_EQ(written(TableFormat::csv, {wide, other}), "name,words,rate\na,x y,\nb,,2\n");
}

TEST(Table, MarkdownHasRoomForWhatALaterRowHas) {
  char* text = nullptr;
  std::size_t size = 0;
  std::FILE* file = open_memstream(&text, &size);
  {
    Table table(file, TableFormat::md, {"name", "rate"});
    table.make_room("name", "variable|tracking");
    table.make_room("name", "key-value");
    for (const char* name : {"needle", "variable|tracking"})
      EXPECT_TRUE(table.add(Json{{"name", name}, {"rate", 1}}));
  }
  std::fclose(file);
  std::stringstream lines{std::string(text, size)};
  std::free(text);
  std::string first, line;
  std::getline(lines, first);
  while (std::getline(lines, line)) EXPECT_EQ(line.size(), first.size()) << line;
}

TEST(Table, JsonAndJsonLinesComeBackAsTheyWere) {
  EXPECT_EQ(Json::parse(written(TableFormat::json, kRows)), Json(kRows));
  EXPECT_EQ(Json::parse(written(TableFormat::json, {})), Json::array());
  const std::string lines = written(TableFormat::jsonl, kRows);
  EXPECT_EQ(Json::parse(lines.substr(0, lines.find('\n'))), kRows[0]);
}

TEST(Table, MarkdownShowsTheChosenColumns) {
  const std::string text = written(TableFormat::md, kRows);
  EXPECT_EQ(text.find("more"), std::string::npos);
  EXPECT_NE(text.find(" 12.3 |"), std::string::npos) << text;
  EXPECT_NE(text.find("1.00e-03 |"), std::string::npos) << text;
}

TEST(Table, NothingInACellActsOnATerminalOrEndsIt) {
  const std::vector<Json> rows{Json{{"name", "\033[2Jb|c\n"}, {"rate", 1}}};
  EXPECT_NE(written(TableFormat::md, rows).find(" \\x1b[2Jb\\|c\\n |"), std::string::npos);
  EXPECT_NE(written(TableFormat::csv, rows).find("\n\\x1b[2Jb|c\\n,1\n"), std::string::npos);
  EXPECT_EQ(Json::parse(written(TableFormat::json, rows)), Json(rows));
}

TEST(Table, ARowThatCannotBeWrittenIsAnError) {
  std::FILE* full = std::fopen("/dev/full", "w");
  ASSERT_NE(full, nullptr);
  {
    Table table(full, TableFormat::csv, {"name"});
    EXPECT_FALSE(table.add(kRows.front()));
  }
  std::fclose(full);
}

TEST(Table, ColumnsOfAFirstEmptyCellStayAligned) {
  const std::string text = written(TableFormat::csv, {Json{{"first", nullptr}, {"second", 1}}});
  EXPECT_EQ(text, "first,second,name,rate\n,1,,\n");
}

}  // namespace
}  // namespace thermocline
