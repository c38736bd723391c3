#include "tests/support/memory_sink.h"

#include <algorithm>
#include <cerrno>

namespace thermocline {

Status MemorySink::submit(std::span<const Transfer> transfers) {
  for (const Transfer& transfer : transfers)
    if (transfer.bytes.empty())
      return fail(ErrorCode::invalid_argument, "a transfer of no bytes at ", transfer.offset);
  for (const Transfer& transfer : transfers) finished_.push({transfer.tag, carry_out(transfer)});
  return {};
}

Result<std::size_t> MemorySink::poll(std::span<Completion> out, Deadline) {
  const std::size_t count = std::min(out.size(), finished_.size());
  for (std::size_t i = 0; i < count; ++i) out[i] = finished_.pop();
  return count;
}

int MemorySink::carry_out(const Transfer& transfer) {
  if (transfer.file < 0) return EBADF;
  auto& content = files_[transfer.file];
  const std::size_t end = transfer.offset + transfer.bytes.size();
  const auto place = static_cast<std::ptrdiff_t>(transfer.offset);
  if (transfer.kind == Transfer::Kind::write) {
    if (content.size() < end) content.resize(end);
    std::copy(transfer.bytes.begin(), transfer.bytes.end(), content.begin() + place);
    return 0;
  }
  if (content.size() < end) return ENODATA;
  std::copy_n(content.begin() + place, transfer.bytes.size(), transfer.bytes.begin());
  return 0;
}

}  // namespace thermocline
