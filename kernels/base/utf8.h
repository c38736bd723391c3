// UTF-8, decided strictly: overlong forms, surrogates and values beyond U+10FFFF are not valid.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace thermocline {

// What a text begins with.
struct Utf8Step {
  enum class Kind : std::uint8_t {
    character,   // `bytes` bytes are one character, `code`
    incomplete,  // the text ends inside what may become a character
    invalid,     // the first `bytes` bytes can never be part of one
  };
  Kind kind = Kind::invalid;
  std::size_t bytes = 0;
  std::uint32_t code = 0;
};

// `text` is not empty.
Utf8Step utf8_step(std::string_view text);
// The offset of the first byte that is not part of a whole character, or npos.
std::size_t find_invalid_utf8(std::string_view text);

// The bytes of a character, appended; `code` is a valid one.
void append_utf8(std::uint32_t code, auto* out) {
  const auto put = [out](std::uint32_t byte) { out->push_back(static_cast<char>(byte)); };
  if (code < 0x80) return put(code);
  if (code < 0x800) {
    put(0xc0 | (code >> 6));
  } else {
    if (code < 0x10000) {
      put(0xe0 | (code >> 12));
    } else {
      put(0xf0 | (code >> 18));
      put(0x80 | ((code >> 12) & 0x3f));
    }
    put(0x80 | ((code >> 6) & 0x3f));
  }
  put(0x80 | (code & 0x3f));
}

inline constexpr std::string_view kReplacementCharacter = "\xef\xbf\xbd";

}  // namespace thermocline
