#include "tools/thermocline/measured_rows.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <fstream>
#include <sstream>

#include "tests/support/temporary_folder.h"

namespace thermocline {
namespace {

using Json = nlohmann::ordered_json;

const RowColumns kColumns{{}, {"kl"}, {}};

class Rows : public testing::Test {
 protected:
  std::string text() const {
    std::ifstream file(path_);
    std::stringstream all;
    all << file.rdbuf();
    return all.str();
  }
  void append(const std::string& more) const { std::ofstream(path_, std::ios::app) << more; }

  test::TemporaryFolder folder_{"rows"};
  std::string path_ = folder_.path() + "/rows.jsonl";
};

TEST_F(Rows, AreThereForTheNextRun) {
  {
    auto rows = MeasuredRows::open(path_);
    ASSERT_TRUE(rows);
    EXPECT_EQ(rows->find("a", kColumns).value(), nullptr);
    ASSERT_TRUE(rows->add("a", Json{{"kl", 0.5}}));
    ASSERT_TRUE(rows->add("b", Json{{"kl", 1}}));
    ASSERT_TRUE(rows->add("a", Json{{"kl", 0.25}}));
    EXPECT_FALSE(MeasuredRows::open(path_)) << "another run";
  }
  const auto rows = MeasuredRows::open(path_);
  ASSERT_TRUE(rows);
  ASSERT_NE(rows->find("a", kColumns).value(), nullptr);
  EXPECT_EQ(*rows->find("a", kColumns).value(), (Json{{"kl", 0.25}}));
  EXPECT_EQ(*rows->find("b", kColumns).value(), (Json{{"kl", 1}}));
  EXPECT_EQ(rows->find("c", kColumns).value(), nullptr);
}

// What is computed of a list that is empty would be a perfect score.
TEST_F(Rows, WithoutTheNumbersOfAListAreCorrupt) {
  const RowColumns columns{{}, {}, {"kl_steps"}};
  for (const Json& steps : {Json::array(), Json::array({"a"}), Json(1), Json()}) {
    append(Json{{"measurement", "a"}, {"kl_steps", steps}}.dump() + "\n");
    const auto rows = MeasuredRows::open(path_);
    ASSERT_TRUE(rows) << rows.error().message;
    const auto found = rows->find("a", columns);
    ASSERT_FALSE(found) << steps;
    EXPECT_EQ(found.error().code, ErrorCode::corrupt);
  }
}

// Wherever a kill cuts what a run was writing, the rows before it stay, and more can follow.
TEST_F(Rows, OutliveARowThatWasCutShort) {
  ASSERT_TRUE(MeasuredRows::open(path_)->add("a", Json{{"kl", 0.5}}));
  const std::string whole = text();
  for (std::size_t cut = 1; cut < whole.size(); ++cut) {
    append(whole.substr(0, cut));
    auto rows = MeasuredRows::open(path_);
    ASSERT_TRUE(rows) << rows.error().message;
    ASSERT_NE(rows->find("a", kColumns).value(), nullptr);
    EXPECT_EQ(text(), whole);
  }
}

TEST_F(Rows, LeaveAnotherFileAsItIs) {
  for (const char* other : {"notes\n", "notes", "[1]\n", "{\"text\": \"a\"}\n", "{\"text\": \"a\"}",
                            "{\"measure\":\"a\"}", "{\"measurement\":1}", "{ "}) {
    std::ofstream(path_) << other;
    const auto rows = MeasuredRows::open(path_);
    ASSERT_FALSE(rows) << other;
    EXPECT_EQ(rows.error().code, ErrorCode::corrupt);
    EXPECT_EQ(text(), other);
  }
}

TEST_F(Rows, AreThoseOfTheirKindOrAnError) {
  const RowColumns columns{{"text"}, {"kl"}, {"steps"}};
  const Json whole{{"text", "a"}, {"kl", 0.5}, {"steps", {1, 0.5}}};
  std::vector<Json> others{Json::object()};
  for (const char* name : {"text", "kl", "steps"}) {
    others.push_back(whole);
    others.back().erase(name);
    for (const Json& value : {Json(), Json(Json::array({"x"})), Json(Json::array({nullptr}))}) {
      others.push_back(whole);
      others.back()[name] = value;
    }
  }
  others.push_back(whole);
  others.back()["kl"] = "0.5";
  {
    auto rows = MeasuredRows::open(path_);
    ASSERT_TRUE(rows && rows->add("whole", whole));
    for (const Json& other : others) ASSERT_TRUE(rows->add(other.dump(), other));
  }
  const auto rows = MeasuredRows::open(path_);
  ASSERT_TRUE(rows);
  ASSERT_TRUE(rows->find("whole", columns));
  EXPECT_EQ(*rows->find("whole", columns).value(), whole);
  for (std::size_t i = 0; i < others.size(); ++i) {
    const auto found = rows->find(others[i].dump(), columns);
    ASSERT_FALSE(found) << others[i];
    EXPECT_EQ(found.error().code, ErrorCode::corrupt);
    const std::string said = "line " + std::to_string(i + 2) + " is no row of a measurement";
    EXPECT_NE(found.error().message.find(said), std::string::npos) << found.error().message;
  }
}

TEST_F(Rows, AreKeptNowhereWithoutAFile) {
  auto rows = MeasuredRows::open("");
  ASSERT_TRUE(rows && rows->add("a", Json{{"kl", 1}}));
  EXPECT_NE(rows->find("a", kColumns).value(), nullptr);
  const auto missing = MeasuredRows::open(folder_.path() + "/no/rows.jsonl");
  ASSERT_FALSE(missing);
  EXPECT_NE(missing.error().message.find("--resume"), std::string::npos);
}

// Whose end may never come.
TEST_F(Rows, AreKeptInAFileAlone) {
  const std::string pipe = folder_.path() + "/pipe";
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  for (const std::string& path : {pipe, std::string("/dev/full"), std::string("/dev/zero")}) {
    const auto refused = MeasuredRows::open(path);
    ASSERT_FALSE(refused) << path;
    EXPECT_EQ(refused.error().code, ErrorCode::invalid_argument);
    EXPECT_EQ(refused.error().message.find("--resume " + path + " is no file"), 0u);
  }
}

TEST(MeasurementName, TellsFactsApart) {
  const auto of = [](std::initializer_list<const char*> facts) {
    MeasurementName name;
    for (const char* fact : facts) name.add(fact);
    return name.text();
  };
  EXPECT_EQ(of({"a", "b"}), of({"a", "b"}));
  EXPECT_EQ(of({}).size(), 16u);
  EXPECT_NE(of({"ab", "c"}), of({"a", "bc"}));
  EXPECT_NE(of({"a"}), of({"a", ""}));
}

}  // namespace
}  // namespace thermocline
