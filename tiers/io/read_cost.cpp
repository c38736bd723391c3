#include "tiers/io/read_cost.h"

#include <algorithm>
#include <random>
#include <vector>

#include "kernels/base/buffer.h"

namespace thermocline {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::size_t kLargeBytes = std::size_t{64} << 10;
constexpr std::size_t kFewestLarge = 8;  // fewer would not fill the depth that counts
constexpr int kRounds = 3;               // the best one counts: others were disturbed

// Whether all of them were carried out, by the deadline.
bool carry_out(Sink* sink, std::span<const Transfer> transfers, Deadline deadline) {
  if (!sink->submit(transfers)) return false;
  Completion done[32];
  bool well = true;
  for (std::size_t left = transfers.size(); left > 0;) {
    const auto count = sink->poll(done, deadline);
    if (!count || *count == 0) return false;
    for (std::size_t i = 0; i < *count; ++i) well = well && done[i].error == 0;
    left -= *count;
  }
  return well;
}

// Transfers of `bytes` each, over all of `memory`, each to its place.
std::vector<Transfer> pieces(Transfer::Kind kind, int file, std::uint64_t offset,
                             std::span<std::byte> memory, std::size_t bytes) {
  std::vector<Transfer> all;
  for (std::size_t at = 0; at + bytes <= memory.size(); at += bytes) {
    Transfer one;
    one.kind = kind;
    one.file = file;
    one.offset = offset + at;
    one.bytes = memory.subspan(at, bytes);
    one.tag = all.size();
    all.push_back(one);
  }
  return all;
}

}  // namespace

ReadCost ReadCost::clamped() const {
  ReadCost cost = *this;
  cost.read_us = std::clamp(read_us, 1.0, 1000.0);
  cost.bytes_per_us = std::clamp(bytes_per_us, 20.0, 20000.0);
  return cost;
}

std::uint64_t ReadCost::gap_bytes() const {
  constexpr std::uint64_t kMostPages = 32;  // half of the longest read
  const ReadCost sane = clamped();
  const auto pages = static_cast<std::uint64_t>(sane.read_us * sane.bytes_per_us) / kPageBytes;
  return std::min(pages, kMostPages) * kPageBytes;
}

std::optional<ReadCost> measure_read_cost(Sink* sink, int file, std::uint64_t offset,
                                          std::span<std::byte> memory, Deadline deadline) {
  if (memory.size() < kFewestLarge * kLargeBytes) return std::nullopt;
  memory = memory.first(memory.size() / kLargeBytes * kLargeBytes);
  // What was never written is answered without the disk, and zeros may be.
  std::mt19937_64 random(1);
  for (std::size_t at = 0; at < memory.size(); ++at)
    memory[at] = static_cast<std::byte>((at * 0x9e3779b97f4a7c15ull) >> 56);
  if (!carry_out(sink, pieces(Transfer::Kind::write, file, offset, memory, kLargeBytes), deadline))
    return std::nullopt;

  auto small = pieces(Transfer::Kind::read, file, offset, memory, kPageBytes);
  auto large = pieces(Transfer::Kind::read, file, offset, memory, kLargeBytes);
  std::ranges::shuffle(small, random);
  std::ranges::shuffle(large, random);
  small.resize(2 * large.size());
  double small_us = 0, large_us = 0;
  for (int round = 0; round < kRounds; ++round)
    for (const auto& [reads, best] : {std::pair(&small, &small_us), std::pair(&large, &large_us)}) {
      const auto start = Clock::now();
      if (!carry_out(sink, *reads, deadline)) return std::nullopt;
      const double each = std::chrono::duration<double, std::micro>(Clock::now() - start).count() /
                          static_cast<double>(reads->size());
      *best = round == 0 ? each : std::min(*best, each);
    }
  if (large_us <= small_us) return std::nullopt;  // somebody else's time, not the disk's
  ReadCost cost;
  cost.measured = true;
  cost.bytes_per_us = static_cast<double>(kLargeBytes - kPageBytes) / (large_us - small_us);
  cost = cost.clamped();
  cost.read_us = small_us - static_cast<double>(kPageBytes) / cost.bytes_per_us;
  return cost.clamped();
}

}  // namespace thermocline
