// The three places where bytes live.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace thermocline {

enum class Tier : std::uint8_t { device, host, disk };
inline constexpr std::size_t kTiers = 3;
inline constexpr std::array<Tier, kTiers> kAllTiers = {Tier::device, Tier::host, Tier::disk};

constexpr std::string_view name_of(Tier tier) {
  constexpr std::array<std::string_view, kTiers> kNames = {"device", "host", "disk"};
  return kNames[static_cast<std::size_t>(tier)];
}

// What gives it its bytes on the command line.
constexpr std::string_view flag_of(Tier tier) {
  constexpr std::array<std::string_view, kTiers> kFlags = {"--kv-device", "--kv-host", "--kv-disk"};
  return kFlags[static_cast<std::size_t>(tier)];
}

// What gives their bytes to all caches of an engine together.
constexpr std::string_view limit_of(Tier tier) {
  constexpr std::array<std::string_view, kTiers> kLimits = {"EngineOptions::limits.device_bytes",
                                                            "EngineOptions::limits.host_bytes",
                                                            "EngineOptions::limits.disk_bytes"};
  return kLimits[static_cast<std::size_t>(tier)];
}

}  // namespace thermocline
