// What reading a layer will be: lists cut into folds, and for each its views of rows, the pages
// that are to be read for it, and what each page is to be. Nothing here waits, or touches the disk.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/base/tier_counters.h"
#include "tiers/page_table.h"

namespace thermocline {

// One list of a layer's step: what `list` says of `runs`, in the rows of KV head `head`.
struct ReadRequest {
  std::uint32_t head = 0;
  std::span<const Run> runs;
  const ReadList* list = nullptr;
};

// A page that was read from the disk and what its checksum must be.
struct PageCheck {
  const std::byte* page = nullptr;
  std::uint64_t identity = 0, checksum = 0;
};

// A fold whose rows can all be reached. Verify its pages before attending, on the thread that does,
// so that attention reads them from that core's cache.
struct ReadyFold {
  std::uint32_t list = 0, ordinal = 0;  // which list, which fold of it
  Fold fold;
  std::span<const PageCheck> pages;
  std::uint32_t id = 0;      // of the reader
  std::uint32_t rows = 0;    // kFoldRows at most
  std::uint32_t before = 0;  // rows of the list in folds before this one
};
bool verify(const ReadyFold& fold);
// Copies a fold's rows to one after the other, by rank, each as it is at home: its key, then its
// value. fold.rows times fold.fold.key_stride bytes.
void pack_rows(const ReadyFold& fold, std::byte* to);

// Whose folds are those of rows that lie on a device.
enum class DeviceRows : std::uint8_t {
  come,  // the host's: what is asked for is copied into staging memory
  stay,  // the device's: no wave has them, Reader::on_device() does
  sent,  // no row does: what comes is sent there, where what rows share is read
};

enum class FoldOrder : std::uint8_t {
  any,      // as they become ready
  in_list,  // a list's folds in their order
};

// One of a Reader's two; reused from layer to layer, so it allocates nothing once it has seen the
// longest lists.
class Reading {
 public:
  explicit Reading(PageTable* table) : table_(*table) {}
  Reading(const Reading&) = delete;
  Reading& operator=(const Reading&) = delete;

  void begin(std::uint32_t layer, FoldOrder order, DeviceRows device_rows);
  // Plans the folds of more lists, numbered on from those before.
  void plan(std::span<const ReadRequest> requests);

 private:
  friend class Reader;
  struct Extent {  // what is read at one place
    std::uint32_t fold = 0;
    std::uint32_t bytes = 0;
    std::uint64_t file_offset = 0;
    std::uint64_t at = 0;      // in the fold's staging area
    bool again = false;        // already retried
    std::uint32_t joined = 1;  // how many, from this one on, are read as one
  };
  // A fold, and which [first, last) of the lists below are its own.
  struct Planned {
    ReadyFold ready;
    std::uint32_t place = 0, head = 0, key_bytes = 0, stage = 0;
    std::uint32_t first_view = 0, last_view = 0;
    std::uint32_t first_patch = 0, last_patch = 0;
    std::uint32_t first_check = 0, last_check = 0;
    std::uint32_t first_extent = 0, last_extent = 0;
    std::uint32_t first_copy = 0, last_copy = 0;
    std::uint32_t first_miss = 0, last_miss = 0;
    std::uint32_t waiting = 0;  // reads that have not arrived
    std::uint64_t staging_bytes = 0, staging_at = 0;
    bool is_ready = false;
    bool in_pages() const { return first_extent != last_extent; }  // some of it
    bool is_copied() const { return first_copy != last_copy; }     // all of it, from a device
    bool is_staged() const { return in_pages() || is_copied(); }
    bool stays = false;  // on a device
  };
  struct Copy {                       // rows one after the other
    const std::byte* from = nullptr;  // in a device's memory
    std::uint64_t bytes = 0;
    std::uint64_t at = 0;  // in the fold's staging area
  };
  struct Patch {  // a view whose address is known once the fold has staging memory
    std::uint32_t view = 0;
    std::int64_t offset = 0;  // of the block's row 0, from the fold's staging area
  };
  struct Miss {
    std::uint32_t row = 0;  // of the segment's head
    std::uint64_t at = 0;   // in the fold's staging area
  };
  enum class Misses : std::uint8_t {  // rows that had to be read in pages:
    enter_cache,                      // the row cache, once they have been attended
    pass_by,                          // each is read once, and would push out what is read again
  };
  struct Weights {  // of the rows at hand
    const float* next = nullptr;
    std::uint32_t a_row = 0;
    bool scored = false;
    bool residual = false;
  };

  void plan_list(std::uint32_t list, const ReadRequest& request);
  void plan_rows(const Segment& segment, std::uint32_t list, std::uint32_t head,
                 std::uint32_t block, RowSet rows, Weights weights, Misses misses);
  void open_fold(const Segment& segment, std::uint32_t list, std::uint32_t head,
                 const Weights& weights);
  // `n`: how many rows those are.
  void add_rows_by_address(Planned* fold, std::uint32_t block, RowSet rows, int n,
                           const float* log_weight);
  void add_rows_to_copy(Planned* fold, std::uint32_t block, RowSet rows, Weights weights);
  void count_by_address(const Planned& fold, int n);
  void count_fits(const Segment& segment, RowSet rows);
  const std::byte* block_home(const Planned& fold, std::uint32_t block) const;
  void add_rows_in_pages(Planned* fold, std::uint32_t block, RowSet rows, Weights weights,
                         Misses misses);
  void add_view(const Planned& fold, std::uint32_t block, const std::byte* row0, RowSet rows,
                const float* log_weight);
  std::uint64_t stage_page(Planned* fold, std::uint64_t page);

  PageTable& table_;
  std::uint32_t layer_ = 0;
  FoldOrder order_ = FoldOrder::any;
  DeviceRows device_rows_ = DeviceRows::come;
  std::vector<Planned> planned_;
  std::vector<std::uint32_t> folds_of_list_, first_of_list_, cursor_of_list_;
  std::vector<BlockView> views_;
  std::vector<Patch> patches_;
  std::vector<PageCheck> checks_;
  std::vector<std::uint64_t> check_at_;  // of each check's page, in the fold's staging area
  std::vector<Extent> extents_;
  std::vector<Copy> copies_;
  std::vector<Miss> misses_;
  std::vector<std::uint32_t> device_ids_;  // of folds that stay
  // FoldOrder::any, of folds that are ready and not yet handed out: those that have arrived, and
  // those that were in memory, from next_in_memory_ on.
  std::vector<std::uint32_t> arrived_ids_, in_memory_ids_;
  std::size_t next_in_memory_ = 0;
  std::uint32_t next_to_submit_ = 0;
  std::size_t handed_out_ = 0;
  std::size_t in_flight_ = 0;  // transfers
  TierCounters counted_;       // what it took, as far as that is not among the table's yet
  bool open_ = false;          // the last planned fold may take more rows
};

}  // namespace thermocline
