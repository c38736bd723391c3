// A conversation whose text so far stays in one timeline, and in a session's file if it has one.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "runtime/thermocline.h"
#include "tools/thermocline/generation.h"

namespace thermocline {

struct ConversationOptions {
  std::string system;  // what the model is told first; "": nothing
  std::string chat_template = "auto";
  std::string session;        // the file of the cache's session; "": nothing is kept
  float rope_freq_scale = 0;  // in force; 0: none
  GenerationOptions writing;  // of an answer; what it calls beside `show` is the conversation's own
};

// Belongs to the thread that drives the engine, which outlives it, as the cache does.
class Conversation {
 public:
  Conversation(Engine& engine, KvCache& cache, ConversationOptions options);

  // Forgets all of it.
  Status reset();
  // Goes on where the session's file ends, or begins anew. Says which, in a line; "": no session.
  // invalid_argument: it began with another system message; unsupported, corrupt: it holds no
  // conversation.
  Result<std::string> resume();
  // Answers a message. One that fails before it is whole is forgotten here, though the file may
  // hold what was last saved of it; of one that could only not be saved both messages stay. One
  // that is interrupted is as long as it has become. The file holds it when it is over, and before
  // that what was there as of a moment ago: once the message has been read all that it comes after,
  // and now and then, while it is answered, it and the answer so far.
  Status answer(const std::string& message, Generation* out);

  std::span<const ChatMessage> messages() const { return messages_; }

 private:
  Status start_over();
  Status generate(Generation* out);
  Status save(std::span<const ChatMessage> messages, const WrittenText& text);
  Status read_messages(const std::string& note);

  Engine& engine_;
  KvCache& cache_;
  ConversationOptions options_;
  Timeline timeline_;
  std::vector<ChatMessage> messages_;
  WrittenText text_;  // its tokens are the timeline's
};

}  // namespace thermocline
