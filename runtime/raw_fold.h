// A fold of raw rows in position order: views of 64 rows each, from its first row on.
#pragma once

#include <algorithm>

#include "tiers/block.h"

namespace thermocline {

struct RawFold {
  BlockView views[kFoldRows / kBlockRows];
  Fold fold;  // refers to `views`

  RawFold(const RawRows& rows, std::uint32_t head, std::uint32_t first, std::uint32_t count) {
    TL_CHECK(count <= kFoldRows);
    const std::uint32_t stride = rows.layout.bytes();
    int n = 0;
    for (std::uint32_t r = 0; r < count; r += kBlockRows, ++n) {
      const std::byte* row = rows.row(head, first + r);
      const int in_block = static_cast<int>(std::min<std::uint32_t>(kBlockRows, count - r));
      views[n] = {row, row + rows.layout.key_bytes, first_rows(in_block), nullptr};
    }
    fold = {rows.layout.key_format,
            rows.layout.value_format,
            stride,
            stride,
            {views, static_cast<std::size_t>(n)}};
  }
  RawFold(const RawFold&) = delete;
  RawFold& operator=(const RawFold&) = delete;
};

}  // namespace thermocline
