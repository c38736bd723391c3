// Text from a file, made fit for one line of a message.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace thermocline {

// In quotation marks, control characters, quotes and bytes that are not valid UTF-8 escaped, cut
// (with "...") after about `max_bytes`.
std::string quoted(std::string_view text, std::size_t max_bytes = 80);

}  // namespace thermocline
