// What a session is beside rows: the text, the sampler's place in its random numbers, and what has
// to be the same for the rows to mean anything.
#pragma once

#include <cstdint>
#include <ctime>
#include <string>
#include <vector>

#include "kernels/base/error.h"
#include "runtime/course.h"
#include "runtime/stop_asked.h"

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
  // Of a SessionText, beside its tokens; sizes the plan.
  std::uint64_t text_bytes = std::uint64_t{64} << 10;
};

// What is saved with a timeline for its next reader.
struct SessionText {
  // The text, of which the timeline holds the first tokens: all but those that were sampled and not
  // fed yet.
  std::vector<int> tokens;
  std::vector<float> logits;  // of what follows, where the timeline holds them all and it is known
  std::uint64_t seed = 0;     // of the sampler
  std::string sampler;        // Sampler::state()
  std::string note;           // the caller's own
};

// A method as it was named.
struct NamedMethod {
  std::string name;                    // or path
  std::vector<std::string> overrides;  // "select.share=0.05"
};

// What a session file says of itself, without a model. It is untrusted: corrupt, unsupported or
// not_found, with the file and the field.
struct SavedSession {
  std::vector<SessionFact> facts;
  NamedMethod method;
  SessionText text;
  HeldText held;  // what need not be read again
  std::uint64_t layers = 0, segments = 0;
  std::uint64_t saves = 0;       // so far
  std::uint64_t disk_bytes = 0;  // that the file takes
  std::time_t saved_at = 0;
};
Result<SavedSession> read_session(const std::string& path);

// Reads all of it and compares every checksum. cancelled: `stop` said yes; invalid_argument: it was
// saved meanwhile, and differs for that.
struct SessionCheck {
  std::uint64_t pages = 0, bytes = 0;
  std::vector<std::string> damage;  // a line each; none: sound
};
Result<SessionCheck> verify_session(const std::string& path, const StopAsked& stop = {});

// Whether it is there and a session file, damaged or not.
bool is_session(const std::string& path);

// Whether it is there and no process has it open.
bool session_is_free(const std::string& path);

// A session file, damaged or not, that no process has open; anything else stays (corrupt: it is no
// session file).
Status remove_session(const std::string& path);

}  // namespace thermocline
