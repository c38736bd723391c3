#include "tests/support/allocations.h"

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <new>

namespace thermocline::test {

std::atomic<std::uint64_t> allocations = 0;
std::atomic<std::uint64_t> refused = kNone;

}  // namespace thermocline::test

namespace {

void* counted(std::size_t bytes, std::size_t alignment) {
  using namespace thermocline::test;
  if (allocations.fetch_add(1, std::memory_order_relaxed) == refused) throw std::bad_alloc();
  void* memory = nullptr;
  if (::posix_memalign(&memory, std::max(alignment, sizeof(void*)), bytes) != 0)
    throw std::bad_alloc();
  return memory;
}
// Not inlined: beside a new of the library the compiler would take free() for a mistake.
[[gnu::noinline]] void given_back(void* memory) { std::free(memory); }

}  // namespace

void* operator new(std::size_t bytes) { return counted(bytes, alignof(std::max_align_t)); }
void* operator new(std::size_t bytes, std::align_val_t alignment) {
  return counted(bytes, static_cast<std::size_t>(alignment));
}
void operator delete(void* memory) noexcept { given_back(memory); }
void operator delete(void* memory, std::size_t) noexcept { given_back(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { given_back(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { given_back(memory); }
