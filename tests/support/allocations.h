// Every operator new of a program that names these is counted, and one of them may find no memory.
#pragma once

#include <atomic>
#include <cstdint>

namespace thermocline::test {

extern std::atomic<std::uint64_t> allocations;  // so far
inline constexpr std::uint64_t kNone = ~std::uint64_t{0};
extern std::atomic<std::uint64_t> refused;  // the number of the one that finds no memory

}  // namespace thermocline::test
