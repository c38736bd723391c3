// Segments on their way to the disk: whoever seals does not wait for it. A segment's pages stay in
// memory until they are there; and so does its place in the file, though the segment be gone, since
// another's pages there could be written over by what is still in flight.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "kernels/base/buffer.h"
#include "kernels/base/error.h"
#include "kernels/base/tier_counters.h"
#include "tiers/budget.h"
#include "tiers/io/sink.h"
#include "tiers/store/store.h"

namespace thermocline {

// Of one thread, the sink's. Tags with the highest bit set are its own.
class WriteBehind {
 public:
  WriteBehind() = default;  // nothing begins without a sink
  // `sink` and `counters` are borrowed; the sink goes before this does, whose memory it may still
  // be reading. Messages begin with `name`, the store's; a transfer that takes longer than
  // `patience` is an error.
  WriteBehind(Sink* sink, TierCounters* counters, std::string name,
              std::chrono::milliseconds patience);

  // Hands over a segment's pages, as many bytes as `at` has, and holds them until they are there.
  // On an error none is on its way.
  Status begin(std::uint32_t segment, const Space& at, Buffer pages, Reservation memory);
  // The segment is gone, and so is its error. `slot`, its place in the file, is taken if something
  // is still on its way there.
  void let_go(std::uint32_t segment, Slot* slot);

  // Waits for transfers of the sink, those of others too: takes note of its own and leaves the
  // others, the reads, at the beginning of `out`. 0 transfers: none came by the deadline.
  struct Polled {
    std::size_t transfers = 0, reads = 0;
  };
  Result<Polled> poll(std::span<Completion> out, Deadline deadline);
  // Waits until no more than `bytes` are on their way. Reads that arrive meanwhile are lost.
  Status shrink_to(std::uint64_t bytes);
  // Waits for all. The first error since the last call, of a segment that is still there.
  Status finish();

  // The sink is not coming back: pages that it has stay where they are for ever, and so does their
  // place.
  void leave();

  bool has(std::uint32_t segment) const;            // something of it is on its way
  std::size_t in_flight() const;                    // transfers
  bool empty() const { return writings_.empty(); }  // none in flight, and every error was told

 private:
  struct Writing {
    std::uint32_t number = 0;   // of its transfers' tags
    std::uint32_t segment = 0;  // until it is gone
    std::uint64_t offset = 0;   // in the file
    Buffer pages;
    Reservation memory;
    std::optional<Slot> slot;   // the segment is gone
    std::size_t in_flight = 0;  // transfers
    Status status{};
  };
  std::uint64_t bytes() const;
  void wrote(const Completion& completion);

  Sink* sink_ = nullptr;
  TierCounters* counters_ = nullptr;
  std::string name_;
  std::chrono::milliseconds patience_{};
  std::vector<Writing> writings_;  // one that failed stays until somebody was told
  std::uint32_t numbered_ = 0;
};

}  // namespace thermocline
