// eval of texts that are written freely: each method goes on with a prompt by itself, so that its
// differences from full attention may add up.
#pragma once

#include "tools/thermocline/evaluation.h"

namespace thermocline {

Status evaluate_free(const EvalFlags& flags, const EvalPlan& plan, Engine& engine);

}  // namespace thermocline
