// Reading what a layer's lists ask for, from wherever it is: folds come out in waves, those in
// memory first, those on the disk as they arrive.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

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
  std::uint32_t id = 0;  // of the reader
};
bool verify(const ReadyFold& fold);

enum class FoldOrder : std::uint8_t {
  any,      // as they become ready
  in_list,  // a list's folds in their order
};

// Belongs to the thread that drives the page table; reused from layer to layer, so it allocates
// nothing once it has seen the longest lists. A wave is valid until the next call but read_again().
class Reader {
 public:
  explicit Reader(PageTable* table) : table_(*table) {}
  Reader(const Reader&) = delete;
  Reader& operator=(const Reader&) = delete;

  // Begins a layer's reading. It fails where reads of an earlier one take too long to finish.
  Status start(std::uint32_t layer, FoldOrder order);
  // Plans the folds of more lists, numbered on from those before, and hands reads to the disk. Not
  // while a wave is being attended.
  Status add(std::span<const ReadRequest> requests);
  // How many folds list `list` has.
  std::uint32_t folds(std::uint32_t list) const { return folds_of_list_[list]; }
  // The next wave: what is ready of the lists so far, which may be nothing. On an error of this,
  // next() or add() the reading is over, and start() begins anew.
  Result<std::span<const ReadyFold>> ready();
  // The same, but it waits for the disk when nothing is ready: empty when all folds have been
  // handed out.
  Result<std::span<const ReadyFold>> next();
  // For a fold whose verify() failed: reads its pages once more, at once. An error, when that
  // does not help, says where in the file they begin.
  Status read_again(const ReadyFold& fold);

 private:
  struct Extent {  // one read
    std::uint32_t fold = 0;
    std::uint32_t bytes = 0;
    std::uint64_t file_offset = 0;
    std::uint64_t at = 0;  // in the fold's staging area
    bool again = false;    // already retried
  };
  // A fold, and which [first, last) of the lists below are its own.
  struct Planned {
    ReadyFold ready;
    std::uint32_t place = 0, head = 0, key_bytes = 0, stage = 0;
    std::uint32_t first_view = 0, last_view = 0;
    std::uint32_t first_patch = 0, last_patch = 0;
    std::uint32_t first_check = 0, last_check = 0;
    std::uint32_t first_extent = 0, last_extent = 0;
    std::uint32_t first_miss = 0, last_miss = 0;
    std::uint32_t rows = 0;
    std::uint32_t waiting = 0;  // reads that have not arrived
    std::uint64_t staging_bytes = 0, staging_at = 0;
    bool is_ready = false;
  };
  struct Patch {  // a view whose address is known once the fold has staging memory
    std::uint32_t view = 0;
    std::int64_t offset = 0;  // of the block's row 0, from the fold's staging area
  };
  struct Miss {
    std::uint32_t row = 0;  // of the segment's head
    std::uint64_t at = 0;   // in the fold's staging area
  };
  struct Stage {  // of the staging ring, oldest first
    std::uint64_t begin = 0, end = 0;
    bool retired = false;
  };

  enum class Misses : std::uint8_t {  // rows that had to be read in pages:
    enter_cache,                      // the row cache, once they have been attended
    pass_by,                          // each is read once, and would push out what is read again
  };
  struct Weights {  // of the rows at hand
    const float* next = nullptr;
    std::uint32_t a_row = 0;
    bool scored = false;
  };

  // reader_plan.cpp
  void plan(std::uint32_t list, const ReadRequest& request);
  void plan_rows(const Segment& segment, std::uint32_t list, std::uint32_t head,
                 std::uint32_t block, RowSet rows, Weights weights, Misses misses);
  void open_fold(const Segment& segment, std::uint32_t list, std::uint32_t head,
                 const Weights& weights);
  // `n`: how many rows those are.
  void add_rows_in_memory(Planned* fold, std::uint32_t block, RowSet rows, int n,
                          const float* log_weight);
  void add_rows_in_pages(Planned* fold, std::uint32_t block, RowSet rows, Weights weights,
                         Misses misses);
  void add_view(const Planned& fold, const std::byte* row0, RowSet rows, const float* log_weight);
  std::uint64_t stage_page(Planned* fold, std::uint64_t page);
  // reader.cpp
  Status submit();
  void collect();
  bool take_staging(Planned* fold);
  Transfer transfer_of(std::uint32_t extent) const;
  void list_transfers(const Planned& fold);
  Status complete(const Completion& completion);
  Status wait_for_some();
  void retire();

  PageTable& table_;
  std::uint32_t layer_ = 0;
  FoldOrder order_ = FoldOrder::any;
  std::vector<Planned> planned_;
  std::vector<std::uint32_t> folds_of_list_, first_of_list_, cursor_of_list_;
  std::vector<BlockView> views_;
  std::vector<Patch> patches_;
  std::vector<PageCheck> checks_;
  std::vector<std::uint64_t> check_at_;  // of each check's page, in the fold's staging area
  std::vector<Extent> extents_;
  std::vector<Miss> misses_;
  std::vector<Stage> stages_;
  std::size_t oldest_stage_ = 0;
  std::vector<std::uint32_t> ready_ids_;  // FoldOrder::any: ready, not yet handed out
  std::vector<ReadyFold> wave_;
  std::vector<Transfer> transfers_;
  std::uint32_t next_to_submit_ = 0;
  std::size_t handed_out_ = 0;
  bool open_ = false;  // the last planned fold may take more rows
};

}  // namespace thermocline
