// eval over texts: their own tokens are fed to a method and to full attention.
#pragma once

#include "tools/thermocline/evaluation.h"

namespace thermocline {

Status evaluate_texts(const EvalFlags& flags, const EvalPlan& plan, Engine& engine);

}  // namespace thermocline
