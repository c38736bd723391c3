// What this machine is and can do: what a measurement is held against.
#pragma once

#include <cstdint>
#include <string>

namespace thermocline {

std::string cpu_name();

// The most memory that was resident since the last forget_peak() (or since the start, where the
// kernel does not let a process forget). Mapped files count.
std::uint64_t peak_resident_bytes();
void forget_peak();

// Work that other processes have for this machine, as the one-minute load; negative if unknown.
double machine_load();

}  // namespace thermocline
