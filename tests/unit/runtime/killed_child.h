// What is killed on its way: a part that this program, started once more, does instead of its
// tests.
#pragma once

#include <chrono>
#include <string>
#include <vector>

#include "kernels/base/error.h"

namespace thermocline {

// A program has one, as a constant of a test's file.
class ChildsPart {
 public:
  explicit ChildsPart(Status (*part)(const std::vector<std::string>& words));
};

// By itself, right before or after a call of a save, counting both from 0; or from outside.
struct Killing {
  long at_call = -1;
  std::chrono::microseconds after{};
};
enum class Ended { well, with_error, killed };

// Does the part with these words, of which none has a line's end, from within a test.
Ended run_child(const std::vector<std::string>& words, const Killing& killing = {});

}  // namespace thermocline
