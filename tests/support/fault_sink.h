// A Sink that lies, fails and dawdles on purpose, from a seed.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <utility>
#include <vector>

#include "tiers/io/sink.h"

namespace thermocline {

// Each transfer suffers at most one.
enum class Fault : std::uint8_t {
  io_error,     // completes with FaultPlan::error; the memory of a read is scribbled over
  again,        // completes with EAGAIN: the retries inside a Sink were used up
  short_read,   // half of the bytes arrive; completes with ENODATA (a write: half is written, EIO)
  delay,        // whole, but held back for FaultPlan::delay
  bit_flip,     // a read completes well with one bit wrong
  misdirected,  // a read completes well with other pages of the same file, which differ
  stale,        // a read completes well with what its pages held before their last write
  lost_write,   // a write completes well and is not carried out
};
inline constexpr std::size_t kFaults = 8;

struct FaultPlan {
  std::uint64_t seed = 1;
  std::array<double, kFaults> rate{};  // probability for each transfer that can suffer it
  // The n-th transfer (from 0) that can suffer `fault`, and then all later ones if `for_ever`.
  struct Strike {
    Fault fault;
    std::uint64_t nth = 0;
    bool for_ever = false;
  };
  std::optional<Strike> strike{};
  bool reorder = false;  // completions come in a random order
  int error = 5;         // EIO
  std::chrono::microseconds delay{2000};

  FaultPlan& with(Fault fault, double probability) {
    rate[static_cast<std::size_t>(fault)] = probability;
    return *this;
  }
};

struct FaultCounts {
  std::uint64_t reads = 0, writes = 0, read_bytes = 0, written_bytes = 0, completions = 0;
  std::array<std::uint64_t, kFaults> injected{};

  std::uint64_t operator[](Fault fault) const { return injected[static_cast<std::size_t>(fault)]; }
  std::uint64_t silent() const;  // faults that no completion reported
};

// The contract of every Sink, over any Sink. A fault that cannot happen (stale: nothing was
// overwritten; misdirected: nothing different is known to be elsewhere) is not injected and not
// counted, so FaultCounts says exactly what the code under test was exposed to. These two know
// only what was written through this Sink, in whole pages.
class FaultSink final : public Sink {
 public:
  FaultSink(std::unique_ptr<Sink> inner, FaultPlan plan);
  explicit FaultSink(FaultPlan plan);  // over memory
  ~FaultSink() override;

  std::string_view name() const override { return "faults"; }
  Status submit(std::span<const Transfer> transfers) override;
  Result<std::size_t> poll(std::span<Completion> out, Deadline deadline) override;
  bool drain(Deadline deadline) override { return inner_->drain(deadline); }
  std::size_t in_flight() const override { return in_flight_; }

  const FaultCounts& counts() const { return counts_; }
  void set_plan(FaultPlan plan);  // from the next transfer on; starts its seed and counting again
  Sink& inner() { return *inner_; }

 private:
  using Place = std::pair<int, std::uint64_t>;  // file, offset
  struct Pending {
    Transfer transfer;  // as the caller gave it
    std::optional<Fault> fault;
    std::vector<std::byte> stale;
  };
  struct Ready {
    Completion completion;
    Deadline not_before;
  };

  std::optional<Fault> draw(const Transfer& transfer);
  bool possible(Fault fault, const Transfer& transfer) const;
  std::optional<std::uint64_t> elsewhere(const Transfer& transfer) const;
  std::vector<std::byte> older(const Transfer& transfer) const;
  void remember(const Transfer& write);
  void completed(const Completion& inner);

  std::unique_ptr<Sink> inner_;
  FaultPlan plan_;
  FaultCounts counts_;
  std::mt19937_64 random_;
  std::uint64_t struck_ = 0;  // transfers that could have suffered the strike
  std::size_t in_flight_ = 0;
  std::map<std::uint64_t, Pending> pending_;  // by the tag that the inner Sink sees
  std::uint64_t next_tag_ = 0;
  std::vector<Ready> ready_;
  std::map<Place, std::vector<std::byte>> now_, before_;  // by page: last write, the one before
};

}  // namespace thermocline
