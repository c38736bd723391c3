// A Sink over a pool of threads that block in pread and pwrite.
#pragma once

#include <memory>

#include "tiers/io/sink.h"

namespace thermocline {

// Runs everywhere; costs about twice the processor time of io_uring a transfer, and more latency.
// exhausted: the system refused the threads.
Result<std::unique_ptr<Sink>> open_thread_sink(const SinkOptions& options);

}  // namespace thermocline
