// What a run cost: where time and bytes went. Plain numbers, summed over steps.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

namespace thermocline {

// Counters of a cache. All of them only grow; subtract two to see a stretch.
struct CacheReport {
  std::uint64_t steps = 0;               // decode steps committed
  std::uint64_t rows_attended = 0;       // exact rows read by decode, over layers and KV heads
  std::uint64_t rows_held = 0;           // rows that full attention would have read there
  std::uint64_t summaries_attended = 0;  // estimate rows read
  std::uint64_t host_bytes_read = 0;     // exact rows read from host memory (hits included)
  std::uint64_t index_bytes_read = 0;    // codes and summaries scanned
  std::uint64_t disk_bytes_read = 0;     // as read, whole pages
  std::uint64_t disk_reads = 0;          // read operations
  std::uint64_t disk_bytes_written = 0;
  std::uint64_t row_cache_hits = 0, row_cache_misses = 0;  // rows whose home is the disk
  std::uint64_t pages_verified = 0;                        // checksums that matched
  std::uint64_t pages_read_again = 0;                      // that did not match at first
  double stall_ms = 0;                                     // attention waited for the disk
  double attend_ms = 0, select_ms = 0, seal_ms = 0;
  std::uint64_t rows_sealed = 0;
};

// Bytes by tier and purpose: what a cache will hold (a plan) or holds (usage).
struct MemoryLine {
  std::string tier;     // "host", "disk"
  std::string purpose;  // "tail", "index", "rows" ...
  std::uint64_t bytes = 0;
  std::uint64_t peak_bytes = 0;  // of usage; equal to bytes in a plan
};
struct MemoryPlan {
  std::vector<MemoryLine> lines;
  std::uint64_t total(const std::string& tier) const;
};

}  // namespace thermocline
