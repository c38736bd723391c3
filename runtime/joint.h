// Which segments of a layer are formed into one. Those that decode steps leave are as short as
// `steady.seal`, and each costs every later step folds, clusters and a look of its own: once the
// rows of a cell of Method::joint_rows() are sealed, what is short in it becomes one segment.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>

#include "runtime/method.h"

namespace thermocline {

// Neighbours: `count` of them, from number `first` on.
struct Joint {
  std::size_t first = 0, count = 0;
  std::uint32_t rows = 0;  // of all of them, those that are kept no more included
};

// The first row of the newest full cell, of so many rows that have left the tail. Cells before it
// stay as they are: so what steps after a save join, of what that save refers to, is two cells at
// most (and what a cut has left), and can be planned.
inline std::uint32_t newest_cell(const Method& method, std::uint32_t sealed) {
  const std::uint32_t rows = method.joint_rows(), in_cell = sealed % method.cell_rows();
  if (in_cell >= rows) return sealed - in_cell + (in_cell / rows - 1) * rows;
  const std::uint32_t before = std::min(sealed - in_cell, method.cell_rows());
  return before == 0 ? 0 : sealed - in_cell - before + (before - 1) / rows * rows;
}

// The first segment that begins at this row or later.
template <typename RowsOf>
std::size_t segment_from(std::uint32_t row, std::size_t count, const RowsOf& rows_of) {
  std::size_t i = 0;
  for (std::uint32_t at = 0; i < count && at < row; ++i) at += rows_of(i);
  return i;
}

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
