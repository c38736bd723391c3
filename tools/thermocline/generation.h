// Reading a prompt and writing what follows: the loop that generate and chat share.
#pragma once

#include <chrono>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/thermocline.h"
#include "tools/thermocline/progress.h"

namespace thermocline {

enum class StopReason : std::uint8_t {
  end_of_text,
  length,
  context,
  stop_text,
  interruption,
  failure,
};
// "eos", "length" (a full context too), "stop", "interrupted", "error"
const char* name_of(StopReason reason);

// A text as far as it has come: what a session keeps of it, and goes on from.
struct WrittenText {
  std::vector<int> tokens;
  // Of `tokens` those from here on are sampled ones: they are fed to the model as they were, one by
  // one, where those before are read together.
  std::uint32_t sampled_from = 0;
  std::vector<float>
      logits;           // of what follows, where the timeline holds all tokens; empty: unknown
  std::string sampler;  // its state; "": at its beginning, with the options of the run
};

struct GenerationOptions {
  SamplingOptions sampling;
  int length = -1;  // tokens at most; -1: to the end of the text or the context
  std::uint32_t context = 0;
  bool ignore_end = false;
  std::vector<std::string> stops;
  ProgressStyle progress = ProgressStyle::none;
  // Called with text as it comes, always whole characters.
  std::function<Status(std::string_view)> show;
  // Called while a long text is read, between spans of its prefill, with what was read; may be
  // empty.
  std::function<Status(std::span<const int>)> after_span;
  // Called when the text has been read and nothing is written yet; may be empty.
  std::function<Status(const WrittenText&)> after_reading;
  // As after_reading, between steps, whenever so long has gone by since either; may be empty.
  std::function<Status(const WrittenText&)> while_writing;
  std::chrono::milliseconds while_writing_every{60'000};
};

struct Generation {
  std::vector<int> tokens;                  // of the reply, its end token left out
  std::string text;                         // as shown
  StopReason reason = StopReason::failure;  // until it ended otherwise
  std::string stop_text;                    // which, where that was the reason
  std::uint32_t prompt_tokens = 0, cached_tokens = 0;
  std::uint32_t prefilled_tokens = 0;  // fewer than were to be read, when interrupted
  std::uint32_t steps = 0;             // decode steps: every token but the first needs one
  double prefill_ms = 0, first_token_ms = 0, decode_ms = 0;
  CacheReport prefill_cost, decode_cost;
};

// Leaves in the timeline the first `known` of its positions; or none, where those cannot be kept
// alone: a sliding window or a method has dropped rows that they would need (unsupported), or there
// is no room to form anew what is left of cut segments (exhausted). Says how many are left; `why`,
// unless it is null, the reason for none.
Result<std::uint32_t> keep_or_start_over(KvCache& cache, Timeline* timeline, std::uint32_t known,
                                         std::string* why = nullptr);

// Makes the timeline hold the text, of which it already holds the first tokens, and writes on:
// `text` is then as far as it has come, in agreement with the timeline. What has to be fed is at
// least one token, unless its logits are there. Interruption is a reason to stop, not an error;
// `out` is filled in as far as it went on an error.
Status generate_text(Engine& engine, KvCache& cache, Timeline& timeline,
                     const GenerationOptions& options, WrittenText* text, Generation* out);

// The --rope-freq-scale in force, 0 for none; nothing where rows that are kept hold it.
using Stretch = std::optional<float>;
// Refuses a text that the context has no room for, with the numbers and the flags. `text` is what
// messages call it.
Status check_fits(std::size_t prompt_tokens, std::uint32_t context, const ModelInfo& model,
                  Stretch in_force, const std::string& text);
// Where a context is beyond what the model was trained for.
std::optional<std::string> note_on_context(std::uint32_t context, const ModelInfo& model);

}  // namespace thermocline
