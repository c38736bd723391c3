// How K and V lie in memory: one side, key or value, of one row of one KV head is coded by itself,
// so that any row can be read alone.
//
// A format is one struct in a file of its own, row_<name>.h (row_groups.h has a family), with
//   kFormat              its name in the enum below
//   bytes(dim)           bytes a row of dim channels, a multiple of 2: rows begin at such addresses
//   value(row, dim, i)   the definition: channel i as a float
//   kRotated             whether value() is of the row after a Hadamard rotation
//   Reader<V>            made of (row, dim) once for each row; load(group, at) gives V::lanes
//                        channels from group + at on as the floats that value() gives
//   kGrouped = true      if groups of kRowGroup channels share something: then group is a multiple
//                        of that, and at the compiler knows, so that it is read once
// or, of rows that cannot be read without what their segment shares (fit.h), with kFitted = true
// and
//   read(fit, number, row, dim, out)
//                        the definition: all channels
//   rebuild<V>(fit, rows, numbers, count, dim, out)
//                        the same of kRebuiltRows at most, [count][dim]: each with the same bits
//                        whatever others are rebuilt with it
// instead of value() and Reader. bytes() may then be 0: a row is all in the fit.
//
// Then it has a line in the enum and one in visit_row.h's switch; a codec (tiers/codec) writes it.
// The enum's numbers are in files (docs/session_format.md): none changes, none is used again.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

#include "kernels/format/fit.h"

namespace thermocline {

enum class RowFormat : std::uint8_t {
  f16 = 0,
  int8 = 1,
  rotated2 = 2,
  rotated4 = 3,
  bf16 = 4,
  q8_0 = 5,
  q4_0 = 6,
  q4_1 = 7,
  q5_0 = 8,
  q5_1 = 9,
  iq4_nl = 10,
  kivi2 = 11,
  channels2 = 12,
  channels4 = 13,
  lowrank = 14,
  nuq4 = 15,
  hadamard2 = 16,
  hadamard4 = 17,
  pruned5 = 18,
  pruned6 = 19,
  allotted2 = 20,
  allotted3 = 21,
  allotted4 = 22,
  rotated3 = 23,
};

// Of a number from a file; nothing: no format has it.
std::optional<RowFormat> row_format_of(std::uint32_t number);

inline constexpr std::uint32_t kRowGroup = 32;  // channels that may share a scale

inline constexpr std::uint32_t kRowUnit = 16;  // dim is a multiple of it
std::uint32_t row_bytes(RowFormat format, std::uint32_t dim);
// A row's channels, by the definition of its format, rotated back where that is rotated: but for
// the rotation, and for how a fitted row's sums are rounded, the same floats as attention reads.
// `fit` and the row's number: of a format that is fitted.
void read_row(RowFormat format, const std::byte* row, std::uint32_t dim, float* out,
              const SideFit& fit = {}, std::uint32_t number = 0);

// Whether channels of a format share something by groups.
template <typename Format>
inline constexpr bool kGrouped = requires {
  requires Format::kGrouped;
};

inline constexpr int kRebuiltRows = 16;  // at a time: they lie on the stack
// Whether a format's struct is one of rows that are rebuilt.
template <typename Format>
inline constexpr bool kFitted = requires {
  requires Format::kFitted;
};

}  // namespace thermocline
