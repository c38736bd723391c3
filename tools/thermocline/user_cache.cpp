#include "tools/thermocline/user_cache.h"

#include <cstdlib>

namespace thermocline {

std::optional<std::string> user_cache() {
  const char* cache = std::getenv("XDG_CACHE_HOME");
  const char* home = std::getenv("HOME");
  if (cache && *cache) return cache;
  if (home && *home) return std::string(home) + "/.cache";
  return std::nullopt;
}

}  // namespace thermocline
