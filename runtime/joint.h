// Which segments of a layer are formed into one. Those that decode steps leave are as short as
// `steady.seal`, and each costs every later step folds, clusters and a look of its own: once the
// rows of a cell of Method::joint_rows() are sealed, what is short in it becomes one segment.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

#include "runtime/method.h"

namespace thermocline {

// Neighbours: `count` of them, from number `first` on.
struct Joint {
  std::size_t first = 0, count = 0;
  std::uint32_t rows = 0;  // of all of them
};

// The first one that is due from the `from`-th segment on, of `count` that follow each other from
// the sinks to the tail, the i-th of rows_of(i) rows. Segments of half a cell and more stay as they
// are, and so does what crosses a cell's line.
template <typename RowsOf>
std::optional<Joint> next_joint(const Method& method, std::size_t count, const RowsOf& rows_of,
                                std::size_t from = 0) {
  std::uint32_t sealed = 0;
  for (std::size_t i = 0; i < count; ++i) sealed += rows_of(i);
  Joint joint;
  std::uint32_t line = 0;  // where the cell of the joint ends, in rows from the sinks
  const auto is_due = [&] { return joint.count > 1 && line <= sealed; };
  std::uint32_t at = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const std::uint32_t rows = rows_of(i), end = method.joint_line(at);
    const bool is_short = 2 * rows < method.joint_rows() && at + rows <= end && i >= from;
    if (!is_short || end != line) {
      if (is_due()) return joint;
      joint = {is_short ? i : i + 1, 0, 0};
      line = end;
    }
    if (is_short) {
      ++joint.count;
      joint.rows += rows;
    }
    at += rows;
  }
  return is_due() ? std::optional(joint) : std::nullopt;
}

}  // namespace thermocline
