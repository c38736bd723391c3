#include "tiers/io/sink.h"

#include <algorithm>
#include <array>
#include <utility>

#include "tiers/io/thread_sink.h"
#include "tiers/io/uring_sink.h"

namespace thermocline {
namespace {

struct Backend {
  std::string_view name;
  Result<std::unique_ptr<Sink>> (*open)(const SinkOptions& options);
};
// In the order in which auto tries them. The last one runs everywhere.
constexpr std::array kBackends{
    Backend{"uring", open_uring_sink},
    Backend{"threads", open_thread_sink},
};

Result<ChosenSink> open_the_first(const SinkOptions& options) {
  std::string causes;
  ErrorCode code{};
  for (const Backend& backend : kBackends) {
    auto sink = backend.open(options);
    if (sink) {
      if (!causes.empty())
        causes.append("; the disk is read by ").append(backend.name).append(" instead");
      return ChosenSink{std::move(*sink), std::move(causes)};
    }
    code = sink.error().code;
    causes += (causes.empty() ? "" : "; ") + sink.error().message;
  }
  return fail(code, causes);
}

}  // namespace

std::vector<Transfer> in_pieces(const Transfer& whole) {
  std::vector<Transfer> pieces;
  for (std::size_t done = 0; done < whole.bytes.size(); done += kPieceBytes) {
    Transfer piece = whole;
    piece.offset += done;
    piece.bytes = whole.bytes.subspan(done, std::min(kPieceBytes, whole.bytes.size() - done));
    piece.tag += pieces.size();
    pieces.push_back(piece);
  }
  return pieces;
}

std::vector<std::string_view> sink_names() {
  std::vector<std::string_view> names;
  for (const Backend& backend : kBackends) names.push_back(backend.name);
  return names;
}

Result<ChosenSink> open_sink(std::string_view backend, const SinkOptions& options) {
  constexpr std::size_t kMostDepth = 4096, kMostThreads = 256;
  if (options.depth < 1 || options.depth > kMostDepth)
    return fail(ErrorCode::invalid_argument, "a depth of ", options.depth,
                " transfers in flight: it must be between 1 and ", kMostDepth);
  if (options.threads < 1 || options.threads > kMostThreads)
    return fail(ErrorCode::invalid_argument, options.threads,
                " threads for reading: there must be between 1 and ", kMostThreads);
  if (backend == "auto") return open_the_first(options);

  std::string names = "auto";
  for (const Backend& one : kBackends) {
    names.append(", ").append(one.name);
    if (one.name != backend) continue;
    auto sink = one.open(options);
    if (sink) return ChosenSink{std::move(*sink), {}};
    if (one.name == kBackends.back().name) return tl::unexpected(sink.error());
    return fail(sink.error().code, sink.error().message, "; use --io-backend ",
                kBackends.back().name);
  }
  return fail(ErrorCode::invalid_argument, "--io-backend '", backend, "' is not known: there are ",
              names);
}

}  // namespace thermocline
