#include "tests/support/session_parts.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <iterator>

#include "tiers/io/checksum.h"
#include "tiers/io/descriptor.h"

namespace thermocline::test {

SessionParts SessionParts::read(const std::string& path) {
  SessionParts parts;
  const Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  TL_CHECK(file.open());
  const auto published = read_publication(file.number(), path);
  TL_CHECK(published.has_value());
  const auto manifest = SessionManifest::decode(published->manifest, path);
  TL_CHECK(manifest.has_value());
  parts.manifest = *manifest;
  parts.generation_ = published->generation;
  parts.extents_ = published->extents;
  std::ifstream in(path, std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(in), {}};
  const auto all = std::as_bytes(std::span(text));
  parts.bytes.assign(all.begin(), all.end());
  return parts;
}

void SessionParts::write(const std::string& path) const {
  std::vector<std::byte> file = bytes;
  file.resize(round_up(file.size(), kPageBytes));
  SessionManifest said = manifest;
  for (SessionManifest::Layer& layer : said.layers)
    for (PageTable::Record& record : layer.runs)
      record.checksum =
          page_checksum(std::span(file).subspan(record.offset, record.bytes), record.offset);
  const std::vector<std::byte> encoded = said.encode();
  const auto record = encode_record([&](RecordWriter* out) { out->raw(encoded); }, extents_);
  TL_CHECK(record.has_value());
  const auto header = encode_header(generation_ + 1, file.size(), record->bytes());
  TL_CHECK(header.has_value());
  std::copy(header->bytes().begin(), header->bytes().end(),
            file.begin() + static_cast<std::ptrdiff_t>(header_offset(generation_ + 1)));
  file.insert(file.end(), record->bytes().begin(), record->bytes().end());
  (void)::unlink(path.c_str());
  const Descriptor made(::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
  TL_CHECK(made.open());
  TL_CHECK(::pwrite(made.number(), file.data(), file.size(), 0) ==
           static_cast<ssize_t>(file.size()));
}

}  // namespace thermocline::test
