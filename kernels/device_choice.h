// Choosing by a device among rows whose index lies in its memory, and attending what it chose:
// queries go over, and a state for each list comes back. The rows are there too; or in pinned
// memory, from which the device fetches those that it has no copy of; or out of its reach: then it
// says which those are, and is sent them. What is chosen, and what stands for the rest: by codes of
// rows (kernels/sketch.h) as retrieval/select/sketch.h says, by units of rows as
// retrieval/select/ranked.h does; either way all of them are looked at, however long a text is. Or
// all rows are read.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/attend.h"
#include "kernels/base/error.h"
#include "kernels/sketch.h"

namespace thermocline {

// What a unit is scored by, and how that lies: its mean key, int8; the least of each channel, then
// the most, f16; the mean of each, then the variance, f16; its mean key, f16.
enum class UnitScore : std::uint8_t { means, bounds, moments, landmarks };
// How a group's query heads are combined to one rank: retrieval/select/ranked.h.
enum class GroupRank : std::uint8_t { sum, max, vote };

// Of rows that are read by whole units, the best ranked first.
struct UnitFormat {
  UnitScore score = UnitScore::means;
  GroupRank group = GroupRank::sum;
  std::uint32_t rows = 0;  // a unit, the last one of a run maybe fewer; 0: each run says
  float alpha = 0;         // of moments: deviations that a score is above the mean's

  bool operator==(const UnitFormat&) const = default;
};

// What keys at low rank (kernels/format/row_lowrank.h) are rebuilt from, of one KV head of a sealed
// segment. All pointers are to memory that the device reaches.
struct LowRankKeys {
  std::uint32_t rank = 0;
  std::uint32_t first_position = 0;
  const f16* basis = nullptr;             // [rank][key_dim]
  const f16* coefficients = nullptr;      // [rows][rank], in the order of positions
  const std::uint16_t* offset = nullptr;  // [rows]: position less the first; null: 0, 1, 2 ...
  // Rows whose keys are as they were, rotated: their numbers, ascending, and those keys.
  std::uint32_t kept = 0;
  const std::uint16_t* kept_number = nullptr;  // [kept]
  const f16* kept_key = nullptr;               // [kept][key_dim]
};

// How the rows of a layer are kept, with what they are chosen by. Bytes are from a row to the next.
struct ChoiceFormat {
  HeadShape head;
  int bits = 2;  // a channel of a row's code: 1, 2 or 4; 0: rows have none, whole units are read
  UnitFormat unit = {};     // then
  bool everything = false;  // nothing is chosen: all rows are read
  RowFormat key_format = RowFormat::f16, value_format = RowFormat::f16;
  std::uint32_t key_bytes = 0, row_bytes = 0;  // of a kept record's key; of all of it
  // In host memory, of keys at low rank by their positions; null: they carry none.
  const Rotation* rotation = nullptr;
  RowFormat summary_format = RowFormat::int8;  // values; keys are not read
  std::uint32_t summary_bytes = 0;             // 0: units have none
  RowFormat residual_format = RowFormat::rotated2;
  std::uint32_t residual_bytes = 0;

  bool operator==(const ChoiceFormat&) const = default;
};

// One KV head of a sealed segment: its rows, their index and their units' summaries; the units of a
// sketch are its clusters. All pointers are to memory that the device reaches.
struct IndexedRows {
  std::uint32_t rows = 0, units = 0;
  const std::uint8_t* codes = nullptr;    // whole groups of kSketchGroup
  const f16* scales = nullptr;            // likewise
  const std::byte* unit_keys = nullptr;   // [units]: what each is scored by; of a sketch its mean
  std::uint32_t unit_key_bytes = 0;       // apart
  const std::uint16_t* starts = nullptr;  // [units + 1]; null: units have UnitFormat::rows
  const std::byte* always = nullptr;      // [units]: not 0: it is read first; null: none is
  // Kept rows and summary rows: where row 0's value is. Of rows, keys precede values; null: they
  // are out of reach, as are those of all runs of all lists that are begun together.
  const std::byte* row = nullptr;
  const std::byte* summary = nullptr;
  const std::byte* residual = nullptr;  // of a ladder: codes of what values lack, row by row
  LowRankKeys low_rank = {};            // where keys are at low rank
};

// Memory of the device for copies of a list's rows, which lie elsewhere: slot_bytes(), the same
// list's from step to step, whatever is in it at first.
struct ListSlots {
  std::byte* memory = nullptr;  // null: rows are attended where they lie, within reach
  // As many as rows are read at least: of fewer some rows would be fetched and not kept.
  std::uint32_t slots = 0;
  std::uint32_t rows = 0;  // that the list may come to have, each run's in whole blocks
  // Of those the first that are the rows that they were when this memory was last asked with: of
  // others there is no copy.
  std::uint32_t kept = 0;
};

// What one list asks. All of it is in host memory.
struct ChoiceQuestion {
  std::span<const IndexedRows> runs;  // of its KV head: one at least
  const float* query = nullptr;       // [heads][key_dim], rotated and scaled
  std::span<const AttnState> steady;  // [heads]: attended already, of which acc is not read
  std::uint32_t read = 0;             // of the rows, to be read: 1 to all of them
  std::uint32_t coded = 0;            // and to be attended at least by their codes, read ones
                                      // included; 0: none is
  std::uint32_t estimated = 0;        // of units: so many rows of the next ones by summaries
  ListSlots slots = {};               // all questions of one begin() have some, or none
};

// What a list may have at most; rows and units are those of all runs, each run's in whole blocks.
struct ChoiceBounds {
  std::uint32_t runs = 0, rows = 0, units = 0, read = 0, coded = 0;
  bool cached = false;  // it has slots
  bool packed = false;  // as it does where its rows are out of reach, and come packed
};

// What choosing works in: memory of the device, and of the host, pinned, where `outbox` is for
// packed rows: as many as all lists read, unless it is given less.
struct ChoiceBytes {
  std::uint64_t device = 0, host = 0, outbox = 0;
};

// Rows of one list that no slot holds, one packed after the other, as they are kept.
struct PackedRows {
  std::uint32_t list = 0;             // of those that were begun
  std::uint32_t first = 0, rows = 0;  // of missed()[list], so many from number `first` on
  const std::byte* at = nullptr;      // in room()
};

// One thread at a time, in working memory that is taken once.
class DeviceChoice {
 public:
  virtual ~DeviceChoice() = default;

  // Queues as many of `lists`, from the first on, as there is working memory for, and returns how
  // many: one at least. Of those with the same slots only the first, since one's copies are there
  // for the next. Rows and indexes stay as they are until finish(); what is asked may go when this
  // returns. What was queued before is waited for, if finish() was not. exhausted: the first is
  // larger than this, or its slots, were made for. After an error slots hold nothing.
  virtual Result<std::size_t> begin(const ChoiceFormat& format,
                                    std::span<const ChoiceQuestion> lists) = 0;

  // The next three between begin() and finish(), of lists whose rows are out of reach.
  //
  // Of list i the rows that it chose and no slot holds, ascending, run after run, each run's in
  // whole blocks. Waits for them; valid until begin().
  virtual Result<std::span<const std::span<const std::uint32_t>>> missed() = 0;
  // Pinned memory to pack rows in: `bytes` of it or more, which are no more than the outbox. Waits
  // for what was sent before where that is in the way.
  virtual Result<std::span<std::byte>> room(std::size_t bytes) = 0;
  // Only queues: rows that were packed in what room() returned last go to their slots. Each missed
  // row once, in any order, before finish().
  virtual Status send(std::span<const PackedRows> packed) = 0;

  // Of list i and query head h the state of all that it was attended for is at [i * heads + h], but
  // for what it attended before. A list's bits depend on the list alone. On the host, until
  // begin().
  struct Answer {
    std::span<const AttnState> states;
    std::span<const std::uint32_t> read;       // of list i: how many rows
    std::span<const std::uint32_t> fetched;    // and of those, how many; empty: without slots
    std::span<const std::uint32_t> summaries;  // and how many summaries
    // Of keys at low rank: how many rows of its run r, at [i * runs + r].
    std::span<const std::uint32_t> of_runs;
    std::size_t runs = 0;
    std::uint64_t crossed_bytes = 0;  // to the device and from it, beside those
  };
  // Waits for what begin() queued.
  virtual Result<Answer> finish() = 0;

  // After finish(), for studies: which rows list i read, or attended by their codes, a word a
  // block, run after run; none where nothing is coded.
  virtual Result<std::vector<RowSet>> chosen(std::size_t i, bool by_codes) = 0;
};

}  // namespace thermocline
