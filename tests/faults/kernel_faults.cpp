#include "tests/faults/kernel_faults.h"

#include <fcntl.h>
#include <liburing.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <map>
#include <mutex>
#include <random>
#include <span>
#include <thread>
#include <vector>

#include "kernels/base/buffer.h"
#include "kernels/base/error.h"

extern "C" {
ssize_t __real_pread(int, void*, std::size_t, off_t);
ssize_t __real_pwrite(int, const void*, std::size_t, off_t);
int __real_io_uring_queue_init_params(unsigned, io_uring*, io_uring_params*);
int __real_memfd_create(const char*, unsigned);
int __real_flock(int, int);
int __real_fstat(int, struct stat*);
int __real_fallocate(int, int, off_t, off_t);
int __real_statx(int, const char*, int, unsigned, struct statx*);
int __real_io_uring_register_buffers(io_uring*, const iovec*, unsigned);
int __real_io_uring_submit_and_get_events(io_uring*);
int __real_io_uring_submit_and_wait_timeout(io_uring*, io_uring_cqe**, unsigned, __kernel_timespec*,
                                            sigset_t*);
int __real___io_uring_get_cqe(io_uring*, io_uring_cqe**, unsigned, unsigned, sigset_t*);
}

namespace thermocline {
namespace {

constexpr std::array kAll = {KernelFault::again, KernelFault::interrupted, KernelFault::partial,
                             KernelFault::late,  KernelFault::io_error,    KernelFault::flipped,
                             KernelFault::stale, KernelFault::misdirected, KernelFault::write_error,
                             KernelFault::full,  KernelFault::lost};

// Whether reading once more makes it good, as opposed to trying the same transfer again.
bool is_hard(KernelFault fault) {
  return fault == KernelFault::io_error || fault == KernelFault::flipped ||
         fault == KernelFault::stale || fault == KernelFault::misdirected;
}

struct Call {
  bool read = true;
  int file = -1;
  std::uint64_t offset = 0;
  std::span<std::byte> bytes;
};

bool in_whole_pages(const Call& call) {
  return !call.bytes.empty() && call.bytes.size() % kPageBytes == 0 &&
         call.offset % kPageBytes == 0;
}

// What is to become of a call. `content`: what a read that lies is given.
struct Verdict {
  std::optional<KernelFault> fault;
  std::vector<std::byte> content;
  std::uint64_t bit = 0;
  std::chrono::microseconds late{};
};

// All that is known of the file, and what has befallen it. Every member with `mutex` held.
class Disaster {
 public:
  explicit Disaster(const KernelFaultPlan& plan) : plan_(plan), random_(plan.seed) {}

  Verdict judge(const Call& call) {
    Verdict verdict;
    if (!in_whole_pages(call)) return verdict;
    ++counts.transfers;
    if (plan_.always) {
      if (fits(*plan_.always, call, &verdict) && seen_++ >= plan_.first)
        verdict.fault = plan_.always;
    } else {
      for (const KernelFault fault : kAll) {
        const double rate = plan_.rate[static_cast<std::size_t>(fault)];
        if (rate <= 0 || std::uniform_real_distribution<double>(0, 1)(random_) >= rate) continue;
        if (is_hard(fault) && plan_.one_at_a_time && quiet_ > 0) continue;
        if (!fits(fault, call, &verdict)) continue;
        verdict.fault = fault;
        break;
      }
    }
    if (!verdict.fault && call.read) calm(call);
    if (verdict.fault != KernelFault::stale && verdict.fault != KernelFault::misdirected)
      verdict.content.clear();  // of one that was thought of
    if (!verdict.fault) return verdict;
    ++counts.injected[static_cast<std::size_t>(*verdict.fault)];
    if (is_hard(*verdict.fault)) hurt_ = call.offset, quiet_ = kLongQuiet;
    if (verdict.fault == KernelFault::late) verdict.late = plan_.late;
    verdict.bit = random_() % (call.bytes.size() * 8);
    return verdict;
  }
  void written(const Call& call) {
    if (!in_whole_pages(call)) return;
    for (std::size_t at = 0; at < call.bytes.size(); at += kPageBytes) {
      auto& page = now_[{call.file, call.offset + at}];
      if (!page.empty()) before_[{call.file, call.offset + at}] = std::move(page);
      const auto bytes = call.bytes.subspan(at, kPageBytes);
      page.assign(bytes.begin(), bytes.end());
    }
  }

  KernelFaultCounts counts;

 private:
  static constexpr int kLongQuiet = 400, kShortQuiet = 40;  // reads

  void calm(const Call& call) {
    if (quiet_ > 0) --quiet_;
    if (quiet_ > kShortQuiet && call.offset <= hurt_ && hurt_ < call.offset + call.bytes.size())
      quiet_ = kShortQuiet;
  }
  bool fits(KernelFault fault, const Call& call, Verdict* verdict) {
    switch (fault) {
      case KernelFault::again:
      case KernelFault::interrupted:
      case KernelFault::late:
        return true;
      case KernelFault::partial:
        return call.bytes.size() >= 2 * kPageBytes || plan_.always;
      case KernelFault::io_error:
      case KernelFault::flipped:
        return call.read;
      case KernelFault::write_error:
      case KernelFault::full:
      case KernelFault::lost:
        return !call.read;
      case KernelFault::stale:
        return call.read && other(call, before_, 0, verdict);
      case KernelFault::misdirected:
        for (const std::uint64_t distance : {call.bytes.size(), std::size_t{7} * kPageBytes})
          if (call.read &&
              (other(call, now_, distance, verdict) || other(call, now_, 0 - distance, verdict)))
            return true;
        return false;
    }
    return false;
  }
  // The pages that lie `distance` further, as `pages` has them. Each differs from what is there, so
  // that whichever of them is looked at is wrong.
  using Pages = std::map<std::pair<int, std::uint64_t>, std::vector<std::byte>>;
  bool other(const Call& call, const Pages& pages, std::uint64_t distance, Verdict* verdict) const {
    verdict->content.clear();
    for (std::size_t at = 0; at < call.bytes.size(); at += kPageBytes) {
      const auto here = now_.find({call.file, call.offset + at});
      const auto there = pages.find({call.file, call.offset + at + distance});
      if (here == now_.end() || there == pages.end() || here->second == there->second) return false;
      verdict->content.insert(verdict->content.end(), there->second.begin(), there->second.end());
    }
    return true;
  }

  KernelFaultPlan plan_;
  std::mt19937_64 random_;
  Pages now_, before_;
  std::uint64_t seen_ = 0, hurt_ = 0;
  int quiet_ = 0;  // reads without a hard fault that are still to come
};

// Read before the mutex is taken: without a disaster, transfers are as concurrent as they come.
std::atomic<bool> striking{false};
std::mutex mutex;  // guards all of what follows
std::unique_ptr<Disaster> disaster;
RingRefusals refusals;
struct Struck {
  Call call;
  Verdict verdict;
};
std::map<std::pair<io_uring*, std::uint64_t>, Struck> in_ring;  // by what identifies a transfer

void lie(const Call& call, const Verdict& verdict) {
  if (verdict.fault == KernelFault::flipped)
    call.bytes[verdict.bit / 8] ^= std::byte{1} << verdict.bit % 8;
  else if (!verdict.content.empty())
    std::ranges::copy(verdict.content, call.bytes.begin());
}

int refusal_of(KernelFault fault) {
  switch (fault) {
    case KernelFault::again:
      return EAGAIN;
    case KernelFault::interrupted:
      return EINTR;
    case KernelFault::io_error:
    case KernelFault::write_error:
      return EIO;
    case KernelFault::full:
      return ENOSPC;
    default:
      return 0;
  }
}

// Not a whole page more, as it may be of a direct transfer.
std::size_t part_of(std::size_t bytes) { return bytes / 2 / 512 * 512; }

template <typename Carry>
ssize_t call_of_thread(const Call& call, Carry carry_out) {
  if (!striking.load(std::memory_order_relaxed)) return carry_out(call.bytes.size());
  Verdict verdict;
  {
    std::lock_guard lock(mutex);
    if (!disaster) return carry_out(call.bytes.size());
    verdict = disaster->judge(call);
  }
  const auto fault = verdict.fault;
  if (fault && refusal_of(*fault) != 0) {
    errno = refusal_of(*fault);
    return -1;
  }
  if (fault == KernelFault::late) std::this_thread::sleep_for(verdict.late);
  if (fault == KernelFault::lost) return static_cast<ssize_t>(call.bytes.size());
  const ssize_t count =
      carry_out(fault == KernelFault::partial ? part_of(call.bytes.size()) : call.bytes.size());
  std::lock_guard lock(mutex);
  if (count > 0 && !call.read && disaster) disaster->written(call);
  if (count > 0 && call.read) lie(call, verdict);
  return count;
}

// Looks at what is about to be handed to the kernel. What shall fail becomes a request for nothing.
void strike_submissions(io_uring* ring) {
  std::lock_guard lock(mutex);
  if (!disaster || !(ring->flags & IORING_SETUP_DEFER_TASKRUN)) return;
  for (unsigned i = ring->sq.sqe_head; i != ring->sq.sqe_tail; ++i) {
    io_uring_sqe& sqe = ring->sq.sqes[i & ring->sq.ring_mask];
    if (in_ring.contains({ring, sqe.user_data})) continue;
    Call call;
    call.read = sqe.opcode == IORING_OP_READ || sqe.opcode == IORING_OP_READ_FIXED;
    call.file = sqe.fd;
    call.offset = sqe.off;
    call.bytes = {reinterpret_cast<std::byte*>(sqe.addr), sqe.len};
    Verdict verdict = disaster->judge(call);
    if (!call.read && !verdict.fault) disaster->written(call);
    const auto fault = verdict.fault;
    if (fault && (refusal_of(*fault) != 0 || fault == KernelFault::lost)) {
      const std::uint64_t tag = sqe.user_data;
      io_uring_prep_nop(&sqe);
      sqe.user_data = tag;
    }
    if (fault == KernelFault::partial) sqe.len = static_cast<unsigned>(part_of(call.bytes.size()));
    in_ring.insert_or_assign({ring, sqe.user_data}, Struck{call, std::move(verdict)});
  }
}

void strike_completions(io_uring* ring) {
  std::chrono::microseconds late{};
  {
    std::lock_guard lock(mutex);
    io_uring_cqe* cqe = nullptr;
    unsigned head = 0;
    io_uring_for_each_cqe(ring, head, cqe) {
      const auto found = in_ring.find({ring, cqe->user_data});
      if (found == in_ring.end()) continue;
      const auto& [call, verdict] = found->second;
      if (const auto fault = verdict.fault) {
        if (const int refusal = refusal_of(*fault)) cqe->res = -refusal;
        if (fault == KernelFault::lost) cqe->res = static_cast<int>(call.bytes.size());
        if (call.read && cqe->res > 0) lie(call, verdict);
        if (fault == KernelFault::partial && !call.read && disaster) disaster->written(call);
        late = std::max(late, verdict.late);
      }
      in_ring.erase(found);
    }
  }
  if (late.count() > 0) std::this_thread::sleep_for(late);
}

int refused(int error, int* times, int* before = nullptr) {
  std::lock_guard lock(mutex);
  if (*times == 0 || (before && (*before)-- > 0)) return 0;
  --*times;
  return -error;
}

}  // namespace

const char* name_of(KernelFault fault) {
  static constexpr std::array kNames = {"EAGAIN",      "EINTR",   "short",       "delayed",
                                        "EIO",         "flipped", "misdirected", "stale",
                                        "EIO (write)", "ENOSPC",  "lost"};
  return kNames[static_cast<std::size_t>(fault)];
}

std::uint64_t KernelFaultCounts::total() const {
  std::uint64_t sum = 0;
  for (const std::uint64_t n : injected) sum += n;
  return sum;
}

KernelFaults::KernelFaults(const KernelFaultPlan& plan) {
  std::lock_guard lock(mutex);
  TL_CHECK(!disaster);
  disaster = std::make_unique<Disaster>(plan);
  striking = true;
}
KernelFaults::~KernelFaults() {
  std::lock_guard lock(mutex);
  striking = false;
  disaster.reset();
}
KernelFaultCounts KernelFaults::counts() const {
  std::lock_guard lock(mutex);
  return disaster->counts;
}

void set_ring_refusals(const RingRefusals& wanted) {
  std::lock_guard lock(mutex);
  refusals = wanted;
}
RingRefusals ring_refusals_left() {
  std::lock_guard lock(mutex);
  return refusals;
}

}  // namespace thermocline

using namespace thermocline;

extern "C" {

ssize_t __wrap_pread(int file, void* bytes, std::size_t size, off_t offset) {
  const Call call{
      true, file, static_cast<std::uint64_t>(offset), {static_cast<std::byte*>(bytes), size}};
  return call_of_thread(call, [&](std::size_t n) { return __real_pread(file, bytes, n, offset); });
}

ssize_t __wrap_pwrite(int file, const void* bytes, std::size_t size, off_t offset) {
  const Call call{false,
                  file,
                  static_cast<std::uint64_t>(offset),
                  {static_cast<std::byte*>(const_cast<void*>(bytes)), size}};
  return call_of_thread(call, [&](std::size_t n) { return __real_pwrite(file, bytes, n, offset); });
}

int __wrap_io_uring_queue_init_params(unsigned entries, io_uring* ring, io_uring_params* params) {
  if (const int error = refused(refusals.setup, &refusals.setups)) return error;
  const int result = __real_io_uring_queue_init_params(entries, ring, params);
  if (ring_refusals_left().old_kernel) params->features = 0;
  return result;
}

int __wrap_memfd_create(const char* name, unsigned flags) {
  if (const int error = refused(refusals.memory, &refusals.memories)) {
    errno = -error;
    return -1;
  }
  if (ring_refusals_left().other_file) return ::open("/dev/zero", O_RDWR | O_CLOEXEC);
  return __real_memfd_create(name, flags);
}

int __wrap_flock(int file, int operation) {
  if (const int error = refused(refusals.lock, &refusals.locks)) {
    errno = -error;
    return -1;
  }
  return __real_flock(file, operation);
}

int __wrap_fstat(int file, struct stat* found) {
  if (const int error = refused(refusals.look, &refusals.looks, &refusals.looks_before)) {
    errno = -error;
    return -1;
  }
  return __real_fstat(file, found);
}

int __wrap_fallocate(int file, int mode, off_t offset, off_t bytes) {
  const int error = mode == 0 ? refused(refusals.room, &refusals.rooms, &refusals.rooms_before) : 0;
  if (error == 0) return __real_fallocate(file, mode, offset, bytes);
  errno = -error;
  return -1;
}

int __wrap_statx(int file, const char* name, int flags, unsigned mask, struct statx* found) {
  const int result = __real_statx(file, name, flags, mask, found);
#ifdef STATX_DIOALIGN
  std::lock_guard lock(mutex);
  if (result != 0 || !(mask & STATX_DIOALIGN) || refusals.asks == 0) return result;
  --refusals.asks;
  found->stx_mask |= STATX_DIOALIGN;
  found->stx_dio_mem_align = refusals.direct_memory;
  found->stx_dio_offset_align = refusals.direct_offset;
#endif
  return result;
}

int __wrap_io_uring_register_buffers(io_uring* ring, const iovec* areas, unsigned count) {
  if (const int error = refused(refusals.keep, &refusals.keeps)) return error;
  return __real_io_uring_register_buffers(ring, areas, count);
}

int __wrap_io_uring_submit_and_get_events(io_uring* ring) {
  if (const int error = refused(refusals.enter, &refusals.enters)) return error;
  strike_submissions(ring);
  const int result = __real_io_uring_submit_and_get_events(ring);
  strike_completions(ring);
  return result;
}

int __wrap_io_uring_submit_and_wait_timeout(io_uring* ring, io_uring_cqe** cqe, unsigned count,
                                            __kernel_timespec* limit, sigset_t* signals) {
  if (const int error = refused(refusals.enter, &refusals.enters)) return error;
  strike_submissions(ring);
  const int result = __real_io_uring_submit_and_wait_timeout(ring, cqe, count, limit, signals);
  strike_completions(ring);
  return result;
}

int __wrap___io_uring_get_cqe(io_uring* ring, io_uring_cqe** cqe, unsigned submit, unsigned count,
                              sigset_t* signals) {
  if (const int error = refused(refusals.wait, &refusals.waits)) return error;
  strike_submissions(ring);
  const int result = __real___io_uring_get_cqe(ring, cqe, submit, count, signals);
  strike_completions(ring);
  return result;
}

}  // extern "C"
