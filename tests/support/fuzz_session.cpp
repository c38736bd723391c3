#include "tests/support/fuzz_session.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <string>

#include "retrieval/index/sketch_index.h"
#include "runtime/session_manifest.h"
#include "tiers/io/descriptor.h"
#include "tiers/segment_record.h"
#include "tiers/store/publication.h"

namespace thermocline::test {
namespace {

void check_refusal(const Error& error) {
  TL_CHECK(error.message.find("fuzzed") == 0);
  TL_CHECK(error.message.find('\n') == std::string::npos);
}

Descriptor file_of(std::span<const std::byte> bytes) {
  Descriptor file(::memfd_create("fuzzed", MFD_CLOEXEC));
  TL_CHECK(file.open());
  TL_CHECK(::pwrite(file.number(), bytes.data(), bytes.size(), 0) ==
           static_cast<ssize_t>(bytes.size()));
  return file;
}

void read_file(std::span<const std::byte> bytes) {
  const Descriptor file = file_of(bytes);
  const auto published = read_publication(file.number(), "fuzzed");
  if (!published) return check_refusal(published.error());
  std::uint64_t from = kSessionHeaderBytes;
  for (const Extent& extent : published->extents) {
    TL_CHECK(extent.bytes > 0 && extent.offset % kPageBytes == 0 && extent.offset >= from);
    from = extent.offset + extent.bytes;
    TL_CHECK(from <= bytes.size());
  }
}

void read_record(std::span<const std::byte> content) {
  std::vector<std::byte> file(kSessionHeaderBytes + round_up(content.size() + 1, kPageBytes));
  std::copy(content.begin(), content.end(),
            file.begin() + static_cast<std::ptrdiff_t>(kSessionHeaderBytes));
  const auto header =
      encode_header(2, kSessionHeaderBytes, std::span(file).subspan(kSessionHeaderBytes));
  TL_CHECK(header.has_value());
  std::copy_n(header->data(), kPageBytes, file.begin());
  read_file(file);
}

void read_manifest(std::span<const std::byte> bytes) {
  const auto manifest = SessionManifest::decode(bytes, "fuzzed");
  if (!manifest) return check_refusal(manifest.error());
  // What was understood is written as it was read.
  const std::vector<std::byte> again = manifest->encode();
  TL_CHECK(std::equal(again.begin(), again.end(), bytes.begin(), bytes.end()));
}

void read_segment(std::span<const std::byte> bytes) {
  const auto record = SegmentRecord::decode(bytes, "fuzzed");
  if (!record) return check_refusal(record.error());
  TL_CHECK(record->rows.bytes == record->head_bytes() * record->segment.heads);
  TL_CHECK(record->checksums.size() * kPageBytes == record->rows.bytes);
  std::vector<bool> seen(record->segment.rows);
  for (std::uint32_t h = 0; h < record->segment.heads; ++h, seen.assign(seen.size(), false))
    for (std::uint32_t r = 0; r < record->segment.rows; ++r) {
      const std::uint32_t at = record->segment.position(h, r) - record->segment.first_position;
      TL_CHECK(at < record->segment.rows && !seen[at]);
      seen[at] = true;
    }
}

void read_index(std::span<const std::byte> bytes) {
  if (bytes.size() < 4) return;
  const auto at = [&](std::size_t i) { return std::to_integer<std::uint32_t>(bytes[i]); };
  const std::uint32_t heads = 1 + at(0) % 4, rows = 16 * (1 + at(1)), dim = 16 * (1 + at(2) % 8);
  const std::uint32_t clusters = 1 + at(3) % 32;
  RecordReader in(bytes.subspan(4), "fuzzed");
  // Two bits first, so that what was found with those stays found.
  const int bits = 1 << (1 + at(2) / 8) % 3;
  if (!sketch_takes(bits, dim)) return;
  const auto index = SketchIndex::load(bits, heads, rows, dim, clusters, &in);
  if (!index) return check_refusal(index.error());
  for (std::uint32_t h = 0; h < heads; ++h) {
    const auto starts = (*index)->starts(h);
    for (std::uint32_t c = 0; c < clusters; ++c) TL_CHECK(starts[c] <= starts[c + 1]);
    TL_CHECK(starts[clusters] == rows);
  }
}

}  // namespace

void fuzz_session(std::span<const std::byte> input) {
  if (input.empty()) return;
  const auto rest = input.subspan(1);
  switch (std::to_integer<int>(input[0])) {
    case 0:
      return read_file(rest);
    case 1:
      return read_record(rest);
    case 2:
      return read_manifest(rest);
    case 3:
      return read_segment(rest);
    case 4:
      return read_index(rest);
    default:
      return;
  }
}

}  // namespace thermocline::test
