// Lists and ranges of numbers on the command line, as llama-bench writes them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/error.h"

namespace thermocline {

// "512", "0,2048,8192", "1-4" (steps of one), "0-8192+2048", "512-8192*2" and lists of these. A
// range stops at the last value that is not above its end. At most 1000 values; `flag` is named in
// the error.
Result<std::vector<std::uint32_t>> parse_range_list(std::string_view text, std::string_view flag);

// "a,b,c" -> {"a", "b", "c"}; empty parts are an error.
Result<std::vector<std::string>> parse_list(std::string_view text, std::string_view flag);

}  // namespace thermocline
