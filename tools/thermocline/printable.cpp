#include "tools/thermocline/printable.h"

#include "kernels/base/utf8.h"

namespace thermocline {
namespace {

// A whole character that a terminal or a line would act on: C0, DEL, C1, U+2028 and U+2029.
bool acts(std::string_view character) {
  const auto lead = static_cast<unsigned char>(character.front());
  if (lead < 0x80) return lead < 0x20 || lead == 0x7f;
  const bool c1 = lead == 0xc2 && static_cast<unsigned char>(character[1]) < 0xa0;
  return c1 || character == "\xe2\x80\xa8" || character == "\xe2\x80\xa9";
}

void append_escaped(unsigned char byte, std::string* out) {
  constexpr char kHex[] = "0123456789abcdef";
  if (byte == '\n')
    *out += "\\n";
  else if (byte == '\t')
    *out += "\\t";
  else
    *out += {'\\', 'x', kHex[byte >> 4], kHex[byte & 15]};
}

}  // namespace

std::string printable(std::string_view text) {
  std::string out;
  for (std::size_t at = 0; at < text.size();) {
    const Utf8Step step = utf8_step(text.substr(at));
    const std::string_view bytes = text.substr(at, step.bytes);
    if (step.kind == Utf8Step::Kind::character && !acts(bytes))
      out += bytes;
    else
      for (const char c : bytes) append_escaped(static_cast<unsigned char>(c), &out);
    at += bytes.size();
  }
  return out;
}

}  // namespace thermocline
