// Ctrl-C, or a service manager's SIGTERM, or a terminal that goes (SIGHUP). Once asks the running
// work to stop: at the next token, or in the midst of a prefill. A second one, while the first is
// still unanswered, ends the process at once.
#pragma once

namespace thermocline {

void watch_for_interruption();
bool interrupted();  // from any thread
// What the process returns then: 128 and the signal, 130 for Ctrl-C.
int interruption_exit();
// The work has stopped: the next Ctrl-C is a first one again.
void forget_interruption();

}  // namespace thermocline
