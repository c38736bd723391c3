// What a fuzzer runs on one input. A broken promise stops the process; being refused is no failure.
#pragma once

#include <cstddef>
#include <span>

namespace thermocline::test {

// A GGUF file: it is refused in one line, or everything in it can be read.
void fuzz_gguf(std::span<const std::byte> input);

// byte 0: what the rest is. 0: a pre-tokenizer (byte 1) and a text for a tiny byte-level BPE; 1: a
// text for a tiny SentencePiece; 2: spellings, one a line up to a zero byte, made into a vocabulary
// with merges (3: with scores), then a text; else a GGUF file with a tokenizer.
void fuzz_tokenizer(std::span<const std::byte> input);

}  // namespace thermocline::test
