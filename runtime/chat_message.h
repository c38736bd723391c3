// One turn of a conversation.
#pragma once

#include <string>

namespace thermocline {

struct ChatMessage {
  std::string role;  // "system", "user", "assistant"
  std::string content;
};

}  // namespace thermocline
