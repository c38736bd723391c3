// Indexes that leave rows in position order and keep something of each block of neighbouring rows,
// or of each row: the blocks are the units. What they keep, and how it scores, is a BlockCode; all
// the rest of an index is the same for them and is here.
#pragma once

#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "retrieval/index/key_index.h"

namespace thermocline {

// One KV head of one segment, as a code sees it in a step.
struct BlockQuery {
  HeadShape shape;               // heads: query heads
  const float* query = nullptr;  // [heads][key_dim], rotated and scaled
  const std::byte* kept = nullptr;
  std::uint32_t rows = 0;
  std::uint32_t wanted_rows = 0;  // of these: their share of KeyQuery's, rounded up
};

// What is kept of the rows of one KV head, a record of bytes, and what it scores. Immutable: any
// thread may use it.
class BlockCode {
 public:
  virtual ~BlockCode() = default;
  // Of the index, and of the selector: what a method's file calls it.
  virtual std::string_view name() const = 0;
  virtual std::uint32_t block() const = 0;  // rows a unit; the last one of a segment may have fewer
  virtual bool keeps_keys() const { return false; }  // whether a record is every key as it is
  virtual bool scores_all() const { return true; }   // as KeyIndex's
  // Of the record. No more than its blocks of kBlockRows would take each alone, all together.
  virtual std::uint64_t bytes(HeadShape shape, std::uint32_t rows) const = 0;
  // Writes the record, which is zeroed.
  virtual void keep(const Sealing& sealing, std::uint32_t head, std::byte* kept) const = 0;
  // Of what keep() wrote: the rows that score() has every step read, ascending; and of so many rows
  // how many those are at most, by the law of bytes().
  virtual std::vector<std::uint32_t> always(HeadShape, std::uint32_t /*rows*/,
                                            const std::byte* /*kept*/) const {
    return {};
  }
  virtual std::uint64_t always_rows(std::uint64_t /*rows*/) const { return 0; }
  // Why a record cannot be one that keep() wrote, where reading it would reach outside of it; null:
  // it is safe to read.
  virtual const char* flaw(HeadShape, std::uint32_t /*rows*/, const std::byte* /*kept*/) const {
    return nullptr;
  }
  // As KeyIndex's: how a device scores a unit, but for its rows; and where in a record it finds
  // what by: unit_keys, unit_key_bytes and always.
  virtual std::optional<UnitFormat> unit_format() const { return std::nullopt; }
  virtual void locate(HeadShape, std::uint32_t /*rows*/, const std::byte* /*kept*/,
                      IndexedRows* /*out*/) const {}
  // score[h * stride + u] of each unit u of the segment; KeyIndex::score() says what they mean.
  // Returns the bytes of the record that were looked at.
  virtual std::uint64_t score(const BlockQuery& query, KeyScratch* scratch, float* score,
                              std::size_t stride) const = 0;

  std::uint32_t units(std::uint32_t rows) const { return (rows + block() - 1) / block(); }
};

class BlockIndex final : public KeyIndex {
 public:
  explicit BlockIndex(std::unique_ptr<BlockCode> code) : code_(std::move(code)) {}

  std::string_view name() const override { return code_->name(); }
  SelectorFacts facts() const override { return {.keys_in_memory = code_->keeps_keys()}; }
  // unsupported: key channels that are no multiple of 16.
  Result<Formation> form(const Sealing& sealing, const Workers& workers) const override;
  void save(const Formation& formation, RecordWriter* out) const override;
  Result<Formation> load(HeadShape shape, std::uint32_t heads, std::uint32_t rows,
                         RecordReader* in) const override;
  std::uint64_t index_bytes(HeadShape shape, std::uint64_t rows) const override;
  std::uint64_t always_rows(std::uint64_t rows) const override { return code_->always_rows(rows); }
  bool scores_all() const override { return code_->scores_all(); }
  std::optional<UnitFormat> unit_format() const override;
  std::uint32_t most_units(std::uint32_t rows) const override { return code_->units(rows); }
  IndexedRows indexed(HeadShape shape, const SegmentIndex& index,
                      std::uint32_t head) const override;
  bool formed(const SegmentIndex& segment) const override;
  std::uint32_t units(const SegmentIndex& segment, std::uint32_t head) const override;
  std::uint32_t first_row(const SegmentIndex& segment, std::uint32_t head,
                          std::uint32_t unit) const override;
  std::uint64_t score(const KeyQuery& query, KeyScratch* scratch, float* score,
                      std::size_t stride) const override;

 private:
  std::uint64_t head_bytes(HeadShape shape, std::uint32_t rows) const;

  std::unique_ptr<BlockCode> code_;
};

}  // namespace thermocline
