// A key index finds the rows of sealed segments whose keys a query likes best. It sees K, V and, of
// a prefill, some queries once, when a segment is formed; in a step it sees queries and what it
// kept.
//
// It cuts the stored rows of a head into units, ranges of neighbouring rows that are scored as one:
// single rows, blocks, clusters. The scores are what the ranking selector
// (retrieval/select/ranked.h) makes a selection of, so an index is its file and a line of the shelf
// (runtime/method.cpp). `flat`, which looks at every key, is the oracle of all others.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "kernels/device_choice.h"
#include "retrieval/select/selector.h"

namespace thermocline {

// The query heads of one KV head, and the segments that are asked: those that formed() knows.
struct KeyQuery {
  std::uint32_t head = 0;        // KV head
  HeadShape shape;               // heads: query heads
  const float* query = nullptr;  // [heads][key_dim], rotated and scaled
  std::span<const SegmentIndex* const> segments;
  std::uint32_t wanted_rows = 0;  // how many rows of all segments are to be found
};

// What a search works with, a thread's own: it grows and stays. An index that needs more than this
// has one of its own (KeyIndex::scratch).
struct KeyScratch {
  virtual ~KeyScratch() = default;
  std::vector<float> queries, floats;
  std::vector<std::uint32_t> ids;
};

// unsupported: keys that kernels which take sixteen channels at a time cannot score.
inline Status check_channels(std::string_view index, HeadShape shape) {
  if (shape.key_dim == 0 || shape.key_dim % 16 != 0)
    return fail(ErrorCode::unsupported, index, ": heads of ", shape.key_dim,
                " key channels: only multiples of 16 can be scored; select by another method");
  return {};
}

class KeyIndex {
 public:
  virtual ~KeyIndex() = default;
  virtual std::string_view name() const = 0;
  virtual SelectorFacts facts() const = 0;

  // As Selector's functions of these names.
  virtual Result<Formation> form(const Sealing& sealing, const Workers& workers) const = 0;
  virtual void save(const Formation& formation, RecordWriter* out) const = 0;
  virtual Result<Formation> load(HeadShape shape, std::uint32_t heads, std::uint32_t rows,
                                 RecordReader* in) const = 0;
  virtual std::uint64_t index_bytes(HeadShape shape, std::uint64_t rows) const = 0;
  virtual std::uint64_t summary_bytes(HeadShape, std::uint64_t /*rows*/) const { return 0; }
  virtual std::uint64_t always_rows(std::uint64_t /*rows*/) const { return 0; }

  // Whether score() scores every unit, so that shares of all attention can be told from it.
  virtual bool scores_all() const { return true; }
  // What score() is handed.
  virtual std::unique_ptr<KeyScratch> scratch() const { return std::make_unique<KeyScratch>(); }

  // Whether an index like this one made what is kept of a segment, so that it can be asked.
  virtual bool formed(const SegmentIndex& segment) const = 0;
  // Unit u of a head is its stored rows [first_row(u), first_row(u + 1)), maybe none;
  // first_row(units) is the number of rows. An index with summaries has one for each unit.
  virtual std::uint32_t units(const SegmentIndex& segment, std::uint32_t head) const = 0;
  virtual std::uint32_t first_row(const SegmentIndex& segment, std::uint32_t head,
                                  std::uint32_t unit) const = 0;

  // How a device scores its units, in one of the ways that it knows, and of a segment of so many
  // rows how many there are at most; none: it cannot.
  virtual std::optional<UnitFormat> unit_format() const { return std::nullopt; }
  virtual std::uint32_t most_units(std::uint32_t /*rows*/) const { return 0; }
  // Then, of what form() made, which is one piece of memory (SegmentIndex::whole): as DeviceRule's
  // function of this name; and what summaries are.
  virtual IndexedRows indexed(HeadShape, const SegmentIndex&, std::uint32_t /*head*/) const {
    return {};
  }
  virtual RowLayout summary_layout(HeadShape) const { return {}; }

  // score[h * stride + u], u counting the units of all segments one after the other: what a key of
  // the unit may score with query head h, to be compared with exact scores; -inf, or not a number:
  // the unit was not looked at; inf: it is to be read whatever others score. The same whatever else
  // is asked at the time. Returns the bytes that were looked at. Any thread, with scratch of its
  // own; allocates nothing once that has grown.
  virtual std::uint64_t score(const KeyQuery& query, KeyScratch* scratch, float* score,
                              std::size_t stride) const = 0;
};

}  // namespace thermocline
