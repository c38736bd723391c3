#include "tiers/reader.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <utility>

#include "kernels/base/stopwatch.h"
#include "tiers/io/errno_text.h"

namespace thermocline {
namespace {

// Longer reads are no faster, and come later.
constexpr std::size_t kMostReadBytes = std::size_t{256} << 10;
// Of a wave, unless it is in a list's order: some 0.3 ms of work, after which the staging memory of
// what has been attended is read into again. When waves were everything that was ready, the disk
// had often read all of that memory full, and rested.
constexpr std::uint32_t kWaveRows = 8192;

// Names lists of whole runs by numbers, which are equal for equal lists as long as no segment comes
// or goes. False: some list names rows of its own.
bool name_whole(std::span<const ReadRequest> requests, std::vector<std::uint64_t>* name) {
  name->clear();
  for (const ReadRequest& request : requests) {
    name->push_back(request.head);
    name->push_back(request.list->reads.size());
    for (const Read& read : request.list->reads) {
      if (!read.everything || read.form != Form::rows) return false;
      name->push_back(request.runs[read.run].rows->id);
    }
  }
  return true;
}

}  // namespace

Status Reader::start(std::uint32_t layer, FoldOrder order, DeviceRows device_rows) {
  // What is left of a reading that was given up takes what was expected with it.
  const bool whole = now_->handed_out_ == now_->planned_.size() && now_->in_flight_ == 0;
  const std::size_t known = expected_ == Expected::nothing ? 0 : next_->in_flight_;
  if (!whole || table_.reads_in_flight() != known || !may_come()) TL_TRY(forget());
  for (const ReadyFold& done : wave_) free_stage(now_->planned_[done.id]);
  wave_.clear();
  trim_stages();
  now_->begin(layer, order, device_rows);
  for (RowCache& cache : table_.layers_[layer].row_cache) cache.begin_step();
  return {};
}

Status Reader::add(std::span<const ReadRequest> requests) {
  retire();
  for (const ReadRequest& request : requests)
    for (const Run& run : request.runs)  // what was sealed lately may not be there yet
      while (table_.writes_.has(run.rows->id)) TL_TRY(wait_for_some());
  if (expected_ == Expected::nothing) {
    now_->plan(requests);
  } else {
    TL_CHECK(now_->planned_.empty());  // after expect() comes a start()
    if (is_expected(requests)) {
      std::swap(now_, next_);
      expected_ = Expected::nothing;
    } else {
      TL_TRY(forget());
      now_->plan(requests);
    }
  }
  table_.counters_ += std::exchange(now_->counted_, {});
  reserve();
  return submit();
}

void Reader::expect(std::uint32_t layer, FoldOrder order, DeviceRows device_rows,
                    std::span<const ReadRequest> requests) {
  if (!table_.sink_ || expected_ != Expected::nothing || !table_.writes_.empty()) return;
  if (!name_whole(requests, &expected_name_)) return;
  next_->begin(layer, order, device_rows);
  next_->plan(requests);
  expected_ = Expected::on_its_way;
  expected_at_ = table_.changes_;
  reserve();
}

// What comes together depends on the disk; what is taken for it does not.
void Reader::reserve() {
  wave_.reserve(now_->planned_.size());
  stages_.reserve(now_->planned_.size() + next_->planned_.size());
  transfers_.reserve(std::max(now_->extents_.size(), next_->extents_.size()));
  if (table_.sink_) table_.sink_->reserve(now_->extents_.size() + next_->extents_.size());
}

bool Reader::may_come() const {
  return expected_ == Expected::nothing ||
         (expected_ == Expected::on_its_way && expected_at_ == table_.changes_);
}

bool Reader::is_expected(std::span<const ReadRequest> requests) {
  return may_come() && next_->layer_ == now_->layer_ && next_->order_ == now_->order_ &&
         next_->device_rows_ == now_->device_rows_ && name_whole(requests, &asked_name_) &&
         asked_name_ == expected_name_;
}

// Between readings: nothing is in flight then, nor in staging memory.
Status Reader::forget() {
  TL_TRY(table_.quiesce());
  now_->in_flight_ = next_->in_flight_ = 0;
  expected_ = Expected::nothing;
  stages_.clear();
  oldest_stage_ = first_stage_ = 0;
  wave_.clear();
  return {};
}

void Reader::rest() {
  const Stopwatch watch(&table_.counters_.stall_ms);
  while (expected_ != Expected::nothing && next_->in_flight_ > 0 && may_come())
    if (!wait_for_some()) expected_ = Expected::failed;
  // What was given up in the middle, or cannot come any more, is nobody's.
  if (table_.reads_in_flight() > 0) (void)forget();
}

// Staging is a ring: folds take it in the order of submission and it is free again from the oldest
// one on. A fold's area is contiguous, so the end of the ring may be left empty.
bool Reader::take_staging(Reading::Planned* fold) {
  const std::uint64_t capacity = table_.staging_.size();
  const std::uint64_t bytes = round_up(fold->staging_bytes, kPageBytes);  // as others are to begin
  TL_CHECK(bytes <= capacity);
  find_oldest_stage();
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
  fold->stage = first_stage_ + static_cast<std::uint32_t>(stages_.size());
  stages_.push_back({begin, begin + bytes, false});
  return true;
}

void Reader::find_oldest_stage() {
  while (oldest_stage_ < stages_.size() && stages_[oldest_stage_].retired) ++oldest_stage_;
}

// Readings follow each other without an end, so what is free is taken off the list now and then.
void Reader::trim_stages() {
  find_oldest_stage();
  stages_.erase(stages_.begin(), stages_.begin() + static_cast<std::ptrdiff_t>(oldest_stage_));
  first_stage_ += static_cast<std::uint32_t>(oldest_stage_);
  oldest_stage_ = 0;
}

void Reader::free_stage(const Reading::Planned& fold) {
  if (fold.is_staged()) stages_[fold.stage - first_stage_].retired = true;
}

// Hands reads to the disk in list order, as far as staging memory reaches: all that is asked for
// before what is expected. Whatever fails of the latter costs time, and is no error.
Status Reader::submit() {
  TL_TRY(submit(now_));
  if (expected_ == Expected::on_its_way && now_->next_to_submit_ == now_->planned_.size() &&
      !submit(next_))
    expected_ = Expected::failed;
  return {};
}

Status Reader::submit(Reading* reading) {
  transfers_.clear();
  const std::uint32_t first = reading->next_to_submit_;
  Status copied{};
  for (; copied && reading->next_to_submit_ < reading->planned_.size();
       ++reading->next_to_submit_) {
    Reading::Planned& fold = reading->planned_[reading->next_to_submit_];
    if (!fold.is_staged()) continue;
    if (!take_staging(&fold)) break;
    place(reading, &fold);
    list_transfers(reading, fold);
    fold.waiting = fold.last_extent - fold.first_extent;
    copied = copy_rows(*reading, fold);
  }
  TL_TRY(arrive_copied(reading, first, std::move(copied)));
  if (transfers_.empty()) return {};
  for (const Transfer& transfer : transfers_)
    counters_of(reading).disk_bytes_read += transfer.bytes.size();
  counters_of(reading).disk_reads += transfers_.size();
  return hand_over(reading);
}

// Says where in staging memory a fold's rows and pages will be.
void Reader::place(Reading* reading, Reading::Planned* fold) {
  std::byte* staging = table_.staging_.data() + fold->staging_at;
  for (std::uint32_t p = fold->first_patch; p < fold->last_patch; ++p) {
    BlockView& view = reading->views_[reading->patches_[p].view];
    view.key = staging + reading->patches_[p].offset;
    view.value = view.key + fold->key_bytes;
  }
  for (std::uint32_t c = fold->first_check; c < fold->last_check; ++c)
    reading->checks_[c].page = staging + reading->check_at_[c];
}

// Queues what a fold has copied from a device.
Status Reader::copy_rows(const Reading& reading, const Reading::Planned& fold) {
  for (std::uint32_t c = fold.first_copy; c < fold.last_copy; ++c) {
    const Reading::Copy& copy = reading.copies_[c];
    TL_TRY(table_.device()->read({table_.staging_.data() + fold.staging_at + copy.at, copy.bytes},
                                 copy.from));
  }
  return {};
}

// Waits for the copies of the folds from `first` on, whatever became of queueing them: what is
// queued would come to staging memory that is another's by then.
Status Reader::arrive_copied(Reading* reading, std::uint32_t first, Status queued) {
  bool some = !queued;
  for (std::uint32_t id = first; id < reading->next_to_submit_; ++id) {
    Reading::Planned& fold = reading->planned_[id];
    if (!fold.is_copied()) continue;
    some = fold.is_ready = true;
    if (reading->order_ == FoldOrder::any) reading->arrived_ids_.push_back(id);
  }
  if (!some) return {};
  const Stopwatch watch(&table_.counters_.stall_ms);
  Status waited = table_.device()->wait();
  TL_TRY(queued);
  return waited;
}

Status Reader::hand_over(Reading* reading) {
  TL_TRY(table_.sink_->submit(transfers_));
  reading->in_flight_ += transfers_.size();
  return {};
}

// Of what is only expected, whoever asks for it is told.
TierCounters& Reader::counters_of(Reading* reading) {
  return reading == now_ ? table_.counters_ : reading->counted_;
}

Status Reader::arrived(std::span<const Completion> completions) {
  for (const Completion& completion : completions) {
    Reading* reading = &readings_[completion.tag >> 32];
    --reading->in_flight_;
    const auto extent = static_cast<std::uint32_t>(completion.tag);
    if (Status read = complete(reading, extent, completion.error); !read) {
      if (reading == now_) return read;
      expected_ = Expected::failed;
    }
  }
  return {};
}

Status Reader::complete(Reading* reading, std::uint32_t first, int error) {
  Reading::Extent& extent = reading->extents_[first];
  if (error != 0 && extent.again)
    return fail(ErrorCode::io, table_.paged_name(), ": reading ", extent.bytes, " bytes at ",
                extent.file_offset, " failed twice: ", errno_text(error));
  const std::uint32_t last = first + std::exchange(extent.joined, 1);
  transfers_.clear();
  for (std::uint32_t e = first; e < last; ++e) {
    Reading::Planned& fold = reading->planned_[reading->extents_[e].fold];
    if (error != 0) {  // each by itself
      reading->extents_[e].again = true;
      counters_of(reading).pages_read_again += reading->extents_[e].bytes / kPageBytes;
      transfers_.push_back(transfer_of(*reading, e));
    } else if (--fold.waiting == 0 && !fold.is_ready) {
      // One that is read again has been ready, and handed out: it must not be a second time.
      fold.is_ready = true;
      if (reading->order_ == FoldOrder::any) reading->arrived_ids_.push_back(fold.ready.id);
    }
  }
  return transfers_.empty() ? Status() : hand_over(reading);
}

Status Reader::wait_for_some() {
  TL_TRY_ASSIGN(const std::size_t n,
                take_arrived(std::chrono::steady_clock::now() + table_.options_.disk_deadline));
  if (n > 0) return {};
  return fail(ErrorCode::io, table_.paged_name(), ": ", table_.sink_->in_flight(),
              " reads did not finish within ", table_.options_.disk_deadline.count(), " ms");
}

Result<std::size_t> Reader::take_arrived(Deadline deadline) {
  Completion done[32];
  TL_TRY_ASSIGN(const WriteBehind::Polled polled, table_.writes_.poll(done, deadline));
  TL_TRY(arrived({done, polled.reads}));
  return polled.transfers;
}

void Reader::collect() {
  if (now_->order_ == FoldOrder::any) {
    collect_any();
  } else {
    for (std::size_t list = 0; list < now_->folds_of_list_.size(); ++list) {
      const std::uint32_t end = now_->first_of_list_[list] + now_->folds_of_list_[list];
      std::uint32_t& id = now_->cursor_of_list_[list];
      for (; id < end && now_->planned_[id].is_ready; ++id)
        wave_.push_back(now_->planned_[id].ready);
    }
  }
  now_->handed_out_ += wave_.size();
}

// What has arrived comes first, since others wait for its staging memory.
void Reader::collect_any() {
  const bool disk_waits = !now_->extents_.empty();
  const std::uint32_t most = disk_waits ? kWaveRows : std::numeric_limits<std::uint32_t>::max();
  std::uint32_t rows = 0;
  const auto take = [&](std::uint32_t id) {
    rows += now_->planned_[id].ready.rows;
    wave_.push_back(now_->planned_[id].ready);
  };
  std::vector<std::uint32_t>& arrived = now_->arrived_ids_;
  std::size_t taken = 0;
  while (taken < arrived.size() && rows < most) take(arrived[taken++]);
  arrived.erase(arrived.begin(), arrived.begin() + static_cast<std::ptrdiff_t>(taken));
  while (now_->next_in_memory_ < now_->in_memory_ids_.size() && rows < most)
    take(now_->in_memory_ids_[now_->next_in_memory_++]);
}

std::span<const ReadyFold> Reader::on_device() {
  on_device_.clear();
  for (const std::uint32_t id : now_->device_ids_) on_device_.push_back(now_->planned_[id].ready);
  return on_device_;
}

Result<std::span<const ReadyFold>> Reader::ready() {
  retire();
  TL_TRY(submit());
  collect();
  return std::span<const ReadyFold>(wave_);
}

Result<std::span<const ReadyFold>> Reader::next() {
  retire();
  TL_TRY(submit());
  // There is work without them, but they have staging memory that others could be read into.
  if (now_->in_flight_ > 0 && now_->next_in_memory_ < now_->in_memory_ids_.size())
    TL_TRY(take_arrived(std::chrono::steady_clock::now()));
  collect();
  while (wave_.empty() && now_->handed_out_ < now_->planned_.size()) {
    const Stopwatch watch(&table_.counters_.stall_ms);
    TL_TRY(wait_for_some());
    collect();
  }
  return std::span<const ReadyFold>(wave_);
}

// What was handed out has been attended: rows that were missed enter the row cache, and the staging
// memory is free for others.
void Reader::retire() {
  RowCache* caches = table_.layers_[now_->layer_].row_cache.data();
  for (const ReadyFold& done : wave_) {
    const Reading::Planned& fold = now_->planned_[done.id];
    if (!fold.is_staged()) continue;
    table_.counters_.pages_verified += done.pages.size();
    const std::byte* staging = table_.staging_.data() + fold.staging_at;
    const std::size_t row_bytes = fold.ready.fold.key_stride;
    const std::uint32_t first_row = table_.places_[fold.place].first_row;
    for (std::uint32_t m = fold.first_miss; m < fold.last_miss; ++m)
      if (std::byte* slot = caches[fold.head].insert(first_row + now_->misses_[m].row))
        std::memcpy(slot, staging + now_->misses_[m].at, row_bytes);
    free_stage(fold);
  }
  wave_.clear();
}

// The read of an extent, to where its fold has staging memory.
Transfer Reader::transfer_of(const Reading& reading, std::uint32_t extent) const {
  const Reading::Extent& from = reading.extents_[extent];
  const Reading::Planned& fold = reading.planned_[from.fold];
  Transfer transfer;
  transfer.file = table_.places_[fold.place].slot.space().file;
  transfer.offset = from.file_offset;
  transfer.bytes = {table_.staging_.data() + fold.staging_at + from.at, from.bytes};
  transfer.tag = std::uint64_t{&reading == &readings_[1]} << 32 | extent;
  return transfer;
}

// An extent that follows the last one, in the file and in memory, is read with it.
void Reader::list_transfers(Reading* reading, const Reading::Planned& fold) {
  for (std::uint32_t e = fold.first_extent; e < fold.last_extent; ++e) {
    const Transfer next = transfer_of(*reading, e);
    if (!transfers_.empty()) {
      Transfer& last = transfers_.back();
      if (last.file == next.file && last.offset + last.bytes.size() == next.offset &&
          last.bytes.data() + last.bytes.size() == next.bytes.data() &&
          last.bytes.size() + next.bytes.size() <= kMostReadBytes) {
        last.bytes = {last.bytes.data(), last.bytes.size() + next.bytes.size()};
        ++reading->extents_[static_cast<std::uint32_t>(last.tag)].joined;
        continue;
      }
    }
    transfers_.push_back(next);
  }
}

Status Reader::read_again(const ReadyFold& failed) {
  Reading::Planned& fold = now_->planned_[failed.id];
  transfers_.clear();
  for (std::uint32_t e = fold.first_extent; e < fold.last_extent; ++e)
    transfers_.push_back(transfer_of(*now_, e));
  table_.counters_.pages_read_again += fold.last_check - fold.first_check;
  fold.waiting = fold.last_extent - fold.first_extent;
  TL_TRY(hand_over(now_));
  while (fold.waiting > 0) TL_TRY(wait_for_some());
  if (!verify(failed))
    return fail(ErrorCode::corrupt, table_.paged_name(), ": ", fold.last_check - fold.first_check,
                " pages read from offset ", now_->extents_[fold.first_extent].file_offset,
                " do not match their checksums, twice: the disk returned damaged data",
                table_.advice_on_damage());
  return {};
}

}  // namespace thermocline
