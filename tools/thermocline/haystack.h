// A task's sample in the midst of a real text, in tokens.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "runtime/thermocline.h"
#include "tools/thermocline/task.h"

namespace thermocline {

// What is before the question, exactly `depth` tokens: the text's as many as there is room for, cut
// after a sentence or a line where something is hidden. Sample `number` of a longer text begins
// elsewhere in it. exhausted: the text is too short, or `depth` is.
Result<std::vector<int>> hide(const Engine& engine, const TaskSample& sample,
                              std::span<const int> text, std::uint32_t depth, std::uint32_t number);

}  // namespace thermocline
