#include "tools/thermocline/machine.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <fstream>
#include <sstream>

#include "kernels/base/buffer.h"
#include "kernels/base/workers.h"

namespace thermocline {
namespace {

// The rest of the first line of a file that begins with `key`, blanks and colons skipped.
std::string field(const char* path, std::string_view key) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    if (!line.starts_with(key)) continue;
    const std::size_t at = line.find_first_not_of(" \t:", key.size());
    return at == std::string::npos ? std::string() : line.substr(at);
  }
  return {};
}

}  // namespace

std::string cpu_name() {
  const std::string name = field("/proc/cpuinfo", "model name");
  return name.empty() ? "unknown" : name;
}

int usable_threads() { return Workers(0).threads(); }

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

std::uint64_t peak_resident_bytes() {
  return std::strtoull(field("/proc/self/status", "VmHWM").c_str(), nullptr, 10) * 1024;
}

void forget_peak() {
  std::ofstream file("/proc/self/clear_refs");
  file << "5";
}

double machine_load() {
  std::ifstream file("/proc/loadavg");
  double load = -1;
  file >> load;
  return load;
}

}  // namespace thermocline
