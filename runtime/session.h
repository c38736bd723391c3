// What a session is beside rows: the text, the sampler's place in its random numbers, and what has
// to be the same for the rows to mean anything.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace thermocline {

// "model": "SmolLM2 135M Instruct, 4f1c..."; compared as text, shown when it differs.
struct SessionFact {
  std::string name, value;
};

struct SessionOptions {
  // The file that sealed rows live in, and that save() publishes; "": none. Then the disk tier is
  // this file, whatever TierOptions::directory says.
  std::string path = {};
  // Of whoever fills the cache; the cache adds its own (layers, rotation, method).
  std::vector<SessionFact> facts = {};
};

// What is saved with a timeline for its next reader.
struct SessionText {
  // The text, of which the timeline holds the first tokens: all but those that were sampled and not
  // fed yet.
  std::vector<int> tokens;
  std::uint64_t seed = 0, draws = 0;  // of the sampler
  std::string note;                   // the caller's own
};

}  // namespace thermocline
