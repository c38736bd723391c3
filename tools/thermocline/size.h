// Amounts of memory as people write and read them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "kernels/base/error.h"

namespace thermocline {

// "512MiB", "1.5G", "64k", "1000000", "auto", "0". K, M, G, T alone and with iB are powers of 1024;
// KB, MB, GB, TB are powers of 1000. `flag` is named in the error.
Result<std::uint64_t> parse_size(std::string_view text, std::string_view flag);

// "0 B", "640 KiB", "1.50 GiB": three digits that matter.
std::string format_size(std::uint64_t bytes);

// 7701 -> "7,701"
std::string format_count(std::uint64_t value);
// "1,024 tokens", "1 token".
std::string format_counted(std::uint64_t value, const char* noun);

}  // namespace thermocline
