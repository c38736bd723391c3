// What a choice may be given in a method's file beside its name. Who makes the choice has a table
// of these, which is the one place for names and ranges: the file is read by it and options are
// checked by it.
#pragma once

#include <cmath>
#include <cstdint>
#include <optional>
#include <span>
#include <sstream>
#include <string>
#include <string_view>
#include <variant>

#include "kernels/base/error.h"

namespace thermocline {

// As a user would write it: 1048576, not 1.04858e+06.
inline std::string written(double value) {
  std::ostringstream text;
  text.precision(std::abs(value) < 1e15 && value == std::floor(value) ? 15 : 6);
  text << value;
  return text.str();
}

// A number, a whole number, or one of some words, of an `Options`.
template <typename Options>
struct Parameter {
  std::string_view name;
  std::variant<double Options::*, std::uint32_t Options::*> member;
  double least = 0, most = 0;  // both are allowed
  // Not empty: the file says one of these, and the member, a whole number, is which: 0 to `most`.
  std::span<const std::string_view> words = {};
  // Of a number, what the word `auto` stands for, whatever its range.
  std::optional<double> automatic = {};
  // Others of the same table. It has an effect only where the first is not 0, or where the second
  // is.
  std::string_view needs = {}, yields_to = {};

  double of(const Options& options) const {
    return std::visit([&](auto m) { return static_cast<double>(options.*m); }, member);
  }
  std::string written_of(const Options& options) const {
    const double value = of(options);
    return words.empty() ? written(value) : std::string(words[static_cast<std::size_t>(value)]);
  }
};

// invalid_argument: names `choice`, the parameter, its value and its range.
template <typename Options>
Status check(std::string_view choice, std::span<const Parameter<Options>> parameters,
             const Options& options) {
  for (const Parameter<Options>& parameter : parameters) {
    const double value = parameter.of(options);
    if (!(value >= parameter.least && value <= parameter.most) && value != parameter.automatic)
      return fail(ErrorCode::invalid_argument, choice, ": ", parameter.name, " = ", written(value),
                  " is not a number from ", written(parameter.least), " to ",
                  written(parameter.most));
  }
  return {};
}

}  // namespace thermocline
