// Choosing rows on the device: a few launches choose for all lists of a layer of a step, by codes
// of rows (sketch.h) or by units of them (ranked.h), and what is chosen stays there, as folds that
// attend() takes. The host learns nothing and is not waited for.
//
// A list is one row of a step in one KV head. Its rows and units lie run after run; each run begins
// at a whole block of kBlockRows of either.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/cuda/attend.h"
#include "kernels/device_choice.h"
#include "kernels/sketch.h"

namespace thermocline::cuda {

constexpr std::uint32_t blocks_of(std::uint32_t rows) {
  return (rows + kBlockRows - 1) / kBlockRows;
}

// And where in the list its rows and units are.
struct ChoiceRun : IndexedRows {
  std::uint32_t first_row = 0, first_unit = 0;
};

// Copies of a list's rows in device memory, in front of rows that lie elsewhere: the caller's, from
// step to step.
inline constexpr std::uint32_t kNoRow = ~std::uint32_t{0};
struct RowSlots {
  std::uint32_t slots = 0;
  std::uint32_t rows = 0;  // that the list may come to have
  // Rows of the list, from the first on, that are the same as in the step before: of others there
  // is no copy. 0: of none, and whatever is in the tables is cleared.
  std::uint32_t kept = 0;
  std::byte* records = nullptr;     // [slots] of ChoiceShape::row_bytes
  std::int32_t* slot_of = nullptr;  // [rows]; -1: none
  std::uint32_t* row_of = nullptr;  // [slots]
  std::uint32_t* used = nullptr;    // [slots]: the last step that asked for it
  std::uint32_t* hand = nullptr;    // [1]: where the search for a slot begins
};

struct ChoiceList {
  std::span<const ChoiceRun> runs;
  std::uint32_t rows = 0, units = 0;  // all runs', each run's in whole blocks
  std::uint32_t budget = 0;           // sealed rows to read: 1 or more
  std::uint32_t coded_budget = 0;     // and to attend at least by their codes, read ones included
  std::uint32_t estimated = 0;        // of units: rows of the next ones, by their summaries
  const float* query = nullptr;       // [heads][key_dim], rotated and scaled
  // [heads]: of sinks and tail, attended already; null: there are none.
  const float* steady_max = nullptr;
  const float* steady_sum = nullptr;
  RowSlots cache;          // none: rows are attended where they lie
  std::uint32_t step = 0;  // of a list with a cache: 1 or more, one more each time
};

// What lists of a layer have in common.
struct ChoiceShape : ChoiceFormat {
  std::uint32_t lists = 0;
  std::uint32_t most_runs = 0;  // of a list
  std::uint32_t most_rows = 0;  // of a list: whole blocks
  std::uint32_t most_units = 0;
  std::uint32_t most_budget = 0;
  std::uint32_t most_coded = 0;  // of a ladder; 0: none attends by codes
  bool cached = false;           // whether every list has a cache
  bool packed = false;           // whose rows are out of reach, and come packed

  bool operator==(const ChoiceShape&) const = default;

  // Whether keys are at low rank, and rebuilt where they are read.
  constexpr bool rebuilds() const { return key_format == RowFormat::lowrank; }

  // Of rows, then of codes, then of summaries, that a list may have: its folds are numbered so,
  // some of them empty.
  constexpr std::uint32_t row_folds() const { return most_runs + most_budget / kFoldRows; }
  constexpr std::uint32_t coded_folds() const {
    return most_coded == 0 ? 0 : most_runs + most_coded / kFoldRows;
  }
  constexpr std::uint32_t summary_folds() const {
    return summary_bytes == 0 ? 0 : most_runs + most_units / kFoldRows;
  }
  constexpr std::uint32_t folds() const { return row_folds() + coded_folds() + summary_folds(); }
  // A block has a view, or two where a fold ends within it; a row of a cache, or whose key is
  // rebuilt, has its own.
  constexpr bool views_by_row() const { return cached || rebuilds(); }
  constexpr std::uint32_t views() const {
    const std::uint32_t of_rows = views_by_row() ? most_budget : blocks_of(most_rows) + row_folds();
    const std::uint32_t of_codes = most_coded == 0 ? 0 : blocks_of(most_rows) + coded_folds();
    const std::uint32_t of_summaries =
        summary_bytes == 0 ? 0 : blocks_of(most_units) + summary_folds();
    return of_rows + of_codes + of_summaries;
  }
};

// Scratch and results in device memory, cut from one piece of bytes(shape); [list] throughout. What
// is of rows' codes is there where rows have some, what is of units where they have none.
struct ChoiceBoard {
  float* query_scale = nullptr;         // [heads]
  std::int32_t* query_sum = nullptr;    // [heads]
  std::uint32_t* query_code = nullptr;  // [heads][key_dim / 4]: four signed bytes each
  float* unit_score = nullptr;          // [heads][most_units]; none: -inf; read first: inf
  float* shift = nullptr;               // [heads]: what weights are taken relative to
  float* beside = nullptr;              // [heads]: the steady rows' weight
  // [heads]: 1 / all weight, as units estimate it; of a vote without the steady rows'
  float* unit_share = nullptr;
  float* rank = nullptr;               // [most_units], of units, as the next two; no unit: -1
  std::uint16_t* unit_rows = nullptr;  // [most_units]
  RowSet* taken = nullptr;             // [most_units / 64]: read
  float* weight = nullptr;             // [heads][most_rows]; no row: -1
  float* part_sum = nullptr;           // [most_rows / 256][heads]
  float* mass = nullptr;               // [most_rows]; no row: -1
  float* loss = nullptr;               // [most_rows] of a ladder, of their codes; no row: -1
  RowSet* sets = nullptr;              // [most_rows / 64]: chosen
  RowSet* coded = nullptr;             // [most_rows / 64]: attended by codes alone
  RowSet* ties = nullptr;              // [most_rows / 64]: scratch
  RowSet* estimated = nullptr;         // [most_units / 64]: of which a summary is read
  std::uint32_t* read = nullptr;       // [1]: how many rows are
  std::uint32_t* summaries = nullptr;  // [1]: and how many summaries
  std::uint32_t* missed = nullptr;     // [most_budget]: of a cached list, the rows that it fetches
  std::uint32_t* fetched = nullptr;    // [1]: how many those are
  // Of keys at low rank, by the rank of the rows that are read, views being in that order too.
  std::uint32_t* rebuilt = nullptr;  // [most_budget]: which rows those are
  float* keys = nullptr;             // [most_budget][key_dim]
  std::uint32_t* of_runs = nullptr;  // [most_runs]: how many of each run
  std::uint16_t* unread = nullptr;   // [most_units], with codes: rows, neither read nor coded
  float* log_weight = nullptr;       // [most_units][heads], of the estimated by rank
  float* unit_coded = nullptr;       // [heads][most_units]: weight of its coded rows
  float* coded_weight = nullptr;     // [most_coded][heads]: their scores, by rank
  BlockView* views = nullptr;        // [shape.views()]
  HeadFold* folds = nullptr;         // [shape.folds()], of all lists one after the other

  static std::size_t bytes(const ChoiceShape& shape);
  static ChoiceBoard cut(const ChoiceShape& shape, std::byte* memory);
};

// unsupported names what these kernels do not take.
Status can_choose(const ChoiceShape& shape);

// Fills the board for `lists`, in memory that the device reaches. Only queues work. Of rows, or
// units, that are worth as much the lower goes first; the same lists give the same bits, whatever
// others there are. Where lists have caches, chosen rows that those lack get places there, as far
// as there is room beside the other chosen ones, and are copied to them, unless they come packed,
// which they then do before they are attended: which copy of a row that is shows in no answer.
Status choose(Stream& stream, const ChoiceShape& shape, std::span<const ChoiceList> lists,
              const ChoiceBoard& board);

}  // namespace thermocline::cuda
