#include "tiers/reader.h"

#include <cstring>

#include "kernels/base/stopwatch.h"
#include "tiers/io/checksum.h"
#include "tiers/io/errno_text.h"

namespace thermocline {

bool verify(const ReadyFold& fold) {
  for (const PageCheck& check : fold.pages)
    if (page_checksum({check.page, kPageBytes}, check.identity) != check.checksum) return false;
  return true;
}

Status Reader::start(std::uint32_t layer, FoldOrder order) {
  TL_TRY(table_.quiesce());
  layer_ = layer;
  order_ = order;
  planned_.clear();
  views_.clear();
  patches_.clear();
  checks_.clear();
  check_at_.clear();
  extents_.clear();
  misses_.clear();
  stages_.clear();
  ready_ids_.clear();
  wave_.clear();
  oldest_stage_ = 0;
  next_to_submit_ = 0;
  handed_out_ = 0;
  folds_of_list_.clear();
  first_of_list_.clear();
  cursor_of_list_.clear();
  for (RowCache& cache : table_.layers_[layer].row_cache) cache.begin_step();
  return {};
}

Status Reader::add(std::span<const ReadRequest> requests) {
  retire();
  const auto first_new = static_cast<std::uint32_t>(planned_.size());
  for (const ReadRequest& request : requests) {
    const auto first = static_cast<std::uint32_t>(planned_.size());
    first_of_list_.push_back(first);
    cursor_of_list_.push_back(first);
    plan(static_cast<std::uint32_t>(folds_of_list_.size()), request);
    folds_of_list_.push_back(static_cast<std::uint32_t>(planned_.size()) - first);
  }
  for (std::uint32_t id = first_new; id < planned_.size(); ++id) {
    Planned& fold = planned_[id];
    fold.ready.id = id;
    if (fold.first_extent == fold.last_extent) {
      fold.is_ready = true;
      if (order_ == FoldOrder::any) ready_ids_.push_back(id);
    }
  }
  // What comes together depends on the disk; what is taken for it does not.
  ready_ids_.reserve(planned_.size());
  wave_.reserve(planned_.size());
  stages_.reserve(planned_.size());
  transfers_.reserve(extents_.size());
  // Until the next add(), views_ and checks_ stay where they are now.
  for (Planned& fold : planned_) {
    fold.ready.fold.blocks = {views_.data() + fold.first_view, fold.last_view - fold.first_view};
    fold.ready.pages = {checks_.data() + fold.first_check, fold.last_check - fold.first_check};
  }
  return submit();
}

// Staging is a ring: folds take it in the order of submission and it is free again from the oldest
// one on. A fold's area is contiguous, so the end of the ring may be left empty.
bool Reader::take_staging(Planned* fold) {
  const std::uint64_t capacity = table_.staging_.size();
  const std::uint64_t bytes = fold->staging_bytes;
  TL_CHECK(bytes <= capacity);
  while (oldest_stage_ < stages_.size() && stages_[oldest_stage_].retired) ++oldest_stage_;
  std::uint64_t begin = 0;
  if (oldest_stage_ < stages_.size()) {
    const std::uint64_t oldest = stages_[oldest_stage_].begin;
    const bool wrapped = stages_.back().begin < oldest;
    begin = stages_.back().end;
    if (!wrapped && begin + bytes > capacity) {
      if (bytes > oldest) return false;
      begin = 0;
    } else if (wrapped && begin + bytes > oldest) {
      return false;
    }
  }
  fold->staging_at = begin;
  fold->stage = static_cast<std::uint32_t>(stages_.size());
  stages_.push_back({begin, begin + bytes, false});
  return true;
}

// Hands reads to the disk in list order, as far as staging memory reaches.
Status Reader::submit() {
  transfers_.clear();
  for (; next_to_submit_ < planned_.size(); ++next_to_submit_) {
    Planned& fold = planned_[next_to_submit_];
    if (fold.first_extent == fold.last_extent) continue;
    if (!take_staging(&fold)) break;
    std::byte* staging = table_.staging_.data() + fold.staging_at;
    for (std::uint32_t p = fold.first_patch; p < fold.last_patch; ++p) {
      BlockView& view = views_[patches_[p].view];
      view.key = staging + patches_[p].offset;
      view.value = view.key + fold.key_bytes;
    }
    for (std::uint32_t c = fold.first_check; c < fold.last_check; ++c)
      checks_[c].page = staging + check_at_[c];
    list_transfers(fold);
    for (std::uint32_t e = fold.first_extent; e < fold.last_extent; ++e)
      table_.counters_.disk_bytes_read += extents_[e].bytes;
    table_.counters_.disk_reads += fold.last_extent - fold.first_extent;
    fold.waiting = fold.last_extent - fold.first_extent;
  }
  if (transfers_.empty()) return {};
  return table_.sink_->submit(transfers_);
}

Status Reader::complete(const Completion& completion) {
  Extent& extent = extents_[completion.tag];
  Planned& fold = planned_[extent.fold];
  if (completion.error != 0) {
    if (extent.again)
      return fail(ErrorCode::io, table_.paged_name(), ": reading ", extent.bytes, " bytes at ",
                  extent.file_offset, " failed twice: ", errno_text(completion.error));
    extent.again = true;
    table_.counters_.pages_read_again += extent.bytes / kPageBytes;
    const Transfer transfer = transfer_of(static_cast<std::uint32_t>(completion.tag));
    return table_.sink_->submit({&transfer, 1});
  }
  // One that is read again has been ready, and handed out: it must not be a second time.
  if (--fold.waiting == 0 && !fold.is_ready) {
    fold.is_ready = true;
    if (order_ == FoldOrder::any) ready_ids_.push_back(fold.ready.id);
  }
  return {};
}

Status Reader::wait_for_some() {
  const Stopwatch watch(&table_.counters_.stall_ms);
  Completion done[32];
  TL_TRY_ASSIGN(const std::size_t n, table_.sink_->poll(done, std::chrono::steady_clock::now() +
                                                                  table_.options_.disk_deadline));
  if (n == 0)
    return fail(ErrorCode::io, table_.paged_name(), ": ", table_.sink_->in_flight(),
                " reads did not finish within ", table_.options_.disk_deadline.count(), " ms");
  for (std::size_t i = 0; i < n; ++i) TL_TRY(complete(done[i]));
  return {};
}

void Reader::collect() {
  if (order_ == FoldOrder::any) {
    for (const std::uint32_t id : ready_ids_) wave_.push_back(planned_[id].ready);
    ready_ids_.clear();
  } else {
    for (std::size_t list = 0; list < folds_of_list_.size(); ++list) {
      const std::uint32_t end = first_of_list_[list] + folds_of_list_[list];
      for (std::uint32_t& id = cursor_of_list_[list]; id < end && planned_[id].is_ready; ++id)
        wave_.push_back(planned_[id].ready);
    }
  }
  handed_out_ += wave_.size();
}

Result<std::span<const ReadyFold>> Reader::ready() {
  retire();
  TL_TRY(submit());
  collect();
  return std::span<const ReadyFold>(wave_);
}

Result<std::span<const ReadyFold>> Reader::next() {
  TL_TRY(ready());
  while (wave_.empty() && handed_out_ < planned_.size()) {
    TL_TRY(wait_for_some());
    collect();
  }
  return std::span<const ReadyFold>(wave_);
}

// What was handed out has been attended: rows that were missed enter the row cache, and the staging
// memory is free for others.
void Reader::retire() {
  RowCache* caches = table_.layers_[layer_].row_cache.data();
  for (const ReadyFold& done : wave_) {
    const Planned& fold = planned_[done.id];
    if (fold.first_extent == fold.last_extent) continue;
    table_.counters_.pages_verified += done.pages.size();
    const std::byte* staging = table_.staging_.data() + fold.staging_at;
    const std::size_t row_bytes = fold.ready.fold.key_stride;
    const std::uint32_t first_row = table_.places_[fold.place].first_row;
    for (std::uint32_t m = fold.first_miss; m < fold.last_miss; ++m)
      if (std::byte* slot = caches[fold.head].insert(first_row + misses_[m].row))
        std::memcpy(slot, staging + misses_[m].at, row_bytes);
    stages_[fold.stage].retired = true;
  }
  wave_.clear();
}

// The read of an extent, to where its fold has staging memory.
Transfer Reader::transfer_of(std::uint32_t extent) const {
  const Extent& from = extents_[extent];
  const Planned& fold = planned_[from.fold];
  Transfer transfer;
  transfer.file = table_.places_[fold.place].slot.space().file;
  transfer.offset = from.file_offset;
  transfer.bytes = {table_.staging_.data() + fold.staging_at + from.at, from.bytes};
  transfer.tag = extent;
  return transfer;
}

void Reader::list_transfers(const Planned& fold) {
  for (std::uint32_t e = fold.first_extent; e < fold.last_extent; ++e)
    transfers_.push_back(transfer_of(e));
}

Status Reader::read_again(const ReadyFold& failed) {
  Planned& fold = planned_[failed.id];
  transfers_.clear();
  list_transfers(fold);
  table_.counters_.pages_read_again += fold.last_check - fold.first_check;
  fold.waiting = fold.last_extent - fold.first_extent;
  Status status = table_.sink_->submit(transfers_);
  while (status && fold.waiting > 0) {
    Completion done[32];
    auto n =
        table_.sink_->poll(done, std::chrono::steady_clock::now() + table_.options_.disk_deadline);
    if (!n) {
      status = tl::unexpected<Error>(n.error());
    } else if (*n == 0) {
      status = fail(ErrorCode::io, table_.paged_name(), ": a read did not finish within ",
                    table_.options_.disk_deadline.count(), " ms");
    } else {
      for (std::size_t i = 0; i < *n && status; ++i) status = complete(done[i]);
    }
  }
  TL_TRY(status);
  if (!verify(failed))
    return fail(ErrorCode::corrupt, table_.paged_name(), ": ", fold.last_check - fold.first_check,
                " pages read from offset ", extents_[fold.first_extent].file_offset,
                " do not match their checksums, twice: the disk returned damaged data");
  return {};
}

}  // namespace thermocline
