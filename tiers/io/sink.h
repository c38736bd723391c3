// Where reads and writes are handed to the operating system. A Sink can be faked, so the whole
// storage path is tested with seeded faults and no disk.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/error.h"

namespace thermocline {

// One extent of one file, never empty. For a direct file offset, size and address are multiples of
// its alignment. `tag` is the caller's and comes back with the completion.
struct Transfer {
  enum class Kind : std::uint8_t { read, write };
  Kind kind = Kind::read;
  int file = -1;
  std::uint64_t offset = 0;
  std::span<std::byte> bytes;
  std::uint64_t tag = 0;
};
// The same in pieces of at most so many bytes, in order, tagged from its tag on.
inline constexpr std::size_t kPieceBytes = std::size_t{1} << 20;
std::vector<Transfer> in_pieces(const Transfer& whole);

// error: 0, or an errno value. The transfer is whole or it failed, never in between; after a
// failure the memory of a read holds anything. ENODATA: the file ends inside the extent.
struct Completion {
  std::uint64_t tag = 0;
  int error = 0;
};

using Deadline = std::chrono::steady_clock::time_point;
// No disk takes this long for one request: a wait beyond it is reported, never endless.
inline constexpr std::chrono::milliseconds kDiskPatience{60'000};

// Belongs to one thread at a time: between threads it changes hands only while nothing is in
// flight. Short transfers, EINTR and EAGAIN are retried inside (a bounded number of times).
// Completions come in any order. Memory and file stay the Sink's until the completion has been
// polled. Destruction waits for what the operating system holds, for ever if it has to, and drops
// what it has not been given yet: afterwards nothing touches the memory. Where the operating system
// may never answer, drain() comes first.
class Sink {
 public:
  virtual ~Sink() = default;
  virtual std::string_view name() const = 0;  // of sink_names()
  // Takes all of them (queueing what does not fit the ring) or, on an error, none. It waits for no
  // transfer, unless the ring breaks: then for those that the kernel still has.
  virtual Status submit(std::span<const Transfer> transfers) = 0;
  // Waits until at least one transfer is complete or the deadline has passed (then 0); fills up to
  // out.size() completions and returns how many. With nothing in flight it returns 0 at once.
  virtual Result<std::size_t> poll(std::span<Completion> out, Deadline deadline) = 0;
  // Most transfers will be to and from this memory, which outlives the Sink. What the kernel takes
  // of it, all (true) or what a limit allows, is looked up and pinned once instead of for each
  // transfer; there is no more to it, so a refusal is no error. Once, with nothing in flight.
  virtual bool keep(std::span<std::byte> memory) {
    (void)memory;
    return false;
  }
  // Takes room, if it keeps any, for so many in flight: with no more, submit() and poll() allocate
  // nothing, however the disk orders what completes. It never shrinks.
  virtual void reserve(std::size_t transfers) { (void)transfers; }
  // The last call before destruction: drops what the operating system has not been given yet, and
  // waits until it holds nothing any more, which it says. Not by the deadline: then it may touch
  // the memory at any time, and the Sink, and neither may ever go (tiers/io/left_to_kernel.h). A
  // Sink whose transfers are over when they are submitted has nothing to wait for.
  virtual bool drain(Deadline deadline) {
    (void)deadline;
    return true;
  }
  // Submitted and not polled yet.
  virtual std::size_t in_flight() const = 0;
};

struct SinkOptions {
  // Transfers that the ring holds at once. Measured (docs/performance.md): 128 read a quarter more
  // pages of 4 KiB a second than 32, and two thirds more of 16 KiB; of 64 KiB as many.
  std::size_t depth = 128;
  std::size_t threads = 4;  // of the pread pool
};

// The back ends of this build, in the order in which auto tries them: runnable here or not, but for
// the last, which runs everywhere.
std::vector<std::string_view> sink_names();

// `backend` is auto or one of those. A named one that cannot run is an error that names the cause;
// auto takes the first that opens, and says in `note` why not one before it (empty: it is the
// first).
struct ChosenSink {
  std::unique_ptr<Sink> sink;
  std::string note;
};
Result<ChosenSink> open_sink(std::string_view backend, const SinkOptions& options);

}  // namespace thermocline
