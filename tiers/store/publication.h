// What is published in a session file, as bytes. Pages 0 and 1 are headers, one for odd and one for
// even generations: whichever is whole and has the higher generation counts. It says where the
// record of its generation lies: the extents that are in use, and the manifest, which is the
// runtime's. Nothing that a whole header refers to is written to while that header counts, so a
// file is one generation or another at any moment. docs/session_format.md has every field.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "kernels/base/buffer.h"
#include "kernels/base/error.h"
#include "tiers/store/keeper.h"

namespace thermocline {

inline constexpr std::uint32_t kSessionVersion = 2;
inline constexpr std::uint64_t kSessionHeaderBytes = 2 * kPageBytes;
// No file was saved so often. One that says so could not be saved any more: the next generation
// would wrap around, and an old header win over it.
inline constexpr std::uint64_t kMostGenerations = std::uint64_t{1} << 63;

struct Publication {
  std::uint64_t generation = 0;
  Extent record;                // where it lies itself
  std::vector<Extent> extents;  // ascending, none touches the headers, the record or another
  std::vector<std::byte> manifest;
};

// The last publication of an open file, which is untrusted. `name` begins messages. corrupt:
// it is not a session file, or a damaged one; unsupported: of another version.
Result<Publication> read_publication(int file, const std::string& name);

// corrupt: nothing in it says that it is a session file, however damaged, of whatever version.
Status check_is_session(int file, const std::string& name);

// The record of a publication and the header that makes it count: whole pages.
std::uint64_t record_bytes(std::uint64_t manifest_bytes, std::uint64_t extents);
Result<Buffer> encode_record(const WriteRecord& manifest, std::span<const Extent> extents);
Result<Buffer> encode_header(std::uint64_t generation, std::uint64_t record_offset,
                             std::span<const std::byte> record);
// Where the header of a generation belongs.
constexpr std::uint64_t header_offset(std::uint64_t generation) {
  return generation % 2 * kPageBytes;
}

}  // namespace thermocline
