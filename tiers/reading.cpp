#include "tiers/reading.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>

#include "tiers/io/checksum.h"

namespace thermocline {
namespace {

constexpr std::uint64_t kMaxExtentPages = 64;
// A fold's staging must leave room for others in flight: beyond this, gaps are not merged.
constexpr std::uint64_t kMergeStagingBytes = std::uint64_t{2} << 20;

}  // namespace

bool verify(const ReadyFold& fold) {
  for (const PageCheck& check : fold.pages)
    if (page_checksum({check.page, kPageBytes}, check.identity) != check.checksum) return false;
  return true;
}

void pack_rows(const ReadyFold& fold, std::byte* to) {
  const std::size_t row_bytes = fold.fold.key_stride;
  for (const BlockView& block : fold.fold.blocks) {
    for (RowSet left = block.rows; left != 0;) {
      const int first = std::countr_zero(left), n = std::countr_one(left >> first);
      const std::size_t bytes = static_cast<std::size_t>(n) * row_bytes;
      std::memcpy(to, block.key + static_cast<std::size_t>(first) * row_bytes, bytes);
      to += bytes;
      left &= ~(first_rows(n) << first);
    }
  }
}

void Reading::begin(std::uint32_t layer, FoldOrder order, DeviceRows device_rows) {
  TL_CHECK(in_flight_ == 0);  // their tags are about to be others'
  // Nobody takes a list's other folds once one does not come.
  TL_CHECK(device_rows == DeviceRows::come || order == FoldOrder::any);
  layer_ = layer;
  order_ = order;
  device_rows_ = device_rows;
  planned_.clear();
  views_.clear();
  patches_.clear();
  checks_.clear();
  check_at_.clear();
  extents_.clear();
  copies_.clear();
  misses_.clear();
  device_ids_.clear();
  arrived_ids_.clear();
  in_memory_ids_.clear();
  next_in_memory_ = 0;
  next_to_submit_ = 0;
  handed_out_ = 0;
  folds_of_list_.clear();
  first_of_list_.clear();
  cursor_of_list_.clear();
  counted_ = {};
}

void Reading::plan(std::span<const ReadRequest> requests) {
  const auto first_new = static_cast<std::uint32_t>(planned_.size());
  for (const ReadRequest& request : requests) {
    const auto first = static_cast<std::uint32_t>(planned_.size());
    first_of_list_.push_back(first);
    cursor_of_list_.push_back(first);
    plan_list(static_cast<std::uint32_t>(folds_of_list_.size()), request);
    folds_of_list_.push_back(static_cast<std::uint32_t>(planned_.size()) - first);
  }
  for (std::uint32_t id = first_new; id < planned_.size(); ++id) {
    Planned& fold = planned_[id];
    fold.ready.id = id;
    if (fold.is_staged()) continue;
    if (fold.stays) {
      device_ids_.push_back(id);
      ++handed_out_;
      continue;
    }
    fold.is_ready = true;
    if (order_ == FoldOrder::any) in_memory_ids_.push_back(id);
  }
  // What comes together depends on the disk; what is taken for it does not.
  arrived_ids_.reserve(planned_.size());
  // Until the next plan(), views_ and checks_ stay where they are now.
  for (Planned& fold : planned_) {
    fold.ready.fold.blocks = {views_.data() + fold.first_view, fold.last_view - fold.first_view};
    fold.ready.pages = {checks_.data() + fold.first_check, fold.last_check - fold.first_check};
  }
}

void Reading::plan_list(std::uint32_t list, const ReadRequest& request) {
  for (const Read& read : request.list->reads) {
    const Run& run = request.runs[read.run];
    const Segment& segment = run.in(read.form);
    open_ = false;
    Weights weights{nullptr, read.weights_a_row, read.scored, read.residual};
    // Nothing else could score them.
    TL_CHECK(read.scored || segment.layout.key_bytes > 0 || segment.fit(Side::keys));
    TL_CHECK(!read.everything || read.weights_a_row == 0);
    TL_CHECK(read.scored || !read.residual);
    if (weights.a_row > 0) weights.next = request.list->log_weight.data() + read.first_weight;
    if (device_rows_ != DeviceRows::sent && (read.everything || read.first != read.last))
      for (const SegmentFit& fit : segment.fits) counted_.host_bytes_read += fit.facts.head_bytes;
    if (read.everything) {
      for (std::uint32_t block = 0; block < segment.blocks(); ++block) {
        const int rows = static_cast<int>(
            std::min<std::uint32_t>(kBlockRows, segment.rows - block * kBlockRows));
        plan_rows(segment, list, request.head, block, first_rows(rows), {}, Misses::pass_by);
      }
      continue;
    }
    for (std::uint32_t p = read.first; p < read.last; ++p) {
      const Pick& pick = request.list->picks[p];
      TL_CHECK(pick.block < segment.blocks());
      TL_CHECK(p == read.first || pick.block > request.list->picks[p - 1].block);
      TL_CHECK(segment.rows - pick.block * kBlockRows >= kBlockRows ||
               (pick.rows >> (segment.rows - pick.block * kBlockRows)) == 0);
      plan_rows(segment, list, request.head, pick.block, pick.rows, weights, Misses::enter_cache);
      weights.next += static_cast<std::uint32_t>(count(pick.rows)) * weights.a_row;
    }
  }
}

// Adds a block's rows to the list's open fold, cutting folds at kFoldRows.
void Reading::plan_rows(const Segment& segment, std::uint32_t list, std::uint32_t head,
                        std::uint32_t block, RowSet rows, Weights weights, Misses misses) {
  count_fits(segment, rows);
  while (rows != 0) {
    if (!open_ || planned_.back().ready.rows == kFoldRows) open_fold(segment, list, head, weights);
    Planned* fold = &planned_.back();
    const int room = kFoldRows - static_cast<int>(fold->ready.rows);
    RowSet taken = rows;
    int n = count(taken);  // a call where the processor's instruction may not be used
    for (; n > room; --n) taken &= ~(RowSet{1} << (63 - std::countl_zero(taken)));
    const Reach reach = table_.places_[fold->place].home.reach;
    if (reach == Reach::pages)
      add_rows_in_pages(fold, block, taken, weights, misses);
    else if (reach == Reach::device && device_rows_ == DeviceRows::come)
      add_rows_to_copy(fold, block, taken, weights);
    else
      add_rows_by_address(fold, block, taken, n, weights.next);
    fold->ready.rows += static_cast<std::uint32_t>(n);
    fold->last_view = static_cast<std::uint32_t>(views_.size());
    fold->last_patch = static_cast<std::uint32_t>(patches_.size());
    fold->last_check = static_cast<std::uint32_t>(checks_.size());
    fold->last_extent = static_cast<std::uint32_t>(extents_.size());
    fold->last_copy = static_cast<std::uint32_t>(copies_.size());
    fold->last_miss = static_cast<std::uint32_t>(misses_.size());
    weights.next += static_cast<std::uint32_t>(n) * weights.a_row;
    rows &= ~taken;
  }
}

void Reading::open_fold(const Segment& segment, std::uint32_t list, std::uint32_t head,
                        const Weights& weights) {
  Planned fold;
  fold.place = segment.id;
  fold.head = head;
  fold.key_bytes = segment.layout.key_bytes;
  fold.ready.list = list;
  fold.ready.ordinal = static_cast<std::uint32_t>(planned_.size()) - first_of_list_[list];
  if (fold.ready.ordinal > 0)
    fold.ready.before = planned_.back().ready.before + planned_.back().ready.rows;
  fold.ready.fold.key_format = segment.layout.key_format;
  fold.ready.fold.value_format = segment.layout.value_format;
  fold.ready.fold.scored = weights.scored;
  fold.ready.fold.residual = weights.residual;
  fold.ready.fold.key_stride = fold.ready.fold.value_stride = segment.layout.bytes();
  fold.ready.fold.key_fit = segment.fit_of(Side::keys, head);
  fold.ready.fold.value_fit = segment.fit_of(Side::values, head);
  fold.first_view = fold.last_view = static_cast<std::uint32_t>(views_.size());
  fold.first_patch = fold.last_patch = static_cast<std::uint32_t>(patches_.size());
  fold.first_check = fold.last_check = static_cast<std::uint32_t>(checks_.size());
  fold.first_extent = fold.last_extent = static_cast<std::uint32_t>(extents_.size());
  fold.first_copy = fold.last_copy = static_cast<std::uint32_t>(copies_.size());
  fold.first_miss = fold.last_miss = static_cast<std::uint32_t>(misses_.size());
  fold.stays =
      table_.places_[fold.place].home.reach == Reach::device && device_rows_ == DeviceRows::stay;
  planned_.push_back(fold);
  open_ = true;
}

void Reading::add_view(const Planned& fold, std::uint32_t block, const std::byte* row0, RowSet rows,
                       const float* log_weight) {
  views_.push_back(
      {row0, row0 ? row0 + fold.key_bytes : nullptr, rows, log_weight, block * kBlockRows});
}

// Of a block's row 0, where rows have addresses.
const std::byte* Reading::block_home(const Planned& fold, std::uint32_t block) const {
  const PageTable::Place& place = table_.places_[fold.place];
  return place.slot.space().address + fold.head * place.head_bytes +
         std::size_t{block} * kBlockRows * fold.ready.fold.key_stride;
}

void Reading::count_by_address(const Planned& fold, int n) {
  const PageTable::Place& place = table_.places_[fold.place];
  // Summaries and codes are part of an index, and counted by who scanned it.
  if (place.purpose != Purpose::rows) return;
  (place.home.tier == Tier::device ? counted_.device_bytes_read : counted_.host_bytes_read) +=
      static_cast<std::size_t>(n) * fold.ready.fold.key_stride;
}

// Of a block, beside the rows' records, wherever those are.
void Reading::count_fits(const Segment& segment, RowSet rows) {
  static_assert(kBlockRows == 2 * kFitGroup);
  if (device_rows_ == DeviceRows::sent) return;
  const int groups = ((rows & first_rows(kFitGroup)) != 0) + (rows >> kFitGroup != 0);
  for (const SegmentFit& fit : segment.fits)
    if (fit)
      counted_.host_bytes_read += static_cast<std::uint64_t>(groups) * fit.facts.group_bytes +
                                  static_cast<std::uint64_t>(count(rows)) * fit.facts.row_bytes;
}

void Reading::add_rows_by_address(Planned* fold, std::uint32_t block, RowSet rows, int n,
                                  const float* log_weight) {
  add_view(*fold, block, block_home(*fold, block), rows, log_weight);
  count_by_address(*fold, n);
}

// Rows in sequence are one copy, and one view.
void Reading::add_rows_to_copy(Planned* fold, std::uint32_t block, RowSet rows, Weights weights) {
  const std::size_t row_bytes = fold->ready.fold.key_stride;
  while (rows != 0) {
    const int first = std::countr_zero(rows), n = std::countr_one(rows >> first);
    const RowSet together = first_rows(n) << first;
    const std::size_t before = static_cast<std::size_t>(first) * row_bytes;
    const std::size_t bytes = static_cast<std::size_t>(n) * row_bytes;
    patches_.push_back(
        {static_cast<std::uint32_t>(views_.size()),
         static_cast<std::int64_t>(fold->staging_bytes) - static_cast<std::int64_t>(before)});
    add_view(*fold, block, nullptr, together, weights.next);
    const std::byte* const from = block_home(*fold, block) + before;
    if (copies_.size() > fold->first_copy && copies_.back().from + copies_.back().bytes == from)
      copies_.back().bytes += bytes;
    else
      copies_.push_back({from, bytes, fold->staging_bytes});
    fold->staging_bytes += bytes;
    counted_.device_bytes_copied += bytes;
    count_by_address(*fold, n);
    weights.next += static_cast<std::uint32_t>(n) * weights.a_row;
    rows &= ~together;
  }
}

// Row by row: from the row cache, or from a page that is to be read. Rows in sequence that have one
// base (a page's rows; neighbouring slots) share a view.
void Reading::add_rows_in_pages(Planned* fold, std::uint32_t block, RowSet rows, Weights weights,
                                Misses misses) {
  const PageTable::Place& place = table_.places_[fold->place];
  RowCache& cache = table_.layers_[layer_].row_cache[fold->head];
  const std::int64_t row_bytes = fold->ready.fold.key_stride;
  constexpr std::int64_t kNoOffset = std::numeric_limits<std::int64_t>::min();
  const std::byte* cached_base = nullptr;
  std::int64_t staged_offset = kNoOffset;
  for (RowSet left = rows; left != 0; left &= left - 1) {
    const int in_block = std::countr_zero(left);
    const RowSet bit = RowSet{1} << in_block;
    const std::uint32_t row = block * kBlockRows + static_cast<std::uint32_t>(in_block);
    if (const std::byte* slot = cache.find(place.first_row + row)) {
      ++counted_.row_cache_hits;
      counted_.host_bytes_read += static_cast<std::uint64_t>(row_bytes);
      const std::byte* base = slot - in_block * row_bytes;  // of the block's row 0, were it here
      if (base == cached_base) {
        views_.back().rows |= bit;
      } else {
        add_view(*fold, block, base, bit, weights.next);
      }
      cached_base = base;
      staged_offset = kNoOffset;
    } else {
      ++counted_.row_cache_misses;
      const std::uint64_t first_byte = std::uint64_t{row} * static_cast<std::uint64_t>(row_bytes);
      const std::uint64_t first_page = first_byte / kPageBytes;
      const std::uint64_t last_page =
          (first_byte + static_cast<std::uint64_t>(row_bytes) - 1) / kPageBytes;
      const std::uint64_t at = stage_page(fold, first_page) + first_byte % kPageBytes;
      for (std::uint64_t page = first_page + 1; page <= last_page; ++page) stage_page(fold, page);
      if (misses == Misses::enter_cache) misses_.push_back({row, at});
      const std::int64_t offset = static_cast<std::int64_t>(at) - in_block * row_bytes;
      if (offset == staged_offset) {
        views_.back().rows |= bit;
      } else {
        patches_.push_back({static_cast<std::uint32_t>(views_.size()), offset});
        add_view(*fold, block, nullptr, bit, weights.next);
      }
      staged_offset = offset;
      cached_base = nullptr;
    }
    weights.next += weights.a_row;
  }
}

// Where a page of the fold's head will lie in the fold's staging area; pages come in ascending
// order, so it is in the last extent, or extends it, or opens one.
std::uint64_t Reading::stage_page(Planned* fold, std::uint64_t page) {
  const PageTable::Place& place = table_.places_[fold->place];
  const std::uint64_t page_of_segment = fold->head * (place.head_bytes / kPageBytes) + page;
  const std::uint64_t file_offset = place.slot.space().offset + page_of_segment * kPageBytes;
  const bool first = extents_.size() == fold->first_extent;
  if (!first) {
    Extent& last = extents_.back();
    const std::uint64_t end = last.file_offset + last.bytes;
    if (file_offset < end) return last.at + (file_offset - last.file_offset);  // checked already
    const std::uint64_t gap = file_offset - end;
    const bool roomy = gap == 0 || fold->staging_bytes + gap < kMergeStagingBytes;
    // Neighbouring misses become one read where reading the gap costs less than another read.
    if (gap <= table_.merge_gap_bytes_ && roomy &&
        last.bytes + gap + kPageBytes <= kMaxExtentPages * kPageBytes) {
      last.bytes += static_cast<std::uint32_t>(gap + kPageBytes);
      fold->staging_bytes += gap + kPageBytes;
    } else {
      extents_.push_back({0, kPageBytes, file_offset, fold->staging_bytes});
      fold->staging_bytes += kPageBytes;
    }
  } else {
    extents_.push_back({0, kPageBytes, file_offset, fold->staging_bytes});
    fold->staging_bytes += kPageBytes;
  }
  Extent& extent = extents_.back();
  extent.fold = static_cast<std::uint32_t>(fold - planned_.data());
  const std::uint64_t at = extent.at + (file_offset - extent.file_offset);
  checks_.push_back(
      {nullptr, PageTable::identity(place, page_of_segment), place.checksum[page_of_segment]});
  check_at_.push_back(at);
  return at;
}

}  // namespace thermocline
