// What of a text is UTF-8.
#pragma once

#include <cstddef>
#include <string_view>

namespace thermocline {

// The bytes of a character that begins at text[at], 0 where none does.
std::size_t character_size(std::string_view text, std::size_t at);
// The offset of the first byte that is not UTF-8, or npos.
std::size_t find_invalid_utf8(std::string_view text);

}  // namespace thermocline
