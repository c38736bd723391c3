// The two kinds of failure. The world being wrong (a file, a device, a budget, a user) is an Error
// in a Result; the program being wrong is a TL_CHECK, which stops the process. Never one for the
// other.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <sstream>
#include <string>
#include <tl/expected.hpp>
#include <utility>

namespace thermocline {

enum class ErrorCode : std::uint8_t {
  invalid_argument,  // the caller asked for something that has no meaning
  not_found,         // a file, a name or a device that is not there
  corrupt,           // bytes that are not what they claim to be
  unsupported,       // well formed, and not something that this build can do
  exhausted,         // a budget or a resource is used up
  io,                // the operating system refused or failed
  cancelled,         // the caller asked to stop
};

// `message` is one line: what was needed, what was there, and what to change.
struct Error {
  ErrorCode code = ErrorCode::invalid_argument;
  std::string message;
};

template <typename T>
using Result = tl::expected<T, Error>;
using Status = tl::expected<void, Error>;

// fail(ErrorCode::corrupt, path, ": tensor ", name, " ends at ", end, ", the file at ", size)
template <typename... Parts>
[[nodiscard]] tl::unexpected<Error> fail(ErrorCode code, const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  return tl::unexpected<Error>(Error{code, text.str()});
}

namespace detail {
[[noreturn]] inline void check_failed(const char* what, const char* file, int line) {
  std::fprintf(stderr, "%s:%d: check failed: %s\n", file, line, what);
  std::abort();
}
}  // namespace detail
}  // namespace thermocline

#define TL_CHECK(condition)           \
  ((condition) ? static_cast<void>(0) \
               : ::thermocline::detail::check_failed(#condition, __FILE__, __LINE__))

#define TL_CONCAT_INNER(a, b) a##b
#define TL_CONCAT(a, b) TL_CONCAT_INNER(a, b)

// Returns the error of `expression` (a Status or Result) from the enclosing function.
#define TL_TRY(expression)                                                             \
  do {                                                                                 \
    auto&& tl_try_result = (expression);                                               \
    if (!tl_try_result)                                                                \
      return ::tl::unexpected<::thermocline::Error>(std::move(tl_try_result).error()); \
  } while (false)

// TL_TRY_ASSIGN(auto reader, table.read(...)): the value, or returns the error.
#define TL_TRY_ASSIGN(declaration, expression) \
  TL_TRY_ASSIGN_INNER(TL_CONCAT(tl_try_value_, __LINE__), declaration, expression)
#define TL_TRY_ASSIGN_INNER(temporary, declaration, expression)                                \
  auto temporary = (expression);                                                               \
  if (!temporary) return ::tl::unexpected<::thermocline::Error>(std::move(temporary).error()); \
  declaration = std::move(*temporary)
