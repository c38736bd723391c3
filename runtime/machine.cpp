#include <algorithm>
#include <atomic>
#include <chrono>

#include "kernels/base/buffer.h"
#include "kernels/base/workers.h"
#include "runtime/thermocline.h"
#include "tiers/topology.h"

namespace thermocline {

Result<std::string> describe_machine() {
  TL_TRY_ASSIGN(const Topology machine, read_topology());
  return machine.text();
}

int usable_threads() { return Workers::usable(0); }

Result<double> measure_memory_bandwidth(int threads) {
  constexpr std::size_t kBytes = std::size_t{512} << 20, kPiece = std::size_t{1} << 20;
  constexpr int kPasses = 4;
  const Workers workers(threads);
  TL_TRY_ASSIGN(const Buffer buffer, Buffer::create(kBytes));
  const auto words = buffer.as<std::uint64_t>();
  constexpr std::size_t kPieceWords = kPiece / sizeof(std::uint64_t);
  const std::size_t pieces = words.size() / kPieceWords;
  std::atomic<std::uint64_t> seen{0};
  double best = 0;
  for (int pass = 0; pass < kPasses; ++pass) {
    const auto start = std::chrono::steady_clock::now();
    workers.parallel(pieces, 1, [&](std::size_t first, std::size_t last) {
      const auto piece = words.subspan(first * kPieceWords, (last - first) * kPieceWords);
      if (pass == 0) {
        std::fill(piece.begin(), piece.end(), std::uint64_t{1});
        return;
      }
      std::uint64_t sum = 0;
      for (const std::uint64_t word : piece) sum += word;
      seen += sum;
    });
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    if (pass > 0) best = std::max(best, static_cast<double>(kBytes) / took.count());
  }
  TL_CHECK(seen == words.size() * (kPasses - 1));
  return best;
}

}  // namespace thermocline
