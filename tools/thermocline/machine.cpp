#include "tools/thermocline/machine.h"

#include <cstdlib>
#include <fstream>
#include <string_view>

namespace thermocline {
namespace {

// The rest of the first line of a file that begins with `key`, blanks and colons skipped.
std::string field(const char* path, std::string_view key) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    if (!line.starts_with(key)) continue;
    const std::size_t at = line.find_first_not_of(" \t:", key.size());
    return at == std::string::npos ? std::string() : line.substr(at);
  }
  return {};
}

}  // namespace

std::string cpu_name() {
  const std::string name = field("/proc/cpuinfo", "model name");
  return name.empty() ? "unknown" : name;
}

std::uint64_t peak_resident_bytes() {
  return std::strtoull(field("/proc/self/status", "VmHWM").c_str(), nullptr, 10) * 1024;
}

void forget_peak() {
  std::ofstream file("/proc/self/clear_refs");
  file << "5";
}

double machine_load() {
  std::ifstream file("/proc/loadavg");
  double load = -1;
  file >> load;
  return load;
}

}  // namespace thermocline
