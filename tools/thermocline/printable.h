// Text of others, made fit for a line on a terminal: a model's name, a method's summary or a path
// may hold what moves the cursor, changes colours or forges a line of ours.
#pragma once

#include <string>
#include <string_view>

namespace thermocline {

// Control characters, line breaks and bytes that are not UTF-8 as \n, \t or \xHH; the rest as it
// is.
std::string printable(std::string_view text);

}  // namespace thermocline
