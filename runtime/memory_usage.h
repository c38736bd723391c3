// What a ledger holds, as it is reported.
#pragma once

#include "runtime/report.h"
#include "tiers/budget.h"

namespace thermocline {

// By tier and purpose, of what was ever held. Safe to call from any thread, as the ledger is.
MemoryPlan usage_of(const Budget& budget);

}  // namespace thermocline
