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
#include "tiers/segment_record.h"
#include "tiers/store/keeper.h"
#include "tiers/store/stores.h"
#include "tiers/tier.h"
#include "tiers/write_behind.h"

namespace thermocline {

class Reader;
class Reading;

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
  // For reads in flight and being attended, where rows are staged.
  std::uint64_t staging_bytes = std::uint64_t{16} << 20;
  // Pages on their way to the disk: beyond that many, a segment waits for those before it.
  std::uint64_t writing_bytes = std::uint64_t{16} << 20;
  std::chrono::milliseconds disk_deadline = kDiskPatience;
};

// One thread drives it (the step). `budget` outlives it.
class PageTable {
 public:
  static Result<std::unique_ptr<PageTable>> create(const PageTableOptions& options, Budget* budget);
  // With open stores and an open sink of the caller's, for tests.
  static Result<std::unique_ptr<PageTable>> create(const PageTableOptions& options, Budget* budget,
                                                   Stores stores, std::unique_ptr<Sink> sink);
  // Waits no longer for the disk than for a transfer (disk_deadline). What it has not given back by
  // then, memory and all, is left to it for ever: a leak rather than a process that does not end.
  ~PageTable();
  // The notes() that create() would have, or its refusal, without anything taken.
  static Result<std::vector<std::string>> probe(const PageTableOptions& options);

  // Takes a formed segment: `records` is [heads][rows] of segment.layout. `home` has a store. In
  // pages it is checksummed and on its way to the disk when this returns, from pages that are made
  // in host memory, under Purpose::sealing; as many of its rows as fit also enter the row cache.
  // The segment's space is given back when the last shared_ptr goes, and nothing is in flight to it
  // any more. `purpose` tags the bytes of the home. Until it is read, the caller may still say what
  // its rows share (Segment::fits).
  Result<std::shared_ptr<Segment>> adopt(Segment segment, std::span<const std::byte> records,
                                         Tier home, Purpose purpose);
  // Room in a tier whose memory has addresses, until the slot goes, before the table: the caller's.
  Result<Slot> take(std::uint64_t bytes, Tier tier, Purpose purpose);
  // And what belongs to a segment and is no rows of one put there, with more behind it: it is when
  // this returns.
  Result<Slot> put(std::span<const std::byte> bytes, Tier tier, Purpose purpose,
                   std::span<const std::byte> behind = {});
  // Waits until all that was adopted is where it is at home; before that a session does not hold
  // it. The first error of a write since the last call, unless its segment is gone.
  Status written();

  // What the row caches of a layer hold, filled from outside between two readings. Rows of any
  // head: how many fit. What is put there since begin_warming() makes room for nothing else before
  // the next reading.
  std::uint32_t row_cache_rows(LayerId layer) const {
    return layers_[index(layer)].row_cache.empty() ? 0
                                                   : layers_[index(layer)].options.row_cache_rows;
  }
  void begin_warming(LayerId layer);
  enum class Absent : std::uint8_t { takes_a_slot, stays_away };  // a row that is not there
  // Makes a row the most recently used one. Where it takes a slot, that is returned, to be filled
  // with its record; null: it is there, or stays away, or there is no room. Several heads of a
  // layer may be filled at a time, each on one thread.
  std::byte* cache_row(const Segment& segment, std::uint32_t head, std::uint32_t row,
                       Absent absent);

  // Where a head's rows begin, in memory that is the host's or a device's own; not in pages.
  const std::byte* rows_at(const Segment& segment, std::uint32_t head) const;
  Tier home(const Segment& segment) const;
  // Whose memory rows of Reach::device are at home in; null: there are none.
  Device* device() const;

  // Sessions: where the lowest store outlives the process (tiers/store/keeper.h). A segment is kept
  // with a record beside its rows, written once: what it is, its pages' checksums, and `more`,
  // which is the caller's. `segment` is at home in that store, and has no record yet.
  bool keeps() const { return keeper() && keeper()->keeps(); }
  Status keep(const Segment& segment, const WriteRecord& more);
  struct Record {  // where it is in the file, the checksum of its bytes, and the segment's rows
    std::uint64_t offset = 0, bytes = 0, checksum = 0, rows = 0;
  };
  Record record_of(const Segment& segment) const;
  // What is sealed from now on has no record, and is gone with the process.
  Status stop_keeping() { return keeper()->stop_keeping(); }
  // From now on what is found in the file is `manifest` and these segments, which have records.
  // Both its place and the memory to put it together are reserved first (saved; sealing).
  Status publish(const WriteRecord& manifest, std::span<const Segment* const> segments);
  // The manifest of what an earlier process published last, once; empty: there was none.
  std::vector<std::byte> take_manifest();
  // A segment of the last publication, as it was when it was kept; as many of its rows as fit enter
  // the row cache. corrupt: the file is damaged, or does not fit the layers of this table.
  struct Restored {
    std::shared_ptr<Segment> segment;  // nobody else's yet: without what `more` says of it
    std::vector<std::byte> more;
  };
  Result<Restored> restore(const Record& record);

  // Row numbers of a layer that were ever in use: they size the row caches' tables. For tests.
  std::uint32_t numbered_rows(std::uint32_t layer) const { return layers_[layer].rows_numbered; }
  const TierCounters& counters() const { return counters_; }
  // By which neighbouring misses are merged: given, measured, or assumed where measuring failed.
  const ReadCost& read_cost() const { return read_cost_; }
  // One line each: what is slower or takes more memory than was asked for, and why.
  std::span<const std::string> notes() const { return notes_; }

 private:
  friend class Reader;
  friend class Reading;
  struct Place {  // of one segment
    StoreFacts home;
    Purpose purpose = Purpose::rows;
    Slot slot;         // the rows, head by head
    Slot record_slot;  // where it is kept: its record
    Record record;
    Reservation tables;
    std::uint64_t head_bytes = 0;  // of a head: its records, in pages whole ones
    // In pages:
    std::vector<std::uint64_t> checksum;  // a page, whole segment
    std::uint64_t epoch = 0;              // part of every page's identity
    std::uint32_t first_row = 0;          // of the layer's dense row numbers
    std::uint32_t layer = 0, rows = 0;
    bool used = false;
  };
  // A transfer that was given up while it may be in flight: until it is not, its pages and its
  // place in the file may be written to at any time, so neither may be anybody else's.
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
  struct Pages {
    Buffer bytes;
    Reservation memory;
  };
  // Fills the rest of a segment's place; its rows lie in the pages that are returned, to be written
  // once the segment is taken in.
  Result<Pages> settle_in_pages(const Segment& segment, std::span<const std::byte> records,
                                Store* store, Place* place);
  std::shared_ptr<Segment> take_in(Segment segment, Place place);
  // As many of a head's rows as fit, of `rows` that begin with the first.
  void fill_row_cache(const Place& place, std::uint32_t head, std::span<const std::byte> rows);
  // Moves whole pages to or from `space`, in pieces. After an error some may still be in flight:
  // give_up() then keeps what they touch.
  Status move_pages(Transfer::Kind kind, const Space& space, std::uint64_t at,
                    std::span<std::byte> pages);
  // What read has arrived meanwhile is lost: what was expected of it is expected no longer.
  Status write_down_to(std::uint64_t bytes);
  std::size_t reads_in_flight() const;
  Status give_up(Status failed, Buffer pages, Reservation memory, Slot slot);
  const std::string& paged_name() const;  // of the store that is reached in pages
  // page_table_kept.cpp
  Keeper* keeper() const;
  Store* keeping_store() const;
  // The ledger's share of what the keeper holds itself, once more when this goes: after whatever
  // may change it.
  class Recount;
  void recount_kept();
  void warm(const Segment& segment, const Place& place);
  // What to do where bytes of the disk do not match their checksum; ends a message.
  const char* advice_on_damage() const;
  // Row numbers for `place`, with room in the row caches' tables.
  Status number_place(Place* place);
  static std::uint32_t number_rows(Layer* layer, std::uint32_t rows);
  static void free_row_numbers(Layer* layer, std::uint32_t first, std::uint32_t rows);
  static std::uint64_t identity(const Place& place, std::uint64_t page) {
    return SegmentRecord::identity(place.epoch, place.slot.space().offset, page);
  }

  PageTableOptions options_;
  Budget* budget_ = nullptr;
  Stores stores_;
  Reservation row_cache_reservation_, staging_reservation_;
  Reservation kept_;  // Keeper::kept_bytes()
  std::vector<std::string> notes_;
  Buffer staging_;
  std::vector<Abandoned> abandoned_;
  WriteBehind writes_;
  std::unique_ptr<Sink> sink_;  // goes before the memory that it may still be reading or filling
  std::vector<Layer> layers_;
  std::vector<Place> places_;  // by Segment::id
  std::vector<std::uint32_t> free_ids_;
  std::uint64_t epoch_ = 0;
  std::uint64_t changes_ = 0;  // grows when what was planned to be read may be so no longer
  TierCounters counters_;
  ReadCost read_cost_;
  std::uint64_t merge_gap_bytes_ = 0;  // of read_cost_
};

}  // namespace thermocline
