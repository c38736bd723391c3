// eval over tasks: questions about what is hidden in a long text, answered by decoding under a
// method, and scored where the same model with full attention can answer them.
#pragma once

#include "tools/thermocline/evaluation.h"

namespace thermocline {

Status evaluate_tasks(const EvalFlags& flags, const EvalPlan& plan, Engine& engine);

}  // namespace thermocline
