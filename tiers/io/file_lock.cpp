#include "tiers/io/file_lock.h"

#include <sys/file.h>

#include <cerrno>
#include <chrono>
#include <thread>

namespace thermocline {

bool lock_file(int file) {
  // A ring of io_uring holds its files for some time after its process has ended (measured: up to
  // 20 ms): a run that follows at once is no second one.
  constexpr std::chrono::milliseconds kPatience{500}, kPause{5};
  for (auto waited = kPause * 0; ::flock(file, LOCK_EX | LOCK_NB) != 0; waited += kPause) {
    if ((errno != EWOULDBLOCK && errno != EINTR) || waited >= kPatience) return false;
    std::this_thread::sleep_for(kPause);
  }
  return true;
}

}  // namespace thermocline
