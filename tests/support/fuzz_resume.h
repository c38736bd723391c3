// What a fuzzer runs on one input that says how a session file is changed by somebody who makes the
// checksums fit.
#pragma once

#include <cstddef>
#include <span>

namespace thermocline::test {

// byte 0: the method of a small session; then changes to it, 8 bytes each: what, of which layer or
// segment, u16 where, u32 value (fuzz_resume.cpp has the list). The file is opened, resumed, and
// goes on by a prefill, a decode step, a cut and a save: refused in one line, or all of it works.
void fuzz_resume(std::span<const std::byte> input);

}  // namespace thermocline::test
