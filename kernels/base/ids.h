// Strong ids: a number of one thing is never taken for a number of another.
#pragma once

#include <cstdint>
#include <type_traits>

namespace thermocline {

enum class LayerId : std::uint32_t {};
enum class TimelineId : std::uint32_t {};

template <typename Id>
requires std::is_enum_v<Id>
constexpr std::underlying_type_t<Id> index(Id id) {
  return static_cast<std::underlying_type_t<Id>>(id);
}

// One row of a step: whose, and where in its text.
struct Token {
  TimelineId timeline;
  std::uint32_t position;
};

}  // namespace thermocline
