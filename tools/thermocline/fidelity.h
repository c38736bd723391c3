// How near one set of logits comes to another, in nats.
#pragma once

#include <span>

namespace thermocline {

struct StepFidelity {
  double divergence = 0;  // KL(full || other)
  bool same_top = false;  // both rate the same token highest
  double regret = 0;      // what full loses by the other's pick: log p(best) - log p(pick)
  double full_nll = 0, other_nll = 0;  // of the text's own next token
};

// Both [vocabulary]; `next` is the token that the text goes on with.
StepFidelity compare_logits(std::span<const float> full, std::span<const float> other, int next);

}  // namespace thermocline
