#include "tests/support/fault_sink.h"

#include <algorithm>
#include <cerrno>
#include <thread>

#include "kernels/base/buffer.h"
#include "tests/support/memory_sink.h"

namespace thermocline {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::array<Fault, kFaults> kAllFaults = {
    Fault::io_error, Fault::again,       Fault::short_read, Fault::delay,
    Fault::bit_flip, Fault::misdirected, Fault::stale,      Fault::lost_write};

bool is_read(const Transfer& transfer) { return transfer.kind == Transfer::Kind::read; }

bool in_whole_pages(const Transfer& transfer) {
  return transfer.offset % kPageBytes == 0 && transfer.bytes.size() % kPageBytes == 0;
}

}  // namespace

std::uint64_t FaultCounts::silent() const {
  return (*this)[Fault::bit_flip] + (*this)[Fault::misdirected] + (*this)[Fault::stale] +
         (*this)[Fault::lost_write];
}

FaultSink::FaultSink(std::unique_ptr<Sink> inner, FaultPlan plan) : inner_(std::move(inner)) {
  set_plan(plan);
}

FaultSink::FaultSink(FaultPlan plan) : FaultSink(std::make_unique<MemorySink>(), plan) {}

FaultSink::~FaultSink() = default;

void FaultSink::set_plan(FaultPlan plan) {
  plan_ = plan;
  random_.seed(plan.seed);
  struck_ = 0;
}

Status FaultSink::submit(std::span<const Transfer> transfers) {
  for (const Transfer& transfer : transfers)
    if (transfer.bytes.empty())
      return fail(ErrorCode::invalid_argument, "a transfer of no bytes at ", transfer.offset);
  for (const Transfer& transfer : transfers) {
    Pending pending{.transfer = transfer, .fault = draw(transfer), .stale = {}};
    if (pending.fault) ++counts_.injected[static_cast<std::size_t>(*pending.fault)];
    is_read(transfer) ? ++counts_.reads : ++counts_.writes;
    (is_read(transfer) ? counts_.read_bytes : counts_.written_bytes) += transfer.bytes.size();

    Transfer handed = transfer;
    handed.tag = next_tag_++;
    bool carried_out = true;
    if (pending.fault == Fault::short_read)
      handed.bytes = handed.bytes.first((handed.bytes.size() + 1) / 2);
    if (pending.fault == Fault::misdirected) handed.offset = *elsewhere(transfer);
    if (pending.fault == Fault::stale) pending.stale = older(transfer);
    if (pending.fault == Fault::lost_write ||
        (!is_read(transfer) && (pending.fault == Fault::io_error || pending.fault == Fault::again)))
      carried_out = false;
    if (!is_read(transfer) && carried_out && pending.fault != Fault::short_read) remember(transfer);

    if (carried_out) TL_TRY(inner_->submit({&handed, 1}));
    pending_.emplace(handed.tag, std::move(pending));
    ++in_flight_;
    if (!carried_out) completed({handed.tag, 0});
  }
  return {};
}

Result<std::size_t> FaultSink::poll(std::span<Completion> out, Deadline deadline) {
  if (in_flight_ == 0 || out.empty()) return std::size_t{0};
  for (;;) {
    auto now = Clock::now();
    std::array<Completion, 64> inner;
    std::size_t count = 0;
    do {  // everything that is there, so that reordering has something to reorder
      TL_TRY_ASSIGN(count, inner_->poll(inner, now));
      for (std::size_t i = 0; i < count; ++i) completed(inner[i]);
    } while (count > 0);

    if (plan_.reorder) std::shuffle(ready_.begin(), ready_.end(), random_);
    count = 0;
    for (auto it = ready_.begin(); it != ready_.end() && count < out.size();) {
      if (it->not_before > now) {
        ++it;
        continue;
      }
      out[count++] = it->completion;
      it = ready_.erase(it);
    }
    in_flight_ -= count;
    counts_.completions += count;
    if (count > 0 || now >= deadline) return count;

    Deadline wake = deadline;
    for (const Ready& held : ready_) wake = std::min(wake, held.not_before);
    if (inner_->in_flight() == 0) {
      std::this_thread::sleep_until(wake);
    } else {
      TL_TRY_ASSIGN(count, inner_->poll({inner.data(), 1}, wake));
      if (count > 0) completed(inner[0]);
    }
  }
}

bool FaultSink::possible(Fault fault, const Transfer& transfer) const {
  switch (fault) {
    case Fault::io_error:
    case Fault::again:
    case Fault::short_read:
    case Fault::delay:
      return true;
    case Fault::bit_flip:
      return is_read(transfer);
    case Fault::misdirected:
      return is_read(transfer) && elsewhere(transfer).has_value();
    case Fault::stale:
      return is_read(transfer) && !older(transfer).empty();
    case Fault::lost_write:
      return !is_read(transfer);
  }
  return false;
}

std::optional<Fault> FaultSink::draw(const Transfer& transfer) {
  if (plan_.strike && possible(plan_.strike->fault, transfer)) {
    const std::uint64_t ordinal = struck_++;
    if (ordinal == plan_.strike->nth || (plan_.strike->for_ever && ordinal > plan_.strike->nth))
      return plan_.strike->fault;
  }
  for (const Fault fault : kAllFaults) {
    const double probability = plan_.rate[static_cast<std::size_t>(fault)];
    if (probability <= 0 || !possible(fault, transfer)) continue;
    if (std::uniform_real_distribution<double>(0, 1)(random_) < probability) return fault;
  }
  return std::nullopt;
}

// The next run of pages in the same file that was written, is as long and begins differently.
std::optional<std::uint64_t> FaultSink::elsewhere(const Transfer& transfer) const {
  const auto here = now_.find({transfer.file, transfer.offset});
  if (here == now_.end() || !in_whole_pages(transfer)) return std::nullopt;
  const auto fits = [&](const auto& page) {
    const auto [file, offset] = page.first;
    if (file != transfer.file || page.second == here->second) return false;
    for (std::size_t at = kPageBytes; at < transfer.bytes.size(); at += kPageBytes)
      if (!now_.contains({file, offset + at})) return false;
    return true;
  };
  auto found = std::find_if(std::next(here), now_.end(), fits);
  if (found == now_.end()) found = std::find_if(now_.begin(), here, fits);
  if (found == now_.end() || !fits(*found)) return std::nullopt;
  return found->first.second;
}

// What a read would have found before the last write of each page; empty where that is the same.
std::vector<std::byte> FaultSink::older(const Transfer& transfer) const {
  if (!in_whole_pages(transfer)) return {};
  std::vector<std::byte> content;
  bool differs = false;
  for (std::size_t at = 0; at < transfer.bytes.size(); at += kPageBytes) {
    const Place page{transfer.file, transfer.offset + at};
    const auto now = now_.find(page), before = before_.find(page);
    if (now == now_.end()) return {};
    const auto& chosen = before == before_.end() ? now->second : before->second;
    differs = differs || chosen != now->second;
    content.insert(content.end(), chosen.begin(), chosen.end());
  }
  return differs ? content : std::vector<std::byte>{};
}

void FaultSink::remember(const Transfer& write) {
  if (!in_whole_pages(write)) return;
  for (std::size_t at = 0; at < write.bytes.size(); at += kPageBytes) {
    const Place page{write.file, write.offset + at};
    const auto bytes = write.bytes.subspan(at, kPageBytes);
    auto& current = now_[page];
    if (!current.empty()) before_[page] = std::move(current);
    current.assign(bytes.begin(), bytes.end());
  }
}

void FaultSink::completed(const Completion& inner) {
  const auto found = pending_.find(inner.tag);
  TL_CHECK(found != pending_.end());
  const Pending pending = std::move(found->second);
  pending_.erase(found);
  const Transfer& transfer = pending.transfer;
  Ready ready{{transfer.tag, inner.error}, Clock::time_point::min()};
  if (inner.error == 0 && pending.fault) {
    switch (*pending.fault) {
      case Fault::io_error:
        ready.completion.error = plan_.error;
        // A failed read leaves anything behind; whoever looks at it shall see that.
        if (is_read(transfer))
          std::fill(transfer.bytes.begin(), transfer.bytes.end(), std::byte{0xee});
        break;
      case Fault::again:
        ready.completion.error = EAGAIN;
        break;
      case Fault::short_read:
        ready.completion.error = is_read(transfer) ? ENODATA : EIO;
        break;
      case Fault::delay:
        ready.not_before = Clock::now() + plan_.delay;
        break;
      case Fault::bit_flip: {
        const std::uint64_t bit = random_() % (transfer.bytes.size() * 8);
        transfer.bytes[bit / 8] ^= std::byte{1} << (bit % 8);
        break;
      }
      case Fault::stale:
        std::copy_n(pending.stale.begin(), transfer.bytes.size(), transfer.bytes.begin());
        break;
      case Fault::misdirected:
      case Fault::lost_write:
        break;
    }
  }
  ready_.push_back(ready);
}

}  // namespace thermocline
