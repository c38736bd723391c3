// One process at a time has a file.
#pragma once

namespace thermocline {

// Locks an open file, until it is closed. False: another process has it; or errno says why it could
// not be locked at all (anything but EWOULDBLOCK).
bool lock_file(int file);

}  // namespace thermocline
