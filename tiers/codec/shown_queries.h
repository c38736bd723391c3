// What a fitter that asks for queries leaves in a fit's common part: the squares that it went by,
// for the segments after it that are shown none (generated, cut or copied ones).
#pragma once

#include "tiers/codec/fitter.h"

namespace thermocline {

// f32 [heads][dim], the mean square of a channel of the queries, finite and not negative.
struct ShownQueries {
  static std::uint64_t bytes(FitShape shape) {
    return std::uint64_t{shape.heads} * shape.dim * sizeof(float);
  }
  // Those that are shown, or else those of the segment before; empty: there are none. They are put
  // into the fit's common part, unless they are what the segment before has there.
  static Result<std::span<const float>> carry(const Fitting& of, Fit* fit);
  // As Fitter::flaw() has it, of a common part, which may be empty.
  static const char* flaw(FitShape shape, std::span<const std::byte> common);
};

}  // namespace thermocline
