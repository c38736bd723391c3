#include "tools/thermocline/interruption.h"

#include <unistd.h>
#include <atomic>
#include <csignal>

namespace thermocline {
namespace {

// Written by the handler, read by every thread that computes.
std::atomic<int> requests = 0, last_signal = SIGINT;
static_assert(std::atomic<int>::is_always_lock_free);

extern "C" void on_interrupt(int signal) {
  last_signal = signal;
  if (++requests > 1) _exit(interruption_exit());
}

}  // namespace

void watch_for_interruption() {
  struct sigaction action = {};
  action.sa_handler = on_interrupt;
  sigemptyset(&action.sa_mask);
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) {
    struct sigaction before = {};
    sigaction(signal, nullptr, &before);
    if (before.sa_handler == SIG_IGN) continue;  // nohup, or a shell's background
    sigaction(signal, &action, nullptr);         // without SA_RESTART: a waiting read returns
  }
  std::signal(SIGPIPE, SIG_DFL);  // a reader that has left ends us without a word
}

int interruption_exit() { return 128 + last_signal; }

bool interrupted() { return requests.load(std::memory_order_relaxed) > 0; }

void forget_interruption() { requests = 0; }

}  // namespace thermocline
