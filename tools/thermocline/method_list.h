// Methods as a command that measures several takes them: names, each with settings of its own.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "kernels/base/error.h"

namespace thermocline {

struct ListedMethod {
  std::string name;                   // or the path of a file
  std::vector<std::string> settings;  // "select.share=0.05"
  // As it is called in tables: "sketch:select.share=0.05".
  std::string label() const;
};

// "exact", "exact,sketch", "sketch:select.share=0.05:steady.sink=8", and several values of a
// setting, a method each: "sketch:select.share=0.01/0.02/0.05". One that is listed twice, or
// without a name, is an error.
Result<std::vector<ListedMethod>> parse_method_list(std::span<const std::string> lists,
                                                    const std::string& flag);

}  // namespace thermocline
