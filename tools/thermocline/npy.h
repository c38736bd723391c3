// Arrays in files that numpy.load() reads: format 1.0, little-endian, row-major.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/error.h"
#include "kernels/base/half.h"

namespace thermocline {

// What comes before the numbers; `type` as numpy writes it: "<f2".
std::string npy_header(std::string_view type, std::span<const std::uint64_t> shape);

// Into a new file. io: with the path and the system's reason.
Status write_npy(const std::string& path, std::span<const std::uint64_t> shape,
                 std::span<const f16> values);
Status write_npy(const std::string& path, std::span<const std::uint64_t> shape,
                 std::span<const float> values);
Status write_npy(const std::string& path, std::span<const std::uint64_t> shape,
                 std::span<const std::uint32_t> values);
Status write_npy(const std::string& path, std::span<const std::uint64_t> shape,
                 std::span<const std::uint64_t> values);

}  // namespace thermocline
