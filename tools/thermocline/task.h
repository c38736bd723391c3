// Tasks whose answer lies in a long text: what is hidden in a haystack, what is asked, and whether
// an answer is right. Written so that small models that continue a text can do them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/error.h"

namespace thermocline {

enum class Task : std::uint8_t {
  needle,             // one number in a long text
  multi_needle,       // four numbers with names, all over the text; one is asked for
  key_value,          // a list of words with numbers; one is asked for
  variable_tracking,  // a variable that was given another's value
};
std::string_view name_of(Task task);
// "needle,key-value".
Result<std::vector<Task>> parse_tasks(std::string_view text);

struct TaskSample {
  struct Hidden {
    double place = 0;  // 0: where the haystack begins, 1: where it ends
    std::string text;
  };
  std::string introduction;    // before the haystack
  std::vector<Hidden> hidden;  // by place, ascending
  std::string question;        // after it; its continuation is the answer
  std::string answer;
};
// What is asked for is hidden at `place`. The same seed makes the same sample.
TaskSample make_sample(Task task, double place, std::uint64_t seed);

// Whether a text that goes on from the question gives the answer: it begins with it, and with no
// longer number or word.
bool is_right(std::string_view continuation, std::string_view answer);

}  // namespace thermocline
