#include "tiers/store/publication.h"

#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <optional>

#include "tiers/io/checksum.h"
#include "tiers/io/errno_text.h"
#include "tiers/io/read_fully.h"
#include "tiers/record.h"
#include "tiers/size_text.h"

namespace thermocline {
namespace {

constexpr std::array<char, 8> kMagic = {'T', 'L', 'S', 'E', 'S', 'S', '\x1a', '\n'};

struct Header {
  std::array<char, 8> magic = kMagic;
  std::uint32_t version = kSessionVersion, page_bytes = kPageBytes;
  std::uint64_t generation = 0, record_offset = 0, record_bytes = 0, record_checksum = 0;
  std::uint64_t checksum = 0;  // of what is before it
};

std::uint64_t checksum_of(const Header& header) {
  const auto bytes = std::as_bytes(std::span(&header, 1));
  return page_checksum(bytes.first(bytes.size() - sizeof(header.checksum)), 0);
}

// Nothing: this page is no whole header of this version.
std::optional<Header> parse_header(const std::byte* page) {
  Header header;
  std::memcpy(&header, page, sizeof(header));
  const bool sound = header.magic == kMagic && header.version == kSessionVersion &&
                     header.page_bytes == kPageBytes && header.checksum == checksum_of(header);
  return sound ? std::optional(header) : std::nullopt;
}

tl::unexpected<Error> why_no_header(const std::string& name, std::span<const std::byte> pages) {
  for (std::size_t at = 0; at < pages.size(); at += kPageBytes) {
    Header header;
    std::memcpy(&header, pages.data() + at, sizeof(header));
    if (header.magic != kMagic) continue;
    if (header.version != kSessionVersion)
      return fail(ErrorCode::unsupported, name, ": it is of session format ", header.version,
                  ", this build reads ", kSessionVersion, ": make it anew");
    return fail(ErrorCode::corrupt, name,
                ": its header is damaged (the checksum does not match): remove it with "
                "'thermocline session rm'");
  }
  return fail(ErrorCode::corrupt, name, ": it is not a session file: name another");
}

Status check_extent(const RecordReader& in, const Extent& extent, std::uint64_t from,
                    std::uint64_t file_bytes) {
  if (extent.bytes == 0 || extent.offset % kPageBytes != 0 || extent.bytes % kPageBytes != 0 ||
      extent.offset < from || extent.offset > file_bytes ||
      extent.bytes > file_bytes - extent.offset)
    return in.corrupt("extents", "has ", extent.bytes, " bytes at ", extent.offset,
                      " in a file of ", file_bytes, ", after one that ends at ", from);
  return {};
}

bool overlap(const Extent& a, const Extent& b) {
  return a.offset < b.offset + b.bytes && b.offset < a.offset + a.bytes;
}

}  // namespace

Result<Publication> read_publication(int file, const std::string& name) {
  struct stat found {};
  if (::fstat(file, &found) != 0)
    return fail(ErrorCode::io, name, ": could not be asked for its size: ", errno_text(errno));
  const auto file_bytes = static_cast<std::uint64_t>(found.st_size);
  if (file_bytes == 0) return fail(ErrorCode::corrupt, name, ": it is empty: remove it");
  if (file_bytes < kSessionHeaderBytes)
    return fail(ErrorCode::corrupt, name, ": it is not a session file: name another");
  TL_TRY_ASSIGN(const Buffer pages, Buffer::create(kSessionHeaderBytes));
  TL_TRY(read_fully(file, name, 0, pages.bytes()));
  const auto even = parse_header(pages.data()), odd = parse_header(pages.data() + kPageBytes);
  if (!even && !odd) return why_no_header(name, pages.bytes());
  const Header& header = !odd || (even && even->generation > odd->generation) ? *even : *odd;

  if (header.generation > kMostGenerations)
    return fail(ErrorCode::corrupt, name, ": field generation says ", header.generation,
                " saves, and no file has more than ", kMostGenerations,
                ": remove it with 'thermocline session rm'");

  Publication published;
  published.generation = header.generation;
  published.record = {header.record_offset, header.record_bytes};
  const bool inside = header.record_bytes > 0 && header.record_bytes % kPageBytes == 0 &&
                      header.record_offset % kPageBytes == 0 &&
                      header.record_offset >= kSessionHeaderBytes &&
                      header.record_offset <= file_bytes &&
                      header.record_bytes <= file_bytes - header.record_offset;
  if (!inside)
    return fail(ErrorCode::corrupt, name, ": field record_offset says ", header.record_bytes,
                " bytes at ", header.record_offset, ", the file has ", file_bytes,
                ": it was cut short");
  TL_TRY(check_stored(file, name, header.record_offset, header.record_bytes));
  TL_TRY_ASSIGN(const Buffer record, Buffer::create(published.record.bytes));
  TL_TRY(read_fully(file, name, header.record_offset, record.bytes()));
  if (page_checksum(record.bytes(), header.generation) != header.record_checksum)
    return fail(ErrorCode::corrupt, name, ": its record at ", header.record_offset,
                " is damaged (the checksum does not match): remove it with 'thermocline session "
                "rm'");

  RecordReader in(record.bytes(), name);
  TL_TRY(in.list("extents", &published.extents));
  std::uint64_t from = kSessionHeaderBytes;
  for (const Extent& extent : published.extents) {
    TL_TRY(check_extent(in, extent, from, file_bytes));
    if (overlap(extent, published.record))
      return in.corrupt("extents", "has one at ", extent.offset, " over the record itself");
    from = extent.offset + extent.bytes;
  }
  TL_TRY(in.list("manifest", &published.manifest));
  if (in.left() >= kPageBytes) return in.corrupt("manifest", "ends ", in.left(), " bytes early");
  return published;
}

Status check_is_session(int file, const std::string& name) {
  for (const std::uint64_t at : {std::uint64_t{0}, std::uint64_t{kPageBytes}}) {
    std::array<char, kMagic.size()> magic{};
    const Status read = read_fully(file, name, at, std::as_writable_bytes(std::span(magic)));
    if (!read && read.error().code == ErrorCode::io) return read;
    if (read && magic == kMagic) return {};
  }
  return fail(ErrorCode::corrupt, name, ": it is not a session file: it stays");
}

std::uint64_t record_bytes(std::uint64_t manifest_bytes, std::uint64_t extents) {
  return round_up(2 * sizeof(std::uint64_t) + extents * sizeof(Extent) + manifest_bytes,
                  kPageBytes);
}

Result<Buffer> encode_record(const WriteRecord& manifest, std::span<const Extent> extents) {
  const std::size_t manifest_bytes = size_of(manifest);
  TL_TRY_ASSIGN(Buffer record, Buffer::create(record_bytes(manifest_bytes, extents.size())));
  RecordWriter out(record.bytes());
  out.list(extents);
  out.value(std::uint64_t{manifest_bytes});
  manifest(&out);
  std::fill(record.data() + out.size(), record.data() + record.size(), std::byte{0});
  return record;
}

Result<Buffer> encode_header(std::uint64_t generation, std::uint64_t record_offset,
                             std::span<const std::byte> record) {
  Header header;
  header.generation = generation;
  header.record_offset = record_offset;
  header.record_bytes = record.size();
  header.record_checksum = page_checksum(record, generation);
  header.checksum = checksum_of(header);
  TL_TRY_ASSIGN(Buffer page, Buffer::create(kPageBytes));
  std::memset(page.data(), 0, page.size());
  std::memcpy(page.data(), &header, sizeof(header));
  return page;
}

}  // namespace thermocline
