// What reading and writing the tiers cost. Plain numbers that only grow.
#pragma once

#include <cstdint>

namespace thermocline {

struct TierCounters {
  std::uint64_t device_bytes_read = 0;  // rows read where they are at home on the device
  std::uint64_t host_bytes_read = 0;    // rows read from host memory, row cache hits included
  std::uint64_t disk_bytes_read = 0;    // as read, whole pages
  std::uint64_t disk_reads = 0;         // read operations
  std::uint64_t disk_bytes_written = 0;
  std::uint64_t row_cache_hits = 0, row_cache_misses = 0;  // rows whose home is the disk
  std::uint64_t pages_verified = 0;                        // checksums that matched
  std::uint64_t pages_read_again = 0;                      // that did not match at first
  double stall_ms = 0;                                     // attention waited for the disk
};

}  // namespace thermocline
