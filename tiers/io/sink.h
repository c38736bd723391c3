// Where reads and writes are handed to the operating system. A Sink can be faked, so the whole
// storage path is tested with seeded faults and no disk.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

#include "kernels/base/error.h"

namespace thermocline {

// One extent of one file. For a direct file offset, size and address are multiples of its
// alignment. `tag` is the caller's and comes back with the completion.
struct Transfer {
  enum class Kind : std::uint8_t { read, write };
  Kind kind = Kind::read;
  int file = -1;
  std::uint64_t offset = 0;
  std::span<std::byte> bytes;
  std::uint64_t tag = 0;
};

struct Completion {
  std::uint64_t tag = 0;
  int error = 0;  // 0, or an errno value: the transfer is whole or it failed, never in between
};

using Deadline = std::chrono::steady_clock::time_point;

// Belongs to one thread. Short transfers, EINTR and EAGAIN are retried inside (a bounded number of
// times); what completes is complete. Memory handed over stays the Sink's until its completion has
// been polled. Destruction waits for what is in flight.
class Sink {
 public:
  virtual ~Sink() = default;
  virtual std::string_view name() const = 0;  // "uring", "threads"
  // Takes all of them (queueing what does not fit the ring) or, on an error, none.
  virtual Status submit(std::span<const Transfer> transfers) = 0;
  // Waits until at least one transfer is complete or the deadline has passed (then 0); fills up to
  // out.size() completions and returns how many. With nothing in flight it returns 0 at once.
  virtual Result<std::size_t> poll(std::span<Completion> out, Deadline deadline) = 0;
  virtual std::size_t in_flight() const = 0;
};

struct SinkOptions {
  std::size_t depth = 32;    // reads in flight at the device; it saturates at 8
  std::size_t threads = 4;   // of the pread pool
};

// `backend` is auto, uring or threads. A named one that cannot run is an error that names the
// cause; auto falls back to threads and says why in `note` (empty otherwise).
struct ChosenSink {
  std::unique_ptr<Sink> sink;
  std::string note;
};
Result<ChosenSink> open_sink(std::string_view backend, const SinkOptions& options);

}  // namespace thermocline
