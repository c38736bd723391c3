// What reading and writing the tiers cost. Plain numbers that only grow.
#pragma once

#include <cstdint>

namespace thermocline {

struct TierCounters {
  std::uint64_t device_bytes_read = 0;     // rows read on the device, of which it has all or copies
  std::uint64_t device_bytes_copied = 0;   // of them, from a GPU for the host to read
  std::uint64_t device_bytes_written = 0;  // what was sealed there, to a GPU
  std::uint64_t device_bytes_fetched = 0;  // rows at home elsewhere, to a GPU that attends them
  // Rows read from host memory, row cache hits and those that a GPU fetched included.
  std::uint64_t host_bytes_read = 0;
  std::uint64_t disk_bytes_read = 0;  // as read, whole pages, once it is asked for
  std::uint64_t disk_reads = 0;       // read operations
  std::uint64_t disk_bytes_written = 0;
  // Of rows that are cached above their home, in host memory or on a GPU that fetches them: read
  // from a copy, wherever that was, or from their home.
  std::uint64_t row_cache_hits = 0, row_cache_misses = 0;
  std::uint64_t pages_verified = 0;    // checksums that matched
  std::uint64_t pages_read_again = 0;  // that did not match at first
  double stall_ms = 0;                 // waited for a disk, or for copies from a GPU

  TierCounters& operator+=(const TierCounters& more);
};

inline TierCounters& TierCounters::operator+=(const TierCounters& more) {
  device_bytes_read += more.device_bytes_read;
  device_bytes_copied += more.device_bytes_copied;
  device_bytes_written += more.device_bytes_written;
  device_bytes_fetched += more.device_bytes_fetched;
  host_bytes_read += more.host_bytes_read;
  disk_bytes_read += more.disk_bytes_read;
  disk_reads += more.disk_reads;
  disk_bytes_written += more.disk_bytes_written;
  row_cache_hits += more.row_cache_hits;
  row_cache_misses += more.row_cache_misses;
  pages_verified += more.pages_verified;
  pages_read_again += more.pages_read_again;
  stall_ms += more.stall_ms;
  return *this;
}
static_assert(sizeof(TierCounters) == 13 * sizeof(std::uint64_t), "a counter without a line here");

}  // namespace thermocline
