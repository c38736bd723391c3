// What tells one model from another, short: whether rows that were made by one mean anything to
// another.
#pragma once

#include <string>

#include "runtime/model/gguf.h"

namespace thermocline {

// Name and hash, of everything but the tokenizer: the architecture's metadata, every tensor's name,
// type and shape, and the first and last page of its data (reading all of it would take as long as
// the session saves). Integrity only: no defence against somebody who wants a collision.
std::string model_fingerprint(const GgufFile& file);
// Hash of everything that decides which tokens a text has.
std::string tokenizer_fingerprint(const GgufFile& file);

}  // namespace thermocline
