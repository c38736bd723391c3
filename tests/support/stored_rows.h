// Segments with random rows in a page table, and what reading them must give: the rows that a list
// names, in its order, in folds, wherever they come from.
#pragma once

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <random>
#include <span>
#include <vector>

#include "tests/support/fault_sink.h"
#include "tiers/page_table.h"
#include "tiers/reader.h"

namespace thermocline {

// A segment and, kept apart, the bytes that it was made of.
struct Stored {
  std::shared_ptr<const Segment> segment;
  std::vector<std::byte> records;  // [heads][rows]

  std::span<const std::byte> row(std::uint32_t head, std::uint32_t r) const;
};

// One fold as it was read: key and value of each row by rank, and its log weight, none or one
// or, if scored, several.
struct FoldRead {
  std::vector<std::byte> rows;
  std::vector<std::vector<float>> log_weights;
  bool scored = false;
  bool operator==(const FoldRead&) const = default;
};
using ListRead = std::vector<FoldRead>;

// A page table over three tiers: a fake disk in memory, host memory, and the device that
// `options.stores` names, with as much room as the host.
class StoredRows {
 public:
  // `options` without a directory's or back end's meaning; of `stores` the disk's bytes count, and
  // which device.
  StoredRows(PageTableOptions options, std::uint64_t host_bytes, FaultPlan plan = {});
  // Over another sink.
  StoredRows(PageTableOptions options, std::uint64_t host_bytes, std::unique_ptr<Sink> sink);

  Result<Stored> store(std::mt19937& random, std::uint32_t layer, std::uint32_t rows, Tier home);
  FaultSink& faults() const { return *faults_; }
  std::vector<std::byte>& disk() const;  // the file's content

  Budget budget;
  std::unique_ptr<PageTable> table;

 private:
  void open(PageTableOptions options, std::unique_ptr<Sink> sink);
  PageTableOptions options_;
  FaultSink* faults_ = nullptr;
};

// Rows of a head of several segments, and a list over them.
struct Wanted {
  std::uint32_t head = 0;
  std::vector<Run> runs;
  std::vector<const Stored*> rows, summaries;  // of each run
  ReadList list;
};
// Random reads over `stored`, all of one layer: everything, picks, weighted picks, nothing at all.
Wanted random_reads(std::mt19937& random, std::span<const Stored> stored, std::uint32_t heads);
// Every row of one segment; of several.
Wanted whole(const Stored& stored, std::uint32_t head);
Wanted whole(std::span<const Stored> stored, std::uint32_t head);

ListRead expected(const Wanted& wanted);

// Reads everything that is wanted, asked for in a few parts with what is ready taken between them,
// verifies it and reads again what does not verify. Expects that each fold comes once, and,
// in_list, in order. Up to three lists are asked for in one part; `asked` is called after the last.
Result<std::vector<ListRead>> read_all(Reader* reader, std::uint32_t layer,
                                       std::span<const Wanted> wanted, FoldOrder order,
                                       const std::function<void()>& asked = {});
// Whether every head of a segment reads as it was stored.
::testing::AssertionResult holds(StoredRows& rows, const Stored& stored,
                                 FoldOrder order = FoldOrder::any);
// Says that all of that will be read next.
void expect_all(Reader* reader, std::uint32_t layer, std::span<const Wanted> wanted,
                FoldOrder order);

}  // namespace thermocline
