// Bytes as people read them.
#pragma once

#include <cstdint>
#include <string>

namespace thermocline {

// "1.50 GiB", "64 KiB", "17 bytes": whole numbers without decimals, otherwise two of them.
std::string size_text(std::uint64_t bytes);

}  // namespace thermocline
