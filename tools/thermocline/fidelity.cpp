#include "tools/thermocline/fidelity.h"

#include <algorithm>
#include <cmath>

#include "kernels/base/error.h"

namespace thermocline {
namespace {

std::size_t best_of(std::span<const float> logits) {
  return static_cast<std::size_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

// The logarithm of the sum of exponentials: logit - this is a log probability.
double log_normaliser(std::span<const float> logits) {
  const double largest = static_cast<double>(logits[best_of(logits)]);
  double sum = 0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit) - largest);
  return largest + std::log(sum);
}

}  // namespace

StepFidelity compare_logits(std::span<const float> full, std::span<const float> other, int next) {
  TL_CHECK(full.size() == other.size() && next >= 0 &&
           static_cast<std::size_t>(next) < full.size());
  const double full_norm = log_normaliser(full), other_norm = log_normaliser(other);
  const auto log_full = [&](std::size_t t) { return static_cast<double>(full[t]) - full_norm; };
  const auto log_other = [&](std::size_t t) { return static_cast<double>(other[t]) - other_norm; };
  StepFidelity step;
  for (std::size_t t = 0; t < full.size(); ++t) {
    const double log_p = log_full(t);
    step.divergence += std::exp(log_p) * (log_p - log_other(t));
  }
  const std::size_t best = best_of(full), pick = best_of(other);
  step.same_top = best == pick;
  step.regret = log_full(best) - log_full(pick);
  step.full_nll = -log_full(static_cast<std::size_t>(next));
  step.other_nll = -log_other(static_cast<std::size_t>(next));
  return step;
}

}  // namespace thermocline
