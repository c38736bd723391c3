// The only owner of 'where is it': which bytes of which segment are where, in which tier. Segments
// are adopted once, read through Readers, and give their space back when their last holder lets go.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "kernels/base/buffer.h"
#include "kernels/base/error.h"
#include "kernels/base/tier_counters.h"
#include "tiers/block.h"
#include "tiers/budget.h"
#include "tiers/io/read_cost.h"
#include "tiers/io/sink.h"
#include "tiers/row_cache.h"
#include "tiers/store/stores.h"
#include "tiers/tier.h"

namespace thermocline {

class Reader;

struct PageTableOptions {
  struct Layer {
    RowLayout layout;
    std::uint32_t heads = 0;
    std::uint32_t row_cache_rows = 0;  // a head; 0: none
    std::uint32_t rows = 0;            // sealed at the same time, about: sizes tables
  };
  std::vector<Layer> layers;
  StoreOptions stores;
  std::string io_backend = "auto";
  // What reading the home in pages costs. Nothing: it is measured when the table is made, on a
  // piece of the home that is written for it and given back.
  std::optional<ReadCost> read_cost = {};
  std::uint64_t staging_bytes = std::uint64_t{16} << 20;  // for reads in flight and being attended
  // No disk takes this long for one request; a wait beyond it is reported, never endless.
  std::chrono::milliseconds disk_deadline{60'000};
};

// One thread drives it (the step). `budget` outlives it.
class PageTable {
 public:
  static Result<std::unique_ptr<PageTable>> create(const PageTableOptions& options, Budget* budget);
  // With open stores and an open sink of the caller's, for tests.
  static Result<std::unique_ptr<PageTable>> create(const PageTableOptions& options, Budget* budget,
                                                   Stores stores, std::unique_ptr<Sink> sink);
  ~PageTable();
  // The notes() that create() would have, or its refusal, without anything taken.
  static Result<std::vector<std::string>> probe(const PageTableOptions& options);

  // Takes a formed segment: `records` is [heads][rows] of segment.layout. `home` has a store. In
  // pages it is written and checksummed before this returns (they are made in host memory, under
  // Purpose::sealing); as many of its rows as fit also enter the row cache. The segment's space is
  // given back when the last shared_ptr goes. `purpose` tags the bytes of the home.
  Result<std::shared_ptr<const Segment>> adopt(Segment segment, std::span<const std::byte> records,
                                               Tier home, Purpose purpose);

  // Where a head's rows begin; only for segments whose home is host memory.
  const std::byte* host_rows(const Segment& segment, std::uint32_t head) const;
  Tier home(const Segment& segment) const;

  // Row numbers of a layer that were ever in use: they size the row caches' tables. For tests.
  std::uint32_t numbered_rows(std::uint32_t layer) const { return layers_[layer].rows_numbered; }
  const TierCounters& counters() const { return counters_; }
  // By which neighbouring misses are merged: given, measured, or assumed where measuring failed.
  const ReadCost& read_cost() const { return read_cost_; }
  // One line each: what is slower or takes more memory than was asked for, and why.
  std::span<const std::string> notes() const { return notes_; }

 private:
  friend class Reader;
  struct Place {  // of one segment
    StoreFacts home;
    Purpose purpose = Purpose::rows;
    Slot slot;  // the records, head by head
    Reservation tables;
    std::uint64_t head_bytes = 0;  // of a head: its records, in pages whole ones
    // In pages:
    std::vector<std::uint64_t> checksum;  // a page, whole segment
    std::uint64_t epoch = 0;              // part of every page's identity
    std::uint32_t first_row = 0;          // of the layer's dense row numbers
    std::uint32_t layer = 0, rows = 0;
    bool used = false;
  };
  // A write that was given up while it may be in flight: until it is not, its pages are read, and
  // its place in the file may be written to at any time, so neither may be anybody else's.
  struct Abandoned {
    Buffer pages;
    Reservation memory;
    Slot slot;
  };
  struct Layer {
    PageTableOptions::Layer options;
    Buffer row_cache_bytes;
    std::vector<RowCache> row_cache;  // a head
    std::uint32_t rows_numbered = 0;
    std::uint32_t rows_tabled = 0;                     // that the row caches' tables reach
    std::map<std::uint32_t, std::uint32_t> free_rows;  // first -> count to reuse; none touch
  };

  PageTable() = default;
  void measure_reads();
  void release(std::uint32_t id);
  // Waits for what an earlier error left in flight, whose memory, place in the file and tags are
  // about to be another transfer's, and gives back what abandoned writes held. Everything that
  // takes space or submits asks for this first.
  Status quiesce();
  // Both fill the rest of a segment's place, and `store` with its rows.
  Status settle_in_memory(const Segment& segment, std::span<const std::byte> records, Store* store,
                          Place* place);
  Status settle_in_pages(const Segment& segment, std::span<const std::byte> records, Store* store,
                         Place* place);
  // Writes all of a segment's pages. After an error some of it may still be in flight.
  Status write_home(const Place& place, std::span<std::byte> pages);
  // Row numbers for `place`, with room in the row caches' tables.
  Status number_place(Place* place);
  static std::uint32_t number_rows(Layer* layer, std::uint32_t rows);
  static void free_row_numbers(Layer* layer, std::uint32_t first, std::uint32_t rows);
  static std::uint64_t identity(const Place& place, std::uint64_t page) {
    return place.epoch * 0x9e3779b97f4a7c15ull + place.slot.space().offset / kPageBytes + page;
  }

  PageTableOptions options_;
  Budget* budget_ = nullptr;
  Stores stores_;
  Reservation row_cache_reservation_, staging_reservation_;
  std::vector<std::string> notes_;
  Buffer staging_;
  std::vector<Abandoned> abandoned_;
  std::unique_ptr<Sink> sink_;  // goes before the memory that it may still be reading or filling
  std::vector<Layer> layers_;
  std::vector<Place> places_;  // by Segment::id
  std::vector<std::uint32_t> free_ids_;
  std::uint64_t epoch_ = 0;
  TierCounters counters_;
  ReadCost read_cost_;
  std::uint64_t merge_gap_bytes_ = 0;  // of read_cost_
};

}  // namespace thermocline
