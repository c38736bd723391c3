#include "tiers/io/sink.h"

#include <utility>

#include "tiers/io/thread_sink.h"
#include "tiers/io/uring_sink.h"

namespace thermocline {

Result<ChosenSink> open_sink(std::string_view backend, const SinkOptions& options) {
  constexpr std::size_t kMostDepth = 4096, kMostThreads = 256;
  if (options.depth < 1 || options.depth > kMostDepth)
    return fail(ErrorCode::invalid_argument, "a depth of ", options.depth,
                " transfers in flight: it must be between 1 and ", kMostDepth);
  if (options.threads < 1 || options.threads > kMostThreads)
    return fail(ErrorCode::invalid_argument, options.threads,
                " threads for reading: there must be between 1 and ", kMostThreads);
  if (backend != "auto" && backend != "uring" && backend != "threads")
    return fail(ErrorCode::invalid_argument, "--io-backend ", backend,
                ": the back ends are auto, uring and threads");

  ChosenSink chosen;
  if (backend != "threads") {
    auto ring = open_uring_sink(options);
    if (ring) {
      chosen.sink = std::move(*ring);
      return chosen;
    }
    if (backend == "uring")
      return fail(ring.error().code, ring.error().message, "; use --io-backend threads");
    chosen.note = ring.error().message + "; the disk is read by " +
                  std::to_string(options.threads) + " threads instead";
  }
  TL_TRY_ASSIGN(chosen.sink, open_thread_sink(options));
  return chosen;
}

}  // namespace thermocline
