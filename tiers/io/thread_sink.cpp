#include "tiers/io/thread_sink.h"

#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include "tiers/io/attempt.h"
#include "tiers/io/fifo.h"

namespace thermocline {
namespace {

int carry_out(Attempt attempt) {
  const Transfer& transfer = attempt.transfer;
  for (;;) {
    const auto rest = attempt.rest();
    const auto offset = static_cast<off_t>(attempt.offset());
    const ssize_t count = transfer.kind == Transfer::Kind::read
                              ? ::pread(transfer.file, rest.data(), rest.size(), offset)
                              : ::pwrite(transfer.file, rest.data(), rest.size(), offset);
    const int refusal = count < 0 ? errno : 0;
    if (const auto error = attempt.settle(refusal ? -refusal : count)) return *error;
    // EAGAIN means that the kernel lacks something that it will have again: give it the time.
    if (refusal == EAGAIN)
      std::this_thread::sleep_for(attempt.fruitless * std::chrono::microseconds(100));
  }
}

class ThreadSink final : public Sink {
 public:
  ~ThreadSink() override {
    {
      std::lock_guard lock(mutex_);
      stopping_ = true;  // what waits is dropped
    }
    work_.notify_all();
    for (auto& thread : threads_) thread.join();
  }

  Status start(std::size_t threads) {
    try {
      threads_.reserve(threads);
      while (threads_.size() < threads) threads_.emplace_back([this] { serve(); });
    } catch (const std::system_error& refused) {
      return fail(ErrorCode::exhausted, "could not start ", threads, " threads for reading, only ",
                  threads_.size(), ": ", refused.what());
    }
    return {};
  }

  std::string_view name() const override { return "threads"; }
  std::size_t in_flight() const override { return in_flight_; }
  void reserve(std::size_t transfers) override {
    std::lock_guard lock(mutex_);
    waiting_.reserve(transfers);
    finished_.reserve(transfers);
  }

  Status submit(std::span<const Transfer> transfers) override {
    for (const Transfer& transfer : transfers)
      if (transfer.bytes.empty())
        return fail(ErrorCode::invalid_argument, "a transfer of no bytes at ", transfer.offset);
    {
      std::lock_guard lock(mutex_);
      for (const Transfer& transfer : transfers) waiting_.push({.transfer = transfer});
    }
    in_flight_ += transfers.size();
    if (transfers.size() == 1)
      work_.notify_one();
    else
      work_.notify_all();
    return {};
  }

  bool drain(Deadline deadline) override {
    std::unique_lock lock(mutex_);
    while (!waiting_.empty()) waiting_.pop();
    return completed_.wait_until(lock, deadline, [this] { return busy_ == 0; });
  }

  Result<std::size_t> poll(std::span<Completion> out, Deadline deadline) override {
    if (in_flight_ == 0 || out.empty()) return std::size_t{0};
    std::unique_lock lock(mutex_);
    completed_.wait_until(lock, deadline, [this] { return !finished_.empty(); });
    const std::size_t count = std::min(out.size(), finished_.size());
    for (std::size_t i = 0; i < count; ++i) out[i] = finished_.pop();
    in_flight_ -= count;
    return count;
  }

 private:
  void serve() {
    std::unique_lock lock(mutex_);
    for (;;) {
      work_.wait(lock, [this] { return stopping_ || !waiting_.empty(); });
      if (stopping_) return;
      const Attempt attempt = waiting_.pop();
      ++busy_;
      lock.unlock();
      const int error = carry_out(attempt);
      lock.lock();
      --busy_;
      finished_.push({attempt.transfer.tag, error});
      completed_.notify_one();
    }
  }

  std::mutex mutex_;  // guards the next four; held for moments, never across a transfer
  Fifo<Attempt> waiting_;
  Fifo<Completion> finished_;
  std::size_t busy_ = 0;  // threads with a transfer
  bool stopping_ = false;
  std::condition_variable work_, completed_;
  std::size_t in_flight_ = 0;  // the owner's alone
  std::vector<std::thread> threads_;
};

}  // namespace

Result<std::unique_ptr<Sink>> open_thread_sink(const SinkOptions& options) {
  auto sink = std::make_unique<ThreadSink>();
  TL_TRY(sink->start(options.threads));
  return sink;
}

}  // namespace thermocline
