// How work that takes long is told to stop.
#pragma once

#include <functional>

namespace thermocline {

// Whether to stop: asked often, by several threads at once, so it must be quick and thread-safe. It
// must not throw, which would end the process. Empty: never.
using StopAsked = std::function<bool()>;

}  // namespace thermocline
