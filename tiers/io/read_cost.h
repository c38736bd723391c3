// What a read of a disk costs, and so how far apart two pieces may lie that are read as one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "tiers/io/sink.h"

namespace thermocline {

// Reads at the depth of a Sink cost each a fixed time and their bytes another. It decides only what
// is read, never what is answered.
struct ReadCost {
  double read_us = 16;         // of a read, however short; these two are a virtio disk's
  double bytes_per_us = 2400;  // beyond that
  bool measured = false;       // else assumed

  // Within what a disk can be: a measurement that other processes disturbed is cut to it.
  ReadCost clamped() const;
  // Reading so many bytes more costs as much as another read; whole pages, 0 to 32 of them.
  std::uint64_t gap_bytes() const;
};

// Writes an extent of `file` that begins at `offset` and is as long as `memory`, and reads it in
// small and in large pieces, as many at once as the sink takes. Takes a few milliseconds for 1 MiB;
// less than 512 KiB says nothing. Nothing: a transfer failed, or large reads took no longer than
// small ones, or it was not done by `deadline`. Transfers may then still be in flight, and file and
// memory stay the sink's until they are not. Nothing else may be in flight when it begins.
std::optional<ReadCost> measure_read_cost(Sink* sink, int file, std::uint64_t offset,
                                          std::span<std::byte> memory, Deadline deadline);

}  // namespace thermocline
