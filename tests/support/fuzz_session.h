// What a fuzzer runs on one input that claims to be of a session file.
#pragma once

#include <cstddef>
#include <span>

namespace thermocline::test {

// byte 0: what the rest is. 0: a whole file; 1: a publication's record, whose header and checksums
// are made to fit; 2: a manifest; 3: a segment's record; 4: a sketch's index (bytes 1 to 4: heads,
// rows in sixteens, key size in sixteens, clusters). Refused in one line, or what it says agrees
// with itself; a broken promise stops the process.
void fuzz_session(std::span<const std::byte> input);

}  // namespace thermocline::test
