// Ctrl-C. Once asks the running work to stop at the next token; a second one, while the first is
// still unanswered, ends the process at once.
#pragma once

namespace thermocline {

inline constexpr int kInterruptedExit = 130;

void watch_for_interruption();
bool interrupted();
// The work has stopped: the next Ctrl-C is a first one again.
void forget_interruption();

}  // namespace thermocline
