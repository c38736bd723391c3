#include "tiers/size_text.h"

#include <array>
#include <cstdio>

namespace thermocline {

std::string size_text(std::uint64_t bytes) {
  constexpr std::array<const char*, 4> kUnits = {"KiB", "MiB", "GiB", "TiB"};
  if (bytes < 1024) return std::to_string(bytes) + (bytes == 1 ? " byte" : " bytes");
  std::size_t unit = 0;
  while (unit + 1 < kUnits.size() && bytes >> (10 * (unit + 2))) ++unit;
  const std::uint64_t one = std::uint64_t{1} << (10 * (unit + 1));
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), bytes % one == 0 ? "%.0f %s" : "%.2f %s",
                static_cast<double>(bytes) / static_cast<double>(one), kUnits[unit]);
  return text.data();
}

}  // namespace thermocline
