#include "runtime/report.h"

namespace thermocline {
namespace {

constexpr CacheCounter kCounters[] = {
    {"steps", &CacheReport::steps},
    {"rows_read", &CacheReport::rows_read},
    {"rows_held", &CacheReport::rows_held},
    {"summaries_read", &CacheReport::summaries_read},
    {"codes_read", &CacheReport::codes_read},
    {"device_bytes_read", &CacheReport::device_bytes_read},
    {"device_bytes_copied", &CacheReport::device_bytes_copied},
    {"device_bytes_written", &CacheReport::device_bytes_written},
    {"device_bytes_fetched", &CacheReport::device_bytes_fetched},
    {"device_bytes_exchanged", &CacheReport::device_bytes_exchanged},
    {"host_bytes_read", &CacheReport::host_bytes_read},
    {"index_bytes_read", &CacheReport::index_bytes_read},
    {"disk_bytes_read", &CacheReport::disk_bytes_read},
    {"disk_reads", &CacheReport::disk_reads},
    {"disk_bytes_written", &CacheReport::disk_bytes_written},
    {"row_cache_hits", &CacheReport::row_cache_hits},
    {"row_cache_misses", &CacheReport::row_cache_misses},
    {"pages_verified", &CacheReport::pages_verified},
    {"pages_read_again", &CacheReport::pages_read_again},
    {"stall_ms", &CacheReport::stall_ms},
    {"attend_ms", &CacheReport::attend_ms},
    {"select_ms", &CacheReport::select_ms},
    {"seal_ms", &CacheReport::seal_ms},
    {"rows_sealed", &CacheReport::rows_sealed},
    {"rows_joined", &CacheReport::rows_joined},
};
static_assert(sizeof(CacheReport) == std::size(kCounters) * sizeof(std::uint64_t),
              "a counter without a line here");

}  // namespace

std::span<const CacheCounter> cache_counters() { return kCounters; }

CacheReport difference(const CacheReport& after, const CacheReport& before) {
  CacheReport out = after;
  for (const CacheCounter& counter : kCounters)
    std::visit([&](auto member) { out.*member -= before.*member; }, counter.member);
  return out;
}

CacheReport sum(const CacheReport& one, const CacheReport& other) {
  CacheReport out = one;
  for (const CacheCounter& counter : kCounters)
    std::visit([&](auto member) { out.*member += other.*member; }, counter.member);
  return out;
}

std::uint64_t MemoryPlan::total(const std::string& tier) const {
  std::uint64_t bytes = 0;
  for (const MemoryLine& line : lines)
    if (line.tier == tier) bytes += line.bytes;
  return bytes;
}

}  // namespace thermocline
