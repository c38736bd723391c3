#include "tiers/write_behind.h"

#include <algorithm>
#include <utility>

#include "tiers/io/errno_text.h"
#include "tiers/io/left_to_kernel.h"

namespace thermocline {
namespace {

// Of a transfer's tag: a segment that is written, by its number and which piece of it.
constexpr std::uint64_t kTag = std::uint64_t{1} << 63;
constexpr std::uint32_t kMostNumber = ~std::uint32_t{0} >> 1;

}  // namespace

WriteBehind::WriteBehind(Sink* sink, TierCounters* counters, std::string name,
                         std::chrono::milliseconds patience)
    : sink_(sink), counters_(counters), name_(std::move(name)), patience_(patience) {}

Status WriteBehind::begin(std::uint32_t segment, const Space& at, Buffer pages,
                          Reservation memory) {
  TL_CHECK(pages.size() == at.bytes);
  Writing writing;
  writing.number = ++numbered_ & kMostNumber;
  writing.segment = segment;
  writing.offset = at.offset;
  const std::vector<Transfer> transfers =
      in_pieces({Transfer::Kind::write, at.file, at.offset, pages.bytes(),
                 kTag | std::uint64_t{writing.number} << 32});
  writing.pages = std::move(pages);
  writing.memory = std::move(memory);
  writing.in_flight = transfers.size();
  writings_.push_back(std::move(writing));
  Status begun = sink_->submit(transfers);
  if (!begun) writings_.pop_back();
  return begun;
}

void WriteBehind::let_go(std::uint32_t segment, Slot* slot) {
  const auto it = std::ranges::find_if(
      writings_, [&](const Writing& one) { return !one.slot && one.segment == segment; });
  if (it == writings_.end()) return;
  if (it->in_flight > 0)
    it->slot = std::move(*slot);
  else
    writings_.erase(it);
}

Result<WriteBehind::Polled> WriteBehind::poll(std::span<Completion> out, Deadline deadline) {
  TL_TRY_ASSIGN(const std::size_t transfers, sink_->poll(out, deadline));
  Polled polled{transfers, 0};
  for (const Completion& completion : out.first(transfers)) {
    if (completion.tag & kTag)
      wrote(completion);
    else
      out[polled.reads++] = completion;
  }
  return polled;
}

void WriteBehind::wrote(const Completion& completion) {
  const auto number = static_cast<std::uint32_t>(completion.tag >> 32) & kMostNumber;
  const auto it = std::ranges::find(writings_, number, &Writing::number);
  TL_CHECK(it != writings_.end());
  if (completion.error != 0 && it->status) {
    const std::size_t at = static_cast<std::uint32_t>(completion.tag) * kPieceBytes;
    it->status =
        fail(ErrorCode::io, name_, ": writing ", std::min(kPieceBytes, it->pages.size() - at),
             " bytes at ", it->offset + at, " failed: ", errno_text(completion.error));
  }
  if (--it->in_flight > 0) return;
  if (it->status) counters_->disk_bytes_written += it->pages.size();
  it->pages = Buffer();
  it->memory = Reservation();
  if (it->status || it->slot) writings_.erase(it);
}

Status WriteBehind::shrink_to(std::uint64_t most) {
  Completion done[32];
  while (bytes() > most) {
    // Each request has the whole time: a long segment on a slow disk is no failure.
    TL_TRY_ASSIGN(const Polled polled, poll(done, std::chrono::steady_clock::now() + patience_));
    if (polled.transfers == 0)
      return fail(ErrorCode::io, name_, ": ", in_flight(), " writes did not finish within ",
                  patience_.count(), " ms");
  }
  return {};
}

Status WriteBehind::finish() {
  TL_TRY(shrink_to(0));
  Status status{};
  for (Writing& writing : writings_)
    if (status) status = std::move(writing.status);
  writings_.clear();
  return status;
}

void WriteBehind::leave() {
  for (Writing& writing : writings_) {
    leave_to_kernel(std::move(writing.pages));
    if (writing.slot) writing.slot->leave();
  }
  writings_.clear();
}

std::uint64_t WriteBehind::bytes() const {
  std::uint64_t bytes = 0;
  for (const Writing& writing : writings_) bytes += writing.pages.size();
  return bytes;
}

std::size_t WriteBehind::in_flight() const {
  std::size_t transfers = 0;
  for (const Writing& writing : writings_) transfers += writing.in_flight;
  return transfers;
}

bool WriteBehind::has(std::uint32_t segment) const {
  return std::ranges::any_of(writings_, [&](const Writing& one) {
    return one.in_flight > 0 && !one.slot && one.segment == segment;
  });
}

}  // namespace thermocline
