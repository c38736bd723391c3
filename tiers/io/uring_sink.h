// A Sink over io_uring.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "tiers/io/sink.h"

namespace thermocline {

// Proves itself with a real read before it is handed out. unsupported: the message names the cause
// (which errno, and what sets it), and gives no advice; that is for whoever chose the back end.
Result<std::unique_ptr<Sink>> open_uring_sink(const SinkOptions& options);
// Of so many bytes that keep() was refused: why, and what to raise; "": not for the limit.
std::string note_on_loose_memory(std::uint64_t bytes);

}  // namespace thermocline
