// What tells a page from a damaged, a misplaced and an outdated one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace thermocline {

// XXH3 of the page, seeded with its identity. The identity is whatever makes this page different
// from every other page and every earlier content of the same place (where it lies, and a number
// that grows with each write): a read of the wrong place or of the old content then fails like a
// flipped bit does. Kept outside the page, in memory. Integrity only: no defence against somebody
// who wants a collision. The value is the same on every machine. Safe to call from any thread.
std::uint64_t page_checksum(std::span<const std::byte> page, std::uint64_t identity);

// As text: sixteen hexadecimal digits.
std::string checksum_text(std::uint64_t checksum);

}  // namespace thermocline
