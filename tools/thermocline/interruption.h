// Ctrl-C. Once asks the running work to stop: at the next token, or in the midst of a prefill. A
// second one, while the first is still unanswered, ends the process at once.
#pragma once

namespace thermocline {

inline constexpr int kInterruptedExit = 130;

void watch_for_interruption();
bool interrupted();  // from any thread
// The work has stopped: the next Ctrl-C is a first one again.
void forget_interruption();

}  // namespace thermocline
