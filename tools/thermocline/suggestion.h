// What the user probably meant.
#pragma once

#include <span>
#include <string>
#include <string_view>

namespace thermocline {

// ": did you mean 'temp'?" for the nearest of the known words, "" when none is near.
std::string suggestion(std::string_view word, std::span<const std::string> known);

}  // namespace thermocline
