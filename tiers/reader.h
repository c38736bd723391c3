// Reading what a layer's lists ask for, from wherever it is: folds come out in waves, those in
// memory at once, those on the disk as they arrive.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "tiers/page_table.h"
#include "tiers/reading.h"

namespace thermocline {

// Belongs to the thread that drives the page table; reused from layer to layer, so it allocates
// nothing once it has seen the longest lists. A wave is valid until the next call but read_again().
class Reader {
 public:
  explicit Reader(PageTable* table) : table_(*table), readings_{Reading(table), Reading(table)} {}
  Reader(const Reader&) = delete;
  Reader& operator=(const Reader&) = delete;

  // Begins a layer's reading. It fails where reads of an earlier one take too long to finish.
  Status start(std::uint32_t layer, FoldOrder order, DeviceRows device_rows = DeviceRows::come);
  // Plans the folds of more lists, numbered on from those before, and hands reads to the disk. Not
  // while a wave is being attended.
  Status add(std::span<const ReadRequest> requests);
  // After the last add(): what will most likely be asked for next, by a start() and one add() of
  // equal lists of whole runs. Its reads are handed to the disk behind those that are asked for, as
  // far as staging memory reaches, and are then on their way. If something else is asked for, or
  // segments come or go before, or something fails, it is forgotten: that costs time alone.
  void expect(std::uint32_t layer, FoldOrder order, DeviceRows device_rows,
              std::span<const ReadRequest> requests);
  // Waits until nothing is in flight any more, of that or of a reading that was given up: the next
  // call may come from another thread.
  void rest();
  // How many folds list `list` has.
  std::uint32_t folds(std::uint32_t list) const { return now_->folds_of_list_[list]; }
  // The folds of the lists so far whose rows stay on a device, with where they lie there, by list
  // and in their order; valid until the next add().
  std::span<const ReadyFold> on_device();
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
  struct Stage {  // of the staging ring, oldest first
    std::uint64_t begin = 0, end = 0;
    bool retired = false;
  };

  enum class Expected : std::uint8_t { nothing, on_its_way, failed };

  bool may_come() const;  // what is expected
  bool is_expected(std::span<const ReadRequest> requests);
  Status forget();
  void reserve();
  Status submit();
  Status submit(Reading* reading);
  void place(Reading* reading, Reading::Planned* fold);
  Status copy_rows(const Reading& reading, const Reading::Planned& fold);
  Status arrive_copied(Reading* reading, std::uint32_t first, Status queued);
  Status hand_over(Reading* reading);
  TierCounters& counters_of(Reading* reading);
  void collect();
  void collect_any();
  void find_oldest_stage();
  void trim_stages();
  bool take_staging(Reading::Planned* fold);
  void free_stage(const Reading::Planned& fold);
  Transfer transfer_of(const Reading& reading, std::uint32_t extent) const;
  void list_transfers(Reading* reading, const Reading::Planned& fold);
  Status complete(Reading* reading, std::uint32_t extent, int error);
  Status arrived(std::span<const Completion> completions);
  Result<std::size_t> take_arrived(Deadline deadline);
  Status wait_for_some();
  void retire();

  PageTable& table_;
  Reading readings_[2];
  Reading *now_ = &readings_[0], *next_ = &readings_[1];  // asked for; expected
  Expected expected_ = Expected::nothing;
  std::uint64_t expected_at_ = 0;                          // of the table's changes
  std::vector<std::uint64_t> expected_name_, asked_name_;  // of lists
  std::vector<Stage> stages_;
  std::uint32_t first_stage_ = 0;  // the number of stages_[0]
  std::size_t oldest_stage_ = 0;   // in stages_: those before are retired
  std::vector<ReadyFold> wave_, on_device_;
  std::vector<Transfer> transfers_;
};

}  // namespace thermocline
