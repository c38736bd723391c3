#include "tiers/io/uring_sink.h"

#include <liburing.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "tiers/io/attempt.h"
#include "tiers/io/descriptor.h"
#include "tiers/io/errno_text.h"
#include "tiers/io/fifo.h"
#include "tiers/size_text.h"

namespace thermocline {
namespace {

using std::chrono::milliseconds;
using Clock = std::chrono::steady_clock;

// Thread ids are used again; these are not.
std::uint64_t this_thread_number() {
  static std::atomic<std::uint64_t> threads{0};
  thread_local const std::uint64_t number = ++threads;
  return number;
}

std::uint64_t memlock_bytes() {
  rlimit limit{};
  return ::getrlimit(RLIMIT_MEMLOCK, &limit) == 0 ? limit.rlim_cur : RLIM_INFINITY;
}

std::string why_not(int error) {
  std::string cause;
  if (error == EPERM || error == EACCES)
    cause = "kernel.io_uring_disabled or a seccomp profile";
  else if (error == ENOSYS)
    cause = "a kernel without io_uring, or a seccomp profile";
  else if (error == ENOMEM)
    cause = "RLIMIT_MEMLOCK is " + std::to_string(memlock_bytes()) + " bytes: see ulimit -l";
  else if (error == EMFILE || error == ENFILE)
    cause = "too many open files: see ulimit -n";
  else
    return "io_uring is not available: " + errno_text(error);
  return "io_uring is not available: " + errno_name(error) + " (" + cause + ")";
}

// Calls `attempt`, which returns 0 or an errno value, until that is not ENOMEM or has been it for
// long enough: a closed ring gives its memory back later (measured: up to 20 ms), so it may pass.
template <typename Call>
int while_memory_returns(Call attempt) {
  for (auto pause = milliseconds(1);; pause *= 2) {
    const int error = attempt();
    if (error != ENOMEM || pause > milliseconds(16)) return error;
    std::this_thread::sleep_for(pause);
  }
}

// The two rings that are shared with the kernel. Holds an address that the kernel knows: it stays
// where it is.
class Ring {
 public:
  Ring() = default;
  Ring(const Ring&) = delete;
  Ring& operator=(const Ring&) = delete;
  ~Ring() { close(); }

  // 0 or an errno value. `entries` comes back as what there is.
  int open(unsigned* entries) {
    // Before 5.12, and on some later kernels, rings are charged to RLIMIT_MEMLOCK: an entry of the
    // submission ring and the two of the completion ring that go with it, and a page for each.
    const std::uint64_t affordable =
        memlock_bytes() == RLIM_INFINITY ? ~std::uint64_t{0} : memlock_bytes() / kEntryBytes;
    constexpr unsigned kFewest = 8;
    while (*entries > kFewest && *entries > affordable) *entries /= 2;
    int error = open_once(*entries);
    for (; error == ENOMEM && *entries > kFewest; error = open_once(*entries)) *entries /= 2;
    if (error != ENOMEM || memlock_bytes() == 0) return error;
    return while_memory_returns([&] { return open_once(*entries); });
  }
  // Registers `memory`, in which transfers are then fixed ones: 4 to 20 % less processor time a
  // read. (A registered file beside it changed nothing that could be measured.)
  bool keep(std::span<std::byte> memory) {
    const iovec area{memory.data(), memory.size()};
    const auto attempt = [&] { return -io_uring_register_buffers(&ring_, &area, 1); };
    // More than the limit goes with privileges, which say so at once.
    keeps_ = (memory.size() > memlock_bytes() ? attempt() : while_memory_returns(attempt)) == 0;
    return keeps_;
  }
  void close() {
    // Registered memory counts against the limit for as long as the kernel takes to tear down the
    // ring; given back by name it is free for the next one at once.
    if (keeps_) (void)io_uring_unregister_buffers(&ring_);
    if (open_) io_uring_queue_exit(&ring_);
    open_ = keeps_ = false;
  }
  bool is_open() const { return open_; }
  io_uring* get() { return &ring_; }

 private:
  static constexpr std::uint64_t kEntryBytes = 64 + 4 + 2 * 16;

  int open_once(unsigned entries) {
    // Best first. Deferred task work runs when we ask for completions instead of interrupting the
    // arithmetic (+5..15 % transfers a second); it needs 6.1, COOP_TASKRUN 5.19.
    static constexpr std::array<unsigned, 3> kFlags = {
        IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG |
            IORING_SETUP_COOP_TASKRUN,
        IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG, 0};
    int error = 0;
    for (const unsigned flags : kFlags) {
      io_uring_params params{};
      params.flags = flags;
      error = -io_uring_queue_init_params(entries, &ring_, &params);
      if (error == EINVAL) continue;
      if (error != 0) return error;
      open_ = true;
      // Without these a wait cannot have a deadline (5.11), or a completion can be lost (5.5).
      if ((params.features & IORING_FEAT_EXT_ARG) && (params.features & IORING_FEAT_NODROP))
        return 0;
      close();
      return ENOSYS;
    }
    return error;
  }

  io_uring ring_{};
  bool open_ = false, keeps_ = false;
};

class UringSink final : public Sink {
 public:
  ~UringSink() override {
    const bool ours = owner_ == this_thread_number();
    // Away from its thread, and still in flight: a mistake, since nobody waits for them any more.
    TL_CHECK(drain(ours ? Deadline::max() : Clock::now() + kDrainLimit));
  }

  Status start(std::size_t depth) {
    depth_ = std::bit_ceil(static_cast<unsigned>(depth));
    if (const int error = ring_.open(&depth_)) return fail(ErrorCode::unsupported, why_not(error));
    depth_ = std::min(depth_, static_cast<unsigned>(depth));
    owner_ = this_thread_number();
    return probe();
  }

  std::string_view name() const override { return "uring"; }
  std::size_t in_flight() const override { return in_flight_; }
  void reserve(std::size_t transfers) override {
    attempts_.reserve(transfers);
    spare_.reserve(transfers);
    waiting_.reserve(transfers);
    finished_.reserve(transfers);
  }

  bool keep(std::span<std::byte> memory) override {
    constexpr std::size_t kMostBytes = std::size_t{1} << 30;   // of one registration
    constexpr std::size_t kLeastBytes = std::size_t{1} << 20;  // of a part that is worth one
    if (!belong_to_this_thread() || memory.empty()) return false;
    const std::size_t most = std::min(memory.size(), kMostBytes);
    for (std::size_t bytes = most; kept_.empty(); bytes /= 2) {
      if (bytes < most && bytes < kLeastBytes) return false;
      if (ring_.keep(memory.first(bytes))) kept_ = memory.first(bytes);
    }
    return kept_.size() == most;
  }

  Status submit(std::span<const Transfer> transfers) override {
    for (const Transfer& transfer : transfers)
      if (transfer.bytes.empty())
        return fail(ErrorCode::invalid_argument, "a transfer of no bytes at ", transfer.offset);
    TL_TRY(belong_to_this_thread());
    for (const Transfer& transfer : transfers) {
      waiting_.push(new_attempt(transfer));
      ++in_flight_;
    }
    issue();
    if (io_uring_sq_ready(ring_.get()) > 0) enter_now();
    return {};
  }

  // What sits in the submission ring was never the kernel's.
  bool drain(Deadline deadline) override {
    const bool ours = owner_ == this_thread_number();
    for (;;) {
      reap();
      if (!ring_.is_open() || in_ring_ <= io_uring_sq_ready(ring_.get())) return true;
      const auto now = Clock::now();
      if (now >= deadline) return false;
      if (broken_ == 0 && ours) {
        __kernel_timespec timeout = time_until(deadline, now);
        io_uring_cqe* cqe = nullptr;
        const int result = io_uring_wait_cqe_timeout(ring_.get(), &cqe, &timeout);
        if (result < 0 && result != -ETIME && result != -EINTR && result != -EAGAIN)
          broken_ = -result;
        continue;
      }
      // Broken, or on a thread that the ring does not answer: its own thread, or the end of it,
      // completes what is left.
      if (broken_ != 0 && ours) (void)io_uring_get_events(ring_.get());
      std::this_thread::sleep_for(milliseconds(1));
    }
  }

  Result<std::size_t> poll(std::span<Completion> out, Deadline deadline) override {
    if (in_flight_ == 0 || out.empty()) return std::size_t{0};
    if (broken_ == 0) TL_TRY(belong_to_this_thread());
    bool last_look = false;
    for (unsigned wanted = several(out.size());; wanted = 1) {
      advance();
      if (!finished_.empty() || last_look) break;
      const auto now = Clock::now();
      last_look = now >= deadline;
      if (last_look)
        enter_now();
      else
        enter_until(wanted > 1 ? std::min(deadline, now + kBriefly) : deadline, wanted);
    }
    const std::size_t count = std::min(out.size(), finished_.size());
    for (std::size_t i = 0; i < count; ++i) out[i] = finished_.pop();
    in_flight_ -= count;
    return count;
  }

 private:
  static constexpr std::chrono::microseconds kBriefly{500};
  static constexpr int kRefusals = 64;                // in a row, of io_uring_enter itself
  static constexpr milliseconds kDrainLimit{30'000};  // what a driver may take to give up

  // A ring whose completions are deferred answers only the thread that made it.
  Status belong_to_this_thread() {
    if (broken_ != 0)
      return fail(ErrorCode::io, "io_uring failed earlier with ", errno_text(broken_));
    if (owner_ == this_thread_number()) return {};
    reap();
    if (in_ring_ > 0)
      return fail(
          ErrorCode::io, "io_uring: ", in_ring_,
          " transfers of another thread did not finish, and only that one can wait for them");
    ring_.close();
    unsigned entries = std::bit_ceil(depth_);
    if (const int error = ring_.open(&entries)) {
      broken_ = error;
      fail_everything();
      return fail(ErrorCode::io, "on another thread: ", why_not(error));
    }
    depth_ = std::min(depth_, entries);
    owner_ = this_thread_number();
    if (!kept_.empty() && !ring_.keep(kept_)) kept_ = {};
    return {};
  }

  Status probe() {
    Descriptor file(::memfd_create("thermocline-probe", MFD_CLOEXEC));
    std::array<std::byte, 512> sent, received{};
    sent.fill(std::byte{0x5a});
    if (!file.open() || ::pwrite(file.number(), sent.data(), sent.size(), 0) < 0)
      return fail(ErrorCode::unsupported, "io_uring could not be tried: a memory file failed with ",
                  errno_text(errno));
    const Transfer read{.file = file.number(), .bytes = received};
    TL_TRY(submit({&read, 1}));
    Completion completion;
    TL_TRY_ASSIGN(const std::size_t count,
                  poll({&completion, 1}, Clock::now() + std::chrono::seconds(5)));
    if (count == 0) return fail(ErrorCode::unsupported, why_not(ETIME));
    if (completion.error != 0) return fail(ErrorCode::unsupported, why_not(completion.error));
    if (received != sent) return fail(ErrorCode::unsupported, why_not(EILSEQ));
    return {};
  }

  std::uint32_t new_attempt(const Transfer& transfer) {
    if (spare_.empty()) {
      attempts_.emplace_back();
      spare_.push_back(static_cast<std::uint32_t>(attempts_.size() - 1));
    }
    const std::uint32_t slot = spare_.back();
    spare_.pop_back();
    attempts_[slot] = {.transfer = transfer};
    return slot;
  }

  void finish(std::uint32_t slot, int error) {
    finished_.push({attempts_[slot].transfer.tag, error});
    spare_.push_back(slot);
  }

  // Takes what has completed and hands the ring what waited, so that the disk is never idle while
  // the caller works on what it was given.
  void advance() {
    reap();
    issue();
    if (ring_.is_open() && io_uring_sq_ready(ring_.get()) > 0) enter_now();
  }

  void issue() {
    if (!ring_.is_open()) return;
    while (!waiting_.empty() && in_ring_ < depth_) {
      io_uring_sqe* sqe = io_uring_get_sqe(ring_.get());
      if (!sqe) return;
      const std::uint32_t slot = waiting_.pop();
      const Attempt& attempt = attempts_[slot];
      constexpr std::size_t kMostBytes = std::size_t{1} << 30;  // a length is 32 bits
      const auto rest = attempt.rest().first(std::min(attempt.rest().size(), kMostBytes));
      const auto length = static_cast<unsigned>(rest.size());
      const int file = attempt.transfer.file;
      const bool kept = is_kept(rest);
      if (attempt.transfer.kind == Transfer::Kind::read) {
        if (kept)
          io_uring_prep_read_fixed(sqe, file, rest.data(), length, attempt.offset(), 0);
        else
          io_uring_prep_read(sqe, file, rest.data(), length, attempt.offset());
      } else {
        if (kept)
          io_uring_prep_write_fixed(sqe, file, rest.data(), length, attempt.offset(), 0);
        else
          io_uring_prep_write(sqe, file, rest.data(), length, attempt.offset());
      }
      // Refused once without blocking: a worker thread of the kernel may block.
      if (attempt.fruitless > 0) io_uring_sqe_set_flags(sqe, IOSQE_ASYNC);
      io_uring_sqe_set_data64(sqe, slot);
      ++in_ring_;
    }
  }

  bool is_kept(std::span<const std::byte> bytes) const {
    const std::less_equal<const std::byte*> before;
    return !kept_.empty() && before(kept_.data(), bytes.data()) &&
           before(bytes.data() + bytes.size(), kept_.data() + kept_.size());
  }

  void reap() {
    if (!ring_.is_open()) return;
    io_uring_cqe* cqe = nullptr;
    unsigned head = 0, count = 0;
    io_uring_for_each_cqe(ring_.get(), head, cqe) {
      const auto slot = static_cast<std::uint32_t>(cqe->user_data);
      if (const auto error = attempts_[slot].settle(cqe->res))
        finish(slot, *error);
      else
        waiting_.push(slot);
      ++count;
    }
    io_uring_cq_advance(ring_.get(), count);
    in_ring_ -= count;
  }

  void enter_now() { answered(io_uring_submit_and_get_events(ring_.get())); }

  // How many completions to wait for at once, briefly: a wake and a submission for each of a full
  // ring's transfers cost 7 % of the rate at depth 32.
  unsigned several(std::size_t room) const {
    constexpr std::size_t kMost = 4;
    return static_cast<unsigned>(std::max<std::size_t>(1, std::min({kMost, in_ring_ / 4, room})));
  }

  // A clock that is far away overflows a timespec; an hour is as good as for ever.
  static __kernel_timespec time_until(Deadline deadline, Deadline now) {
    const auto left = std::clamp<std::chrono::nanoseconds>(
        deadline - now, std::chrono::nanoseconds(0), std::chrono::hours(1));
    return {.tv_sec = left.count() / 1'000'000'000, .tv_nsec = left.count() % 1'000'000'000};
  }

  void enter_until(Deadline deadline, unsigned wanted) {
    __kernel_timespec timeout = time_until(deadline, Clock::now());
    io_uring_cqe* cqe = nullptr;
    answered(io_uring_submit_and_wait_timeout(ring_.get(), &cqe, wanted, &timeout, nullptr));
  }

  // What io_uring_enter said about itself, not about a transfer.
  void answered(int result) {
    if (result >= 0) refusals_ = 0;
    if (result >= 0 || result == -ETIME || result == -EINTR) return;
    const bool passing = result == -EAGAIN || result == -EBUSY;
    if (passing && ++refusals_ < kRefusals) {
      std::this_thread::sleep_for(std::chrono::microseconds(50) * refusals_);
      return;  // what was not taken is still in the submission ring
    }
    break_down(-result);
  }

  // EBADR: the kernel dropped a completion, so some transfer will never be heard of again. Every
  // transfer fails; nobody waits for ever.
  void break_down(int error) {
    if (broken_ != 0) return;
    broken_ = error;
    (void)drain(Clock::now() + kDrainLimit);
    ring_.close();
    fail_everything();
  }

  void fail_everything() {
    std::vector<bool> idle(attempts_.size(), false);
    for (const std::uint32_t slot : spare_) idle[slot] = true;
    for (std::uint32_t slot = 0; slot < attempts_.size(); ++slot)
      if (!idle[slot]) finish(slot, broken_);
    while (!waiting_.empty()) waiting_.pop();
    in_ring_ = 0;
  }

  Ring ring_;
  unsigned depth_ = 0;       // most transfers in the ring; its completion ring holds twice as many
  std::uint64_t owner_ = 0;  // number of the thread that the ring answers
  int broken_ = 0;           // errno of what broke the ring
  int refusals_ = 0;
  std::span<std::byte> kept_;  // registered with the ring; empty: none
  std::size_t in_ring_ = 0;    // handed to liburing and not reaped
  std::size_t in_flight_ = 0;  // submitted and not polled
  std::vector<Attempt> attempts_;
  std::vector<std::uint32_t> spare_;  // slots of attempts_ that carry nothing
  Fifo<std::uint32_t> waiting_;       // slots to hand to the ring
  Fifo<Completion> finished_;
};

}  // namespace

Result<std::unique_ptr<Sink>> open_uring_sink(const SinkOptions& options) {
  auto sink = std::make_unique<UringSink>();
  TL_TRY(sink->start(options.depth));
  return sink;
}

std::string note_on_loose_memory(std::uint64_t bytes) {
  const std::uint64_t limit = memlock_bytes();
  if (limit == RLIM_INFINITY || limit / 2 > bytes) return {};  // something else refused it
  return "io_uring could not register all of the " + size_text(bytes) +
         " to read into (RLIMIT_MEMLOCK is " + size_text(limit) +
         "), so reads take a little more processor time: raise it (ulimit -l " +
         std::to_string(2 * bytes / 1024) + ")";
}

}  // namespace thermocline
