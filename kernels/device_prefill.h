// A prefill's attention by a device: many queries of one timeline over rows that lie in its memory,
// or that it is sent. Queries of a layer go over once, their states stay there over all rows, and
// results come back once.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/attend.h"
#include "kernels/base/buffer.h"
#include "kernels/base/error.h"
#include "kernels/base/view.h"

namespace thermocline {

struct PrefillShape {
  HeadShape head;
  std::uint32_t kv_heads = 0;
  std::uint32_t rows = 0, first_position = 0;  // queries, in each head, of consecutive positions
  std::uint32_t window = 0;  // of masked rows only the last `window` positions; 0: all before

  constexpr std::uint32_t q_heads() const { return kv_heads * head.heads; }
  // A query as it is sent: divided by query_power(), as f16, then that as a float.
  constexpr std::uint32_t query_bytes() const { return head.key_dim * 2 + kQueryTail; }
  constexpr std::uint64_t query_row_bytes() const {
    return std::uint64_t{q_heads()} * query_bytes();
  }
  constexpr std::uint64_t result_row_bytes() const {
    return std::uint64_t{q_heads()} * head.value_dim * sizeof(float);
  }

  static constexpr std::uint32_t kQueryTail = 16;  // which leaves the next one aligned
};

// So that 16 bits are enough for queries of any size: the largest channel is then in the upper half
// of f16's range, and those down to 2^-28 of it keep 11 bits.
inline float query_power(std::span<const float> query) {
  float largest = 0;
  for (const float x : query) largest = std::max(largest, std::abs(x));
  int exponent = 0;
  std::frexp(largest, &exponent);
  return std::ldexp(1.0f, std::max(exponent, -100) - 15);
}

// Rows of one KV head that lie one after the other, each its key and then its value. They are taken
// kBlockRows at a time, in slots that are cut at multiples of that: a query's bits depend on
// itself, on the rows that it sees and on the slots in which they lie, and on nothing else.
struct RowStretch {
  const std::byte* rows = nullptr;
  std::uint32_t head = 0, count = 0;
  std::uint32_t first_slot = 0;      // of the first row
  std::uint32_t first_position = 0;  // likewise; only where rows are masked
};

// What the rows of a launch have in common.
struct StretchFormat {
  RowFormat key = RowFormat::f16, value = RowFormat::f16;
  std::uint32_t key_bytes = 0, row_bytes = 0;
  bool masked = false;  // false: every query sees all of them
};

// What it takes on the device, and on the host, pinned; `piece`: of what is sent, or comes back, at
// a time.
struct PrefillBytes {
  std::uint64_t device = 0, host = 0, piece = 0;
};

// One thread at a time. What was begun and not finished, since a step was given up, is dropped by
// the next begin().
class DevicePrefill {
 public:
  static constexpr std::size_t kMostStretches = 4096;  // in a launch

  virtual ~DevicePrefill() = default;

  // Begins a layer: queries that have seen nothing. The shape's memory is no more than was planned.
  virtual Status begin(const PrefillShape& shape) = 0;

  // Pinned memory for what is sent next, PrefillBytes::piece of it; two take turns. Waits until
  // what it had last has been copied.
  virtual Result<std::span<std::byte>> outbox() = 0;

  // Sends the queries of so many rows from outbox(): [rows][q_heads] of
  // PrefillShape::query_bytes(). All are sent before the first attend().
  virtual Status send_queries(std::uint32_t first, std::uint32_t rows) = 0;

  // Queues attention of all queries over stretches that ascend by head, at most kMostStretches of
  // them; in each head after what it had before. `sent` is 0: they lie where the device has them,
  // and stay there until results() has returned. Else they all lie in the first `sent` bytes of
  // outbox(), which are copied before.
  virtual Status attend(const StretchFormat& format, std::span<const RowStretch> stretches,
                        std::uint64_t sent) = 0;

  // Waits for the results [rows][q_heads * value_dim] of the rows from `first` on, as many as there
  // is room for in a piece; zeros where nothing was seen. On the host until the next call, which
  // is for those behind them.
  virtual Result<MatView<const float>> results(std::uint32_t first) = 0;
};

// For such a layer, or one of fewer queries, whose rows are at most `row_bytes` long, key and value
// together. PrefillBytes::piece is `piece`, but has room for kFoldRows rows of one KV head, for
// kBlockRows of all, and for one row of queries and of results.
PrefillBytes prefill_bytes(const PrefillShape& shape, std::uint32_t row_bytes, std::uint64_t piece);

}  // namespace thermocline
