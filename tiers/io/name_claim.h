// A file's name before there is a file: one process at a time has it.
#pragma once

#include <optional>
#include <string>

#include "tiers/io/descriptor.h"

namespace thermocline {

// Claims the name `file` in an open folder until the descriptor is closed. The kernel holds it, and
// nothing is on a disk: a process that is killed leaves nothing. Nothing: another process has it.
// Not open: the system holds no such claims, so nobody knows. One of another container or machine
// is not seen, so whoever gives the file its name still has to find that it is free.
std::optional<Descriptor> claim_name(int folder, const std::string& file);

}  // namespace thermocline
