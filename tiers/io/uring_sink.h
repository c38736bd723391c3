// A Sink over io_uring.
#pragma once

#include <memory>

#include "tiers/io/sink.h"

namespace thermocline {

// Proves itself with a real read before it is handed out. unsupported: the message names the cause
// (which errno, and what sets it), and gives no advice; that is for whoever chose the back end.
Result<std::unique_ptr<Sink>> open_uring_sink(const SinkOptions& options);

}  // namespace thermocline
