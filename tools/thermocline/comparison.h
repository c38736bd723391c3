// A method beside full attention, both fed a text's own tokens, so that one step's difference is
// not the next one's input.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "runtime/thermocline.h"
#include "tools/thermocline/fidelity.h"
#include "tools/thermocline/key_table.h"
#include "tools/thermocline/measured_run.h"
#include "tools/thermocline/passage.h"

namespace thermocline {

// What a step of full attention reads of an f16 cache of so many positions.
std::uint64_t bytes_held(std::span<const LayerSpec> layers, std::uint32_t positions);

struct Comparison {
  std::vector<StepFidelity> steps;
  CacheReport cost;                 // of the method
  std::vector<RankReport> ranks;    // in the end
  std::uint64_t held_bytes = 0;     // what full attention reads of an f16 cache in these steps
  double step_ms = 0, full_ms = 0;  // of all steps
};

// Both have read the passage. Steps are taken in turn, so that a busy moment of the machine meets
// both. `keys`, unless null, come to hold full attention's before the other's step.
Result<Comparison> compare(const Passage& passage, std::span<const LayerSpec> layers,
                           MeasuredRun* full, MeasuredRun* other, ProgressStyle style,
                           KeyTable* keys);

}  // namespace thermocline
