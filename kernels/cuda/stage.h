// A stage of choosing, for all lists at once. nvcc only.
#pragma once

#include <span>

#include "kernels/cuda/board.h"
#include "kernels/cuda/launch.h"

namespace thermocline::cuda {

struct Stages {
  Stream& stream;
  const ChoiceShape& shape;
  std::span<const ChoiceList> lists;
  const ChoiceBoard& board;

  // Blocks (x, list), or (list). Only queues.
  Status queue(const char* name, dim3 grid, int threads, ChoiceKernel kernel) const {
    return launch(stream, name, grid, dim3(static_cast<unsigned>(threads)), kernel, shape,
                  lists.data(), board);
  }
};

}  // namespace thermocline::cuda
