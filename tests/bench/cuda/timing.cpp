#include "tests/bench/cuda/timing.h"

#include <cstring>

namespace thermocline::cuda {

Result<Limits> measure_limits(Stream& stream, int rounds, std::size_t bytes) {
  TL_TRY_ASSIGN(const auto from, Memory<std::byte>::create(Where::device, bytes));
  TL_TRY_ASSIGN(const auto to, Memory<std::byte>::create(Where::device, bytes));
  TL_TRY_ASSIGN(const auto host, Memory<std::byte>::create(Where::pinned, bytes));
  std::memset(host.data(), 1, bytes);
  const auto copy = [&](const std::byte* source) {
    return time_us(
        stream, rounds, [] { return Status(); },
        [&] {
          return check(
              cudaMemcpyAsync(to.data(), source, bytes, cudaMemcpyDefault, stream.handle()),
              "copying");
        });
  };
  TL_TRY_ASSIGN(const double within_us, copy(from.data()));
  TL_TRY_ASSIGN(const double over_us, copy(host.data()));
  const auto moved = static_cast<double>(bytes);
  return Limits{2 * moved / within_us * 1e6, moved / over_us * 1e6};
}

}  // namespace thermocline::cuda
