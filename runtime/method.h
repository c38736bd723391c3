// Four choices by name: what a file of configs/methods/ says, made into the objects of the rooms.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "kernels/base/error.h"
#include "kernels/cpu/table.h"
#include "retrieval/select/selector.h"
#include "tiers/codec/codec.h"
#include "tiers/place/placer.h"
#include "tiers/retain/retainer.h"

namespace thermocline {

inline constexpr std::uint32_t kRunNear = 0, kRunFetch = 1;
inline constexpr std::uint32_t kBalanceNo = 0, kBalanceQueries = 1;

struct Method {
  std::string name, summary;
  std::string choices;  // what was given for it, in one order: the same for the same method
  RowCodec compress;
  std::unique_ptr<Retainer> retain;
  std::unique_ptr<Selector> select;
  std::unique_ptr<Placer> place;
  // Whether keys are kept times how large queries are in each channel (runtime/key_balance.h).
  std::uint32_t balance = kBalanceNo;
  // Always read, always raw: the first `sink` positions and at least the last `recent` ones. Rows
  // leave the tail for segments `seal` at a time, rounded up to whole blocks.
  std::uint32_t sink = 4, recent = 32, seal = 512;
  // What steps seal is short: so many of those become one (runtime/joint.h); 0 or 1: none do.
  std::uint32_t join = 16;
  // Who attends sealed rows in a decode step, where there is a device (a GPU): kRunNear, it those
  // that are at home in its memory and the host all others; kRunFetch, it all of them, and those
  // that are at home elsewhere are copied there, as many as the step reads. Without a device there
  // is the host alone, and both are the same.
  std::uint32_t run = kRunNear;

  // Whether some rows are neither raw nor sealed: it depends on what attended them.
  bool drops() const { return retain->voters() != Voters::none; }
  // Whether steps drop some, too, and so have to count what attends the rows of a tail.
  bool drops_in_steps() const { return retain->voters() == Voters::all; }
  // The side whose rows are fitted in several layers together. There is one at most, since the
  // other's have bytes of their own.
  std::optional<Side> side_of_layers() const {
    for (const Side side : kSides)
      if (const Fitter* const fitter = compress.of(side).fitter(); fitter && fitter->layers() > 1)
        return side;
    return std::nullopt;
  }
  // Whether its codec of keys goes by what a prefill's queries ask of them.
  bool fits_by_queries() const {
    const Fitter* const of_keys = compress.of(Side::keys).fitter();
    return of_keys && of_keys->asks_for_queries();
  }
  // What it must see of attention while a text is read: rows that another has read are not enough.
  // As a line of text; empty: nothing.
  std::string watches() const;
  bool fetches() const { return run == kRunFetch; }
  bool balances() const { return balance == kBalanceQueries; }
  // Rows leave the tail on this grid of positions, which begins after the sinks.
  std::uint32_t seal_rows() const { return (seal + kBlockRows - 1) / kBlockRows * kBlockRows; }
  // And no segment crosses a line of this one.
  std::uint32_t cell_rows() const { return kSegmentRows / seal_rows() * seal_rows(); }
  // Short segments are formed into one once they fill a cell of so many rows.
  std::uint32_t joint_rows() const {
    return std::min(std::max(join, 1u) * seal_rows(), cell_rows());
  }
  // Where the one that holds a row ends, both in rows from the sinks on.
  std::uint32_t joint_line(std::uint32_t row) const {
    const std::uint32_t in_cell = row % cell_rows();
    const std::uint32_t end = (in_cell / joint_rows() + 1) * joint_rows();
    return row - in_cell + std::min(end, cell_rows());
  }
  // Only where a selector has to visit each segment, or each has a few rows left, and those come
  // back as they were: what a prompt alone can tell of them is not there any more, and codes of
  // codes lose once more.
  bool joins() const {
    return join > 1 && (!select->facts().everything || drops_in_steps()) &&
           select->facts().watches == Watched::nothing && compress.keys->exact() &&
           compress.values->exact();
  }
  // Where the tail of a timeline of `length` positions begins.
  std::uint32_t tail_begin(std::uint32_t length) const {
    if (length < sink + recent) return sink;
    return sink + (length - sink - recent) / seal_rows() * seal_rows();
  }
};

// `name_or_path`: a file, or the name of one in `directory` (empty: find_method_directory()).
// `overrides`: "select.share=0.05", over the file's values. An unknown name, parameter or value is
// an error that lists the known ones; a combination that cannot hold is refused by name, and any
// other works.
Result<Method> load_method(const std::string& name_or_path, const std::string& directory,
                           std::span<const std::string> overrides, const CpuTable& cpu);

// What a method is asked, as its file names it ("keys.compress"), and every choice that there is:
// for tests, which walk all combinations.
struct MethodQuestion {
  std::string key;
  std::vector<std::string> choices;
};
std::vector<MethodQuestion> method_questions();

// Where the methods are: the source tree of this build, or the installed one.
std::string find_method_directory();
// Names of the methods in a directory, sorted.
std::vector<std::string> method_names(const std::string& directory);

}  // namespace thermocline
