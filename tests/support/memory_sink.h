// A Sink over plain memory: the disk that never fails, for putting faults on top.
#pragma once

#include <map>
#include <vector>

#include "tiers/io/fifo.h"
#include "tiers/io/sink.h"

namespace thermocline {

// Any number stands for a file; a file grows when it is written. Reading beyond its end is ENODATA,
// as on disk. A transfer is carried out when it is submitted and complete at the next poll.
class MemorySink final : public Sink {
 public:
  std::string_view name() const override { return "memory"; }
  Status submit(std::span<const Transfer> transfers) override;
  Result<std::size_t> poll(std::span<Completion> out, Deadline deadline) override;
  std::size_t in_flight() const override { return finished_.size(); }

  // The content itself, to look at or to damage.
  std::vector<std::byte>& file(int number) { return files_[number]; }

 private:
  int carry_out(const Transfer& transfer);

  std::map<int, std::vector<std::byte>> files_;
  Fifo<Completion> finished_;
};

}  // namespace thermocline
