// What an operating system does to a transfer when a disk is in trouble, from a seed. The program
// is linked so that calls of pread, pwrite and of io_uring's entries come here first: whatever is
// above them runs as it is, the whole cache with both back ends.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <optional>

namespace thermocline {

enum class KernelFault : std::uint8_t {
  again,        // EAGAIN
  interrupted,  // EINTR
  partial,      // half of the bytes, or fewer
  late,         // whole, KernelFaultPlan::late later
  io_error,     // EIO; nothing was read
  flipped,      // one bit of what was read is wrong
  misdirected,  // what was read lies elsewhere in the file, and differs
  stale,        // what was read was there before the last write, and differs
  write_error,  // EIO; nothing was written
  full,         // ENOSPC; nothing was written
  lost,         // nothing was written, and it says that all was
};
inline constexpr std::size_t kKernelFaults = 11;
const char* name_of(KernelFault fault);

struct KernelFaultPlan {
  std::uint64_t seed = 1;
  // Probability of each fault for each transfer that can suffer it.
  std::array<double, kKernelFaults> rate{};
  // Of what a retry makes good by reading again there is one at a time: none until the page that
  // suffered it has been read well, and a few others after it.
  bool one_at_a_time = true;
  // All transfers that can suffer this, from the `first`-th of them on.
  std::optional<KernelFault> always{};
  std::uint64_t first = 0;
  std::chrono::microseconds late{500};

  KernelFaultPlan& with(KernelFault fault, double probability) {
    rate[static_cast<std::size_t>(fault)] = probability;
    return *this;
  }
};

struct KernelFaultCounts {
  std::uint64_t transfers = 0;
  std::array<std::uint64_t, kKernelFaults> injected{};
  std::uint64_t operator[](KernelFault fault) const {
    return injected[static_cast<std::size_t>(fault)];
  }
  std::uint64_t total() const;
};

// One at a time. Strikes transfers of whole pages for as long as it lives.
class KernelFaults {
 public:
  explicit KernelFaults(const KernelFaultPlan& plan);
  ~KernelFaults();
  KernelFaults(const KernelFaults&) = delete;
  KernelFaults& operator=(const KernelFaults&) = delete;
  KernelFaultCounts counts() const;
};

// What calls of the system answer instead of doing anything, io_uring's own and what goes with
// them: errno values, and how many times.
struct RingRefusals {
  int setup = 0, setups = 0;     // io_uring_queue_init_params
  int enter = 0, enters = 0;     // entering to submit or wait
  int keep = 0, keeps = 0;       // io_uring_register_buffers
  int wait = 0, waits = 0;       // io_uring_wait_cqe, when a ring is drained
  int memory = 0, memories = 0;  // memfd_create, on which a ring is tried
  int lock = 0, locks = 0;       // flock, of a session's file
  int look = 0, looks = 0;       // fstat, after so many that are answered
  int looks_before = 0;
  int room = 0, rooms = 0;  // fallocate, of what is to be written, after so many that are answered
  int rooms_before = 0;
  // statx, asked for the alignment of direct transfers, which it then says are these; 0: there are
  // none.
  int asks = 0;
  std::uint32_t direct_memory = 0, direct_offset = 0;
  bool old_kernel = false;  // rings can neither wait with a deadline nor keep completions
  bool other_file = false;  // memfd_create gives a file that does not keep what is written
};
void set_ring_refusals(const RingRefusals& refusals);
RingRefusals ring_refusals_left();

}  // namespace thermocline
