// Random reads through each back end: MB/s by size and depth, the share of the best rate of the run
// (the measured peak of this disk), and whether every byte was right. fio_bench.py runs it beside
// fio.
// Usage: io_bench [directory [MiB a measurement [bytes depth]]]. Exit 1: wrong data or an error.
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
struct Way {
  std::string name, backend;
  std::size_t checked;  // one read of so many is verified
};

// Every back end with all that it reads verified, and the first with less, as fio does none.
std::vector<Way> ways() {
  std::vector<Way> all;
  for (const std::string_view name : sink_names())
    all.push_back({std::string(name), std::string(name), 1});
  all.push_back({"uring, 1 of 16 verified", "uring", 16});
  return all;
}

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

// MB/s. Hands over twice as many reads as the ring holds, to memory that the sink keeps, as the
// runtime does: the ring is filled while what arrived is verified.
Result<double> read_rate(Sink* sink, const File& file, std::size_t bytes, std::size_t depth,
                         std::size_t total, std::size_t checked) {
  const std::size_t slots = 2 * depth;
  TL_TRY_ASSIGN(const Buffer memory, Buffer::create(bytes * slots));
  std::mt19937_64 random(2);
  (void)sink->keep(memory.bytes());
  std::vector<std::uint64_t> offset(slots);
  std::vector<Transfer> more;
  const std::size_t reads = std::max(slots, total / bytes);
  std::size_t sent = 0, received = 0;
  const auto draw = [&](std::size_t slot) {
    offset[slot] = random() % (kFileBytes / bytes) * bytes;
    more.push_back({.kind = Transfer::Kind::read,
                    .file = file.scratch.descriptor(),
                    .offset = offset[slot],
                    .bytes = memory.bytes().subspan(slot * bytes, bytes),
                    .tag = slot});
    ++sent;
  };
  const auto start = Clock::now();
  for (std::size_t slot = 0; slot < slots; ++slot) draw(slot);
  std::array<Completion, 32> done;
  while (received < reads) {
    TL_TRY(sink->submit(more));
    more.clear();
    TL_TRY_ASSIGN(const std::size_t count,
                  sink->poll(done, Clock::now() + std::chrono::seconds(60)));
    if (count == 0) return fail(ErrorCode::io, "no read completed within a minute");
    for (std::size_t i = 0; i < count; ++i, ++received) {
      const std::size_t slot = done[i].tag;
      if (done[i].error != 0) return fail(ErrorCode::io, "a read failed: ", done[i].error);
      for (std::size_t at = 0; at < bytes && received % checked == 0; at += kPageBytes) {
        const std::uint64_t page = (offset[slot] + at) / kPageBytes;
        if (page_checksum(memory.bytes().subspan(slot * bytes + at, kPageBytes), page) !=
            file.checksums[page])
          return fail(ErrorCode::corrupt, "page ", page, " is not what was written");
      }
      if (sent < reads) draw(slot);
    }
  }
  return static_cast<double>(reads * bytes) /
         std::chrono::duration<double, std::micro>(Clock::now() - start).count();
}

// One line of the table. rates: of each way, sorted; empty where it cannot run.
struct Measured {
  std::size_t bytes = 0, depth = 0;
  std::vector<std::vector<double>> rates;
};

Result<Measured> measure(const File& file, std::size_t bytes, std::size_t depth,
                         std::size_t total) {
  const std::vector<Way> all = ways();
  Measured line{bytes, depth, std::vector<std::vector<double>>(all.size())};
  for (int round = 0; round < kRounds; ++round)
    for (std::size_t w = 0; w < all.size(); ++w) {
      const auto opened = open_sink(all[w].backend, {.depth = depth, .threads = depth});
      if (!opened) continue;  // a dash in the table
      TL_TRY_ASSIGN(const double rate,
                    read_rate(opened->sink.get(), file, bytes, depth, total, all[w].checked));
      line.rates[w].push_back(rate);
    }
  for (auto& rate : line.rates) std::ranges::sort(rate);
  return line;
}

void print(const Measured& line, double peak, std::size_t total) {
  const std::size_t moved = kRounds * std::max(2 * line.depth, total / line.bytes) * line.bytes;
  std::printf("%6zu %5zu %6zu", line.bytes, line.depth, moved >> 20);
  for (const auto& rate : line.rates) {
    if (rate.empty())
      std::printf("  %-28s", "-");
    else
      std::printf("  %7.0f %3.0f %% (%5.0f-%5.0f)   ", rate[rate.size() / 2],
                  rate[rate.size() / 2] / peak * 100, rate.front(), rate.back());
  }
  std::printf("\n");
}

struct Shape {
  std::size_t bytes = 0, depth = 0;
};

Status run(const std::string& directory, std::size_t total, std::span<const Shape> shapes) {
  TL_TRY_ASSIGN(const ChosenSink writer, open_sink("auto", {}));
  TL_TRY_ASSIGN(const File file, written_file(directory, writer.sink.get()));
  std::vector<Measured> lines;
  double peak = 0;
  for (const auto& [bytes, depth] : shapes) {
    TL_TRY_ASSIGN(Measured line, measure(file, bytes, depth, total));
    for (const auto& rate : line.rates)
      if (!rate.empty()) peak = std::max(peak, rate[rate.size() / 2]);
    lines.push_back(std::move(line));
  }
  std::uint64_t hash = 0;
  for (const std::uint64_t checksum : file.checksums) hash = hash * 31 + checksum;
  std::printf("%s, %llu MiB file, pages verified, hash %016llx, peak %.0f MB/s\n",
              file.scratch.direct() ? "O_DIRECT" : "buffered",
              static_cast<unsigned long long>(kFileBytes >> 20),
              static_cast<unsigned long long>(hash), peak);
  std::printf("%6s %5s %6s", "bytes", "depth", "MiB");
  for (const Way& way : ways()) std::printf("  %-28s", way.name.c_str());
  std::printf("\n");
  std::printf("%19s  MB/s: median, of the peak, (least-most)\n", "");
  for (const Measured& line : lines) print(line, peak, total);
  return {};
}

}  // namespace
}  // namespace thermocline

int main(int count, char** words) {
  const char* temporary = std::getenv("TMPDIR");
  const std::string directory =
      count > 1 ? words[1] : std::string(temporary ? temporary : "/tmp") + "/thermocline-io-bench";
  const long mebibytes = count > 2 ? std::strtol(words[2], nullptr, 10) : 4;
  const long bytes = count > 3 ? std::strtol(words[3], nullptr, 10) : 4096;
  const long depth = count > 4 ? std::strtol(words[4], nullptr, 10) : 8;
  if (mebibytes < 1 || mebibytes > 1 << 20 || bytes < 4096 || bytes > 1 << 20 ||
      bytes % 4096 != 0 || depth < 1 || depth > 256) {
    std::fprintf(stderr, "usage: io_bench [directory [MiB a measurement [bytes depth]]]\n");
    return 2;
  }
  std::vector<thermocline::Shape> shapes;
  if (count > 3)
    shapes.push_back({static_cast<std::size_t>(bytes), static_cast<std::size_t>(depth)});
  else
    for (const std::size_t size : {4096u, 16384u, 65536u, 262144u})
      for (const std::size_t deep : {8u, 32u}) shapes.push_back({size, deep});
  const auto done = thermocline::run(directory, static_cast<std::size_t>(mebibytes) << 20, shapes);
  // Made by us if it is the default; a directory that holds anything stays.
  std::error_code ignored;
  if (count < 2) std::filesystem::remove(directory, ignored);
  if (!done) std::fprintf(stderr, "io_bench: %s\n", done.error().message.c_str());
  return done ? 0 : 1;
}
