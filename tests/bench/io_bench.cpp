// Random reads through each back end: MB/s by size and depth, and whether every byte was right.
// Usage: io_bench [directory [MiB a measurement]]. Exit 1: wrong data or an error.
#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "kernels/base/buffer.h"
#include "tiers/io/checksum.h"
#include "tiers/io/sink.h"
#include "tiers/store/scratch_file.h"

namespace thermocline {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::uint64_t kFileBytes = std::uint64_t{64} << 20;
constexpr int kRounds = 3;  // interleaved; the median counts, their spread is printed

struct File {
  ScratchFile scratch;
  std::vector<std::uint64_t> checksums;  // by page
};

Status wait_for_all(Sink* sink) {
  std::array<Completion, 64> done;
  while (sink->in_flight() > 0) {
    TL_TRY_ASSIGN(const std::size_t count,
                  sink->poll(done, Clock::now() + std::chrono::seconds(60)));
    if (count == 0) return fail(ErrorCode::io, "no transfer completed within a minute");
    for (std::size_t i = 0; i < count; ++i)
      if (done[i].error != 0) return fail(ErrorCode::io, "a transfer failed: ", done[i].error);
  }
  return {};
}

Result<File> written_file(const std::string& directory, Sink* sink) {
  File file;
  TL_TRY_ASSIGN(file.scratch, ScratchFile::create(directory, kFileBytes));
  TL_TRY(file.scratch.take(kFileBytes));
  TL_TRY_ASSIGN(const Buffer part, Buffer::create(std::size_t{1} << 20));
  std::mt19937_64 random(1);
  for (std::uint64_t offset = 0; offset < kFileBytes; offset += part.size()) {
    std::ranges::generate(part.as<std::uint64_t>(), std::ref(random));
    for (std::size_t at = 0; at < part.size(); at += kPageBytes)
      file.checksums.push_back(
          page_checksum(part.bytes().subspan(at, kPageBytes), file.checksums.size()));
    const Transfer write{.kind = Transfer::Kind::write,
                         .file = file.scratch.descriptor(),
                         .offset = offset,
                         .bytes = part.bytes(),
                         .tag = 0};
    TL_TRY(sink->submit({&write, 1}));
    TL_TRY(wait_for_all(sink));
  }
  return file;
}

// MB/s. Keeps `depth` reads in flight; each is verified when it arrives, as the runtime does.
Result<double> read_rate(Sink* sink, const File& file, std::size_t bytes, std::size_t depth,
                         std::size_t total) {
  TL_TRY_ASSIGN(const Buffer memory, Buffer::create(bytes * depth));
  std::mt19937_64 random(2);
  std::vector<std::uint64_t> offset(depth);
  const std::size_t reads = std::max(depth, total / bytes);
  std::size_t sent = 0, received = 0;
  const auto send = [&](std::size_t slot) {
    offset[slot] = random() % (kFileBytes / bytes) * bytes;
    const Transfer read{.file = file.scratch.descriptor(),
                        .offset = offset[slot],
                        .bytes = memory.bytes().subspan(slot * bytes, bytes),
                        .tag = slot};
    ++sent;
    return sink->submit({&read, 1});
  };
  const auto start = Clock::now();
  for (std::size_t slot = 0; slot < depth; ++slot) TL_TRY(send(slot));
  std::array<Completion, 32> done;
  while (received < reads) {
    TL_TRY_ASSIGN(const std::size_t count,
                  sink->poll(done, Clock::now() + std::chrono::seconds(60)));
    if (count == 0) return fail(ErrorCode::io, "no read completed within a minute");
    for (std::size_t i = 0; i < count; ++i, ++received) {
      const std::size_t slot = done[i].tag;
      if (done[i].error != 0) return fail(ErrorCode::io, "a read failed: ", done[i].error);
      for (std::size_t at = 0; at < bytes; at += kPageBytes) {
        const std::uint64_t page = (offset[slot] + at) / kPageBytes;
        if (page_checksum(memory.bytes().subspan(slot * bytes + at, kPageBytes), page) !=
            file.checksums[page])
          return fail(ErrorCode::corrupt, "page ", page, " is not what was written");
      }
      if (sent < reads) TL_TRY(send(slot));
    }
  }
  return static_cast<double>(reads * bytes) /
         std::chrono::duration<double, std::micro>(Clock::now() - start).count();
}

Status run(const std::string& directory, std::size_t total) {
  constexpr std::array kBackends = {"uring", "threads"};
  TL_TRY_ASSIGN(const ChosenSink writer, open_sink("auto", {}));
  TL_TRY_ASSIGN(const File file, written_file(directory, writer.sink.get()));
  std::printf("%s, %llu MiB file, %zu MiB a measurement, every page verified\n",
              file.scratch.direct() ? "O_DIRECT" : "buffered",
              static_cast<unsigned long long>(kFileBytes >> 20), total >> 20);
  std::printf("%6s %5s  %-22s %-22s MB/s: median (least-most)\n", "bytes", "depth", kBackends[0],
              kBackends[1]);
  for (const std::size_t bytes : {4096u, 16384u, 65536u, 262144u}) {
    for (const std::size_t depth : {std::size_t{8}, std::size_t{32}}) {
      std::array<std::vector<double>, kBackends.size()> rates;
      for (int round = 0; round < kRounds; ++round)
        for (std::size_t b = 0; b < kBackends.size(); ++b) {
          const auto opened = open_sink(kBackends[b], {.depth = depth, .threads = depth});
          if (!opened) continue;  // a dash in the table
          TL_TRY_ASSIGN(const double rate,
                        read_rate(opened->sink.get(), file, bytes, depth, total));
          rates[b].push_back(rate);
        }
      std::printf("%6zu %5zu", bytes, depth);
      for (auto& rate : rates) {
        std::ranges::sort(rate);
        if (rate.empty())
          std::printf("  %-22s", "-");
        else
          std::printf("  %7.0f (%5.0f-%5.0f)  ", rate[rate.size() / 2], rate.front(), rate.back());
      }
      std::printf("\n");
    }
  }
  return {};
}

}  // namespace
}  // namespace thermocline

int main(int count, char** words) {
  const char* temporary = std::getenv("TMPDIR");
  const std::string directory =
      count > 1 ? words[1] : std::string(temporary ? temporary : "/tmp") + "/thermocline-io-bench";
  const long mebibytes = count > 2 ? std::strtol(words[2], nullptr, 10) : 4;
  if (mebibytes < 1 || mebibytes > 1 << 20) {
    std::fprintf(stderr, "usage: io_bench [directory [MiB a measurement]]\n");
    return 2;
  }
  const auto done = thermocline::run(directory, static_cast<std::size_t>(mebibytes) << 20);
  // Made by us if it is the default; a directory that holds anything stays.
  std::error_code ignored;
  if (count < 2) std::filesystem::remove(directory, ignored);
  if (!done) std::fprintf(stderr, "io_bench: %s\n", done.error().message.c_str());
  return done ? 0 : 1;
}
