#include "tools/thermocline/interruption.h"

#include <unistd.h>
#include <csignal>

namespace thermocline {
namespace {

volatile std::sig_atomic_t requests = 0;

extern "C" void on_interrupt(int) {
  requests = requests + 1;
  if (requests > 1) _exit(kInterruptedExit);
}

}  // namespace

void watch_for_interruption() {
  struct sigaction action = {};
  action.sa_handler = on_interrupt;
  sigemptyset(&action.sa_mask);
  sigaction(SIGINT, &action, nullptr);  // without SA_RESTART: a waiting read returns
  std::signal(SIGPIPE, SIG_DFL);        // a reader that has left ends us without a word
}

bool interrupted() { return requests > 0; }

void forget_interruption() { requests = 0; }

}  // namespace thermocline
