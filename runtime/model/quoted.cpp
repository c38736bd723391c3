#include "runtime/model/quoted.h"

#include "kernels/base/utf8.h"

namespace thermocline {
namespace {

void append_escaped(unsigned char byte, std::string* out) {
  constexpr char kHex[] = "0123456789abcdef";
  switch (byte) {
    case '\n':
      *out += "\\n";
      return;
    case '\r':
      *out += "\\r";
      return;
    case '\t':
      *out += "\\t";
      return;
    case '"':
      *out += "\\\"";
      return;
    case '\\':
      *out += "\\\\";
      return;
    default:
      *out += {'\\', 'x', kHex[byte >> 4], kHex[byte & 15]};
  }
}

}  // namespace

std::string quoted(std::string_view text, std::size_t max_bytes) {
  std::string out = "\"";
  std::size_t at = 0;
  while (at < text.size() && at < max_bytes) {
    const Utf8Step step = utf8_step(text.substr(at));
    const std::string_view bytes = text.substr(at, step.bytes);
    // C1 controls and the line separators break a line or a terminal as C0 does.
    const bool plain = step.kind == Utf8Step::Kind::character && step.code >= 0x20 &&
                       step.code != '"' && step.code != '\\' &&
                       !(step.code >= 0x7f && step.code < 0xa0) && step.code != 0x2028 &&
                       step.code != 0x2029;
    if (plain) {
      out += bytes;
    } else {
      for (char c : bytes) append_escaped(static_cast<unsigned char>(c), &out);
    }
    at += step.bytes;
  }
  return out + (at < text.size() ? "...\"" : "\"");
}

}  // namespace thermocline
