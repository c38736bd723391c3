#include "tools/thermocline/range.h"

#include <charconv>
#include <optional>

namespace thermocline {
namespace {

constexpr std::size_t kMostValues = 1000;
constexpr std::uint32_t kLargest = 1u << 30;

std::optional<std::uint32_t> parse_number(std::string_view text) {
  std::uint32_t value = 0;
  const auto [rest, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || rest != text.data() + text.size() || value > kLargest)
    return std::nullopt;
  return value;
}

// first-last, first-last+step or first-last*mult; nothing where the text is none of these.
struct Range {
  std::uint64_t first = 0, last = 0, add = 1, multiply = 1;
};
std::optional<Range> parse_range(std::string_view text) {
  const std::size_t dash = text.find('-');
  if (dash == std::string_view::npos) {
    const auto value = parse_number(text);
    if (!value) return std::nullopt;
    return Range{*value, *value, 1, 1};
  }
  Range range;
  std::string_view tail = text.substr(dash + 1);
  const std::size_t sign = tail.find_first_of("+*");
  if (sign != std::string_view::npos) {
    const auto step = parse_number(tail.substr(sign + 1));
    if (!step) return std::nullopt;
    (tail[sign] == '+' ? range.add : range.multiply) = *step;
    if (tail[sign] == '*') range.add = 0;
    tail = tail.substr(0, sign);
  }
  const auto first = parse_number(text.substr(0, dash)), last = parse_number(tail);
  if (!first || !last) return std::nullopt;
  range.first = *first;
  range.last = *last;
  return range;
}

bool grows(const Range& range) {
  return range.add > 0 || (range.multiply > 1 && range.first > 0) || range.first == range.last;
}

}  // namespace

Result<std::vector<std::string>> parse_list(std::string_view text, std::string_view flag) {
  std::vector<std::string> parts;
  for (;;) {
    const std::size_t comma = text.find(',');
    parts.emplace_back(text.substr(0, comma));
    if (parts.back().empty())
      return fail(ErrorCode::invalid_argument, flag, ": an empty value in the list");
    if (comma == std::string_view::npos) return parts;
    text.remove_prefix(comma + 1);
  }
}

Result<std::vector<std::uint32_t>> parse_range_list(std::string_view text, std::string_view flag) {
  TL_TRY_ASSIGN(const std::vector<std::string> parts, parse_list(text, flag));
  std::vector<std::uint32_t> values;
  for (const std::string& part : parts) {
    const auto range = parse_range(part);
    if (!range || range->first > range->last)
      return fail(ErrorCode::invalid_argument, flag, " '", part,
                  "' is not a number or a range: write 512, 0-8192+2048 or 512-8192*2");
    if (!grows(*range))
      return fail(ErrorCode::invalid_argument, flag, " '", part,
                  "' never reaches its end: step by +1 or more, or from 1 or more by *2 or more");
    for (std::uint64_t v = range->first; v <= range->last; v = v * range->multiply + range->add) {
      if (values.size() == kMostValues)
        return fail(ErrorCode::invalid_argument, flag, " '", text, "' has more than ", kMostValues,
                    " values");
      values.push_back(static_cast<std::uint32_t>(v));
      if (range->first == range->last) break;
    }
  }
  return values;
}

}  // namespace thermocline
