// What a run cost: where time and bytes went. Plain numbers, summed over steps.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "kernels/base/tier_counters.h"

namespace thermocline {

// Counters of a cache. All of them only grow. Rows are exact ones; in decode, sinks and tail are
// among those read from host memory, or on a device where rows stay there.
struct CacheReport : TierCounters {
  std::uint64_t steps = 0;             // decode steps committed
  std::uint64_t rows_read = 0;         // exact rows read by decode, over layers and KV heads
  std::uint64_t rows_held = 0;         // rows that full attention would have read there
  std::uint64_t summaries_read = 0;    // estimate rows read
  std::uint64_t codes_read = 0;        // rows attended from their codes
  std::uint64_t index_bytes_read = 0;  // codes and summaries scanned
  // With a GPU that attends, beside rows: what it is asked, and the states that it gives back; or
  // where rows stay there, what a step appended.
  std::uint64_t device_bytes_exchanged = 0;
  double attend_ms = 0;  // of attend(), selecting included
  double select_ms = 0;  // selecting by the host, of all threads together
  double seal_ms = 0;
  std::uint64_t rows_sealed = 0;
  std::uint64_t rows_joined = 0;  // of segments that became one
};

// All of them by the names that programs read, in the order in which they are shown.
struct CacheCounter {
  std::string_view name;  // ends in its unit, unless it counts
  std::variant<std::uint64_t CacheReport::*, double CacheReport::*> member;
};
std::span<const CacheCounter> cache_counters();
// What a stretch cost, of the counters at its ends; what two stretches did together.
CacheReport difference(const CacheReport& after, const CacheReport& before);
CacheReport sum(const CacheReport& one, const CacheReport& other);

// How a layer's sealed keys or values are held where they are sums of a few basis vectors, in one
// timeline; or those of several layers together.
struct RankReport {
  std::uint32_t layer = 0, layers = 1;  // the first; how many
  std::string side;                     // "keys", "values"
  std::uint32_t rank = 0;               // vectors, in the segment that has most
  std::uint32_t channels = 0;           // of all KV heads, that they are instead of
  std::uint32_t segments = 0, bases = 0;
  double captured = 1.0;  // share of the squares of what was sealed, rows of segments alike
};

// What reading the disk costs, by which neighbouring misses are read as one.
struct DiskReadCost {
  double read_us = 0;       // of a read, however short
  double bytes_per_us = 0;  // beyond that
  bool measured = false;    // when the cache was opened; else assumed
};

// Bytes by tier and purpose: what a cache will hold (a plan) or holds (usage).
inline constexpr char kWorkspace[] = "workspace";
inline constexpr char kMapped[] = "mapped";
struct MemoryLine {
  // "device", "host", "disk"; or, beside what budgets bound, kWorkspace: host memory to compute in;
  // kMapped: a file's pages, which the system reads when they are used and may drop again.
  std::string tier;
  std::string purpose;  // "tail", "index", "rows" ...
  std::uint64_t bytes = 0;
  std::uint64_t peak_bytes = 0;  // of usage; equal to bytes in a plan
};
struct MemoryPlan {
  std::vector<MemoryLine> lines;
  // By tier, the most at one time: of usage, what its lines' peaks need not add up to.
  std::map<std::string, std::uint64_t> peak_bytes;
  std::vector<std::string> notes;  // of a plan: what the cache would say (KvCache::notes)
  // Of a plan: what the process may need beside all of this, in no ledger: code, stacks, the text,
  // what segments are formed with, what the allocator keeps.
  std::uint64_t allowance_bytes = 0;
  std::uint64_t total(const std::string& tier) const;
};

}  // namespace thermocline
