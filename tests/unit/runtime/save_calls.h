// The system calls by which a save changes files. In this program they come to the test first,
// which may answer them itself or end the process there.
#pragma once

#include <cstdint>
#include <functional>

namespace thermocline {

enum class SaveCall : std::uint8_t { allocate, pwrite, fsync, linkat, punch, ftruncate };
const char* name_of(SaveCall call);

struct CallFate {
  int error = 0;            // what the call says; 0: what the system says
  bool carried_out = true;  // whatever it says
  bool halved = false;      // a pwrite: of the first half
};

struct CallWatch {
  std::function<CallFate(SaveCall)> before;
  std::function<void()> after = {};
};
// From now on, until it is called with nothing. Not while such calls are under way.
void watch_save_calls(CallWatch watch);

}  // namespace thermocline
