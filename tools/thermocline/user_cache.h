// The user's cache folder, as XDG says.
#pragma once

#include <optional>
#include <string>

namespace thermocline {

// $XDG_CACHE_HOME, else ~/.cache; nothing, where the environment says neither. It need not exist.
std::optional<std::string> user_cache();

}  // namespace thermocline
