#include <cstddef>
#include <cstdint>
#include <span>

#include "tests/support/fuzz_session.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  thermocline::test::fuzz_session(std::as_bytes(std::span(data, size)));
  return 0;
}
