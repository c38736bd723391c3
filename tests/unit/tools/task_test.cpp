#include "tools/thermocline/task.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace thermocline {
namespace {

TEST(Task, IsNamedAsAsked) {
  const auto tasks = parse_tasks("key-value,needle");
  ASSERT_TRUE(tasks);
  EXPECT_EQ(*tasks, (std::vector<Task>{Task::key_value, Task::needle}));
  const auto twice = parse_tasks("key-value,needle,key-value");
  ASSERT_FALSE(twice);
  EXPECT_EQ(twice.error().message, "--tasks lists key-value twice");
  const auto wrong = parse_tasks("neddle");
  ASSERT_FALSE(wrong);
  for (const char* part : {"neddle", "did you mean 'needle'", "variable-tracking"})
    EXPECT_NE(wrong.error().message.find(part), std::string::npos) << part;
}

TEST(Task, HidesItsAnswerWhereItIsTold) {
  for (const Task task :
       {Task::needle, Task::multi_needle, Task::key_value, Task::variable_tracking})
    for (const double place : {0.0, 0.4, 1.0})
      for (std::uint64_t seed = 1; seed < 20; ++seed) {
        const TaskSample sample = make_sample(task, place, seed);
        std::size_t with_answer = 0;
        for (const TaskSample::Hidden& hidden : sample.hidden) {
          EXPECT_TRUE(hidden.place >= 0 && hidden.place <= 1);
          if (hidden.text.find(sample.answer) == std::string::npos) continue;
          ++with_answer;
          EXPECT_EQ(hidden.place, place);
        }
        EXPECT_EQ(with_answer, 1u) << name_of(task);
        EXPECT_TRUE(std::is_sorted(
            sample.hidden.begin(), sample.hidden.end(),
            [](const auto& one, const auto& other) { return one.place < other.place; }));
        EXPECT_EQ(sample.question.find(sample.answer), std::string::npos);
        EXPECT_EQ(make_sample(task, place, seed).answer, sample.answer);
        EXPECT_NE(make_sample(task, place, seed + 100).answer, sample.answer);
      }
}

TEST(Task, AnAnswerIsRightWhenItIsAllOfTheNumber) {
  for (const char* right : {"12345", " 12345", " 12345.", " 12345\nWhat", "12345, the key"})
    EXPECT_TRUE(is_right(right, "12345")) << right;
  for (const char* wrong : {"", " 1234", " 123456", " 12345a", "the 12345", "\n12345"})
    EXPECT_FALSE(is_right(wrong, "12345")) << wrong;
}

}  // namespace
}  // namespace thermocline
