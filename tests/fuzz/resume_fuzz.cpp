#include <cstddef>
#include <cstdint>
#include <span>

#include "tests/support/fuzz_resume.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  thermocline::test::fuzz_resume(std::as_bytes(std::span(data, size)));
  return 0;
}
