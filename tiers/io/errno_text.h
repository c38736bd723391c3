// An errno value as people search for it: "EPERM (Operation not permitted)".
#pragma once

#include <string>

namespace thermocline {

std::string errno_name(int error);  // "EPERM", or "errno 4711"
std::string errno_text(int error);  // with the system's words

}  // namespace thermocline
