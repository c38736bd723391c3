// What the kernel did not give back in time. It may still read it, or write to it, whenever the
// disk answers: so it belongs to nobody any more, and is never freed.
#pragma once

#include <memory>

#include "kernels/base/buffer.h"
#include "tiers/io/sink.h"

namespace thermocline {

// From any thread.
void leave_to_kernel(Buffer memory);
void leave_to_kernel(std::unique_ptr<Sink> sink);

}  // namespace thermocline
