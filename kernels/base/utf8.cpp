#include "kernels/base/utf8.h"

namespace thermocline {
namespace {

// How long a character is that begins with `lead`, and what its second byte may be; 0 if none does.
struct Lead {
  std::size_t bytes = 0;
  unsigned second_low = 0x80, second_high = 0xbf;
};

Lead lead_of(unsigned byte) {
  if (byte < 0x80) return {1};
  if (byte >= 0xc2 && byte <= 0xdf) return {2};
  if (byte == 0xe0) return {3, 0xa0, 0xbf};  // below: overlong
  if (byte == 0xed) return {3, 0x80, 0x9f};  // above: surrogates
  if (byte >= 0xe1 && byte <= 0xef) return {3};
  if (byte == 0xf0) return {4, 0x90, 0xbf};  // below: overlong
  if (byte >= 0xf1 && byte <= 0xf3) return {4};
  if (byte == 0xf4) return {4, 0x80, 0x8f};  // above: beyond U+10FFFF
  return {};
}

}  // namespace

Utf8Step utf8_step(std::string_view text) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const Lead lead = lead_of(byte(0));
  if (lead.bytes == 0) return {Utf8Step::Kind::invalid, 1, 0};
  if (lead.bytes == 1) return {Utf8Step::Kind::character, 1, byte(0)};
  std::uint32_t code = byte(0) & (0x7fu >> lead.bytes);
  for (std::size_t i = 1; i < lead.bytes; ++i) {
    if (i == text.size()) return {Utf8Step::Kind::incomplete, i, 0};
    const unsigned low = i == 1 ? lead.second_low : 0x80u;
    const unsigned high = i == 1 ? lead.second_high : 0xbfu;
    if (byte(i) < low || byte(i) > high) return {Utf8Step::Kind::invalid, i, 0};
    code = (code << 6) | (byte(i) & 0x3fu);
  }
  return {Utf8Step::Kind::character, lead.bytes, code};
}

std::size_t find_invalid_utf8(std::string_view text) {
  for (std::size_t at = 0; at < text.size();) {
    const Utf8Step step = utf8_step(text.substr(at));
    if (step.kind != Utf8Step::Kind::character) return at;
    at += step.bytes;
  }
  return std::string_view::npos;
}

}  // namespace thermocline
