// What tells one family of models from another, as data: every family runs through the same layer
// function (layer.h). A new family is one more entry of the table in architecture.cpp.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "kernels/base/activation.h"
#include "kernels/base/rope_pairs.h"

namespace thermocline {

// Whether the files of a family carry some tensors. A layer uses what is there.
enum class Part : std::uint8_t { absent, optional, required };

struct Architecture {
  std::string_view name;     // general.architecture of the file
  std::string_view members;  // who comes in it, for messages
  RopePairs pairs = RopePairs::halves;
  Activation activation = Activation::silu;
  Part biases = Part::absent;      // of q, k and v
  Part head_norms = Part::absent;  // of each head's query and key
  Part post_norms = Part::absent;  // of what attention and the feed-forward part add
  enum class Embedding : std::uint8_t {
    as_stored,
    times_sqrt_width
  } embedding = Embedding::as_stored;
  // Of each `window_period` layers all but the last see only the file's sliding window, at a
  // rotary base of their own. 0: every layer sees everything.
  std::uint32_t window_period = 0;
  float window_freq_base = 10000.0f;
  // A model of this many layers scales q . k by 1 / sqrt(width / heads), not by the head's size
  // (Gemma 3 27B). 0: none does.
  std::uint32_t layers_scaled_by_width = 0;
};

std::span<const Architecture> architectures();
const Architecture* find_architecture(std::string_view name);  // nullptr: not in the table

}  // namespace thermocline
