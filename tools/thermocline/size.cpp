#include "tools/thermocline/size.h"

#include <array>
#include <cctype>
#include <charconv>
#include <cstdio>

#include "runtime/thermocline.h"

namespace thermocline {
namespace {

// The factor of a unit, 0 for one that is not known.
double unit_factor(std::string unit) {
  for (char& c : unit) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  if (unit.empty() || unit == "b") return 1;
  const std::size_t power = std::string("kmgt").find(unit[0]);
  if (power == std::string::npos) return 0;
  const std::string rest = unit.substr(1);
  if (!rest.empty() && rest != "ib" && rest != "b") return 0;
  double factor = 1;
  for (std::size_t i = 0; i <= power; ++i) factor *= rest == "b" ? 1000 : 1024;
  return factor;
}

}  // namespace

Result<std::uint64_t> parse_size(std::string_view text, std::string_view flag) {
  if (text == "auto") return kAutoBytes;
  double number = 0;
  const char* end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(text.data(), end, number, std::chars_format::fixed);
  std::string_view unit(rest, static_cast<std::size_t>(end - rest));
  while (!unit.empty() && unit.front() == ' ') unit.remove_prefix(1);
  const double factor = unit_factor(std::string(unit));
  if (error != std::errc() || factor == 0 || !(number >= 0))
    return fail(
        ErrorCode::invalid_argument, flag, " '", text,
        "' is not a size: write a number with a unit such as 512MiB or 1.5G, or auto, or 0");
  constexpr double kMost =
      1024.0 * 1024 * 1024 * 1024 * 1024;  // a pebibyte: no typing error passes
  if (number * factor > kMost)
    return fail(ErrorCode::invalid_argument, flag, " '", text, "' is more than 1024 TiB");
  return static_cast<std::uint64_t>(number * factor);
}

std::string format_size(std::uint64_t bytes) {
  if (bytes < 1024) return std::to_string(bytes) + " B";
  constexpr std::array kUnits{"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  double value = static_cast<double>(bytes) / 1024;
  std::size_t unit = 0;
  while (value >= 999.5 && unit + 1 < kUnits.size()) {
    value /= 1024;
    ++unit;
  }
  const int decimals = value < 9.995 ? 2 : value < 99.95 ? 1 : 0;
  std::array<char, 32> text;
  std::snprintf(text.data(), text.size(), "%.*f %s", decimals, value, kUnits[unit]);
  return text.data();
}

std::string format_count(std::uint64_t value) {
  std::string digits = std::to_string(value);
  for (std::size_t i = digits.size(); i > 3; i -= 3) digits.insert(i - 3, ",");
  return digits;
}

std::string format_counted(std::uint64_t value, const char* noun) {
  return format_count(value) + " " + noun + (value == 1 ? "" : "s");
}

}  // namespace thermocline
