// Keys with the structure of real ones, sealed by a selector: what the tests of selectors share.
#pragma once

#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "retrieval/select/selector.h"
#include "tests/support/covered_mass.h"

namespace thermocline {

// Rows of [heads] drawn around `centres` directions each, with a common offset; K beside V.
class SyntheticRows {
 public:
  SyntheticRows(HeadShape shape, std::uint32_t heads, std::uint32_t rows, std::uint32_t centres,
                unsigned seed)
      : shape_(shape), heads_(heads), rows_(rows) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    const std::uint32_t width = shape.key_dim + shape.value_dim;
    data_.resize(std::size_t{heads} * rows * width);
    for (std::uint32_t h = 0; h < heads; ++h) {
      std::vector<float> centre(std::size_t{centres} * width), offset(width);
      for (float& x : centre) x = 2.0f * normal(random);
      for (float& x : offset) x = 3.0f * normal(random);
      for (std::uint32_t r = 0; r < rows; ++r) {
        const float* c = &centre[random() % centres * width];
        f16* to = &data_[(std::size_t{h} * rows + r) * width];
        for (std::uint32_t d = 0; d < width; ++d) to[d] = to_f16(offset[d] + c[d] + normal(random));
      }
    }
  }

  Sealing sealing(std::uint32_t first = 0, std::uint32_t rows = 0) const {
    const std::uint32_t width = 2 * (shape_.key_dim + shape_.value_dim);
    const RowLayout layout{RowFormat::f16, RowFormat::f16, 2 * shape_.key_dim,
                           2 * shape_.value_dim};
    const RawRows all{layout,
                      heads_,
                      0,
                      rows_,
                      reinterpret_cast<const std::byte*>(data_.data()),
                      std::size_t{rows_} * width};
    return {LayerId{0}, shape_, all.part(first, rows == 0 ? rows_ : rows)};
  }
  f16* key(std::uint32_t head, std::uint32_t row) {
    return &data_[(std::size_t{head} * rows_ + row) * (shape_.key_dim + shape_.value_dim)];
  }

 private:
  HeadShape shape_;
  std::uint32_t heads_, rows_;
  std::vector<f16> data_;
};

// Runs as the cache would make them of formations, and their bytes.
class SealedRuns {
 public:
  void add(const Sealing& sealing, const Formation& formation) {
    const RawRows& raw = sealing.rows;
    auto rows = std::make_shared<Segment>();
    rows->layout = raw.layout;
    rows->heads = raw.heads;
    rows->rows = raw.rows;
    rows->id = static_cast<std::uint32_t>(bytes_.size());
    std::vector<std::byte> stored(std::size_t{raw.heads} * raw.rows * raw.layout.bytes());
    for (std::uint32_t h = 0; h < raw.heads; ++h)
      for (std::uint32_t r = 0; r < raw.rows; ++r) {
        const std::size_t at = std::size_t{h} * raw.rows + r;
        const std::uint32_t from = formation.order.empty() ? r : formation.order[at];
        std::memcpy(&stored[at * raw.layout.bytes()], raw.row(h, from), raw.layout.bytes());
      }
    bytes_.push_back(std::move(stored));
    std::shared_ptr<Segment> summaries;
    if (formation.summaries != 0) {
      summaries = std::make_shared<Segment>(*rows);
      summaries->rows = formation.summaries;
      summaries->id = static_cast<std::uint32_t>(bytes_.size());
      summaries->layout = formation.summary_layout;
      bytes_.push_back(formation.summary_rows);
    }
    std::shared_ptr<Segment> codes;
    if (!formation.code_rows.empty()) {
      codes = std::make_shared<Segment>(*rows);
      codes->id = static_cast<std::uint32_t>(bytes_.size());
      codes->layout = formation.code_layout;
      bytes_.push_back(formation.code_rows);
    }
    runs_.push_back({rows, summaries, codes, formation.index});
  }

  const std::vector<Run>& runs() const { return runs_; }
  // The records of one head of a segment.
  const std::byte* records(const Segment& segment, std::uint32_t head) const {
    return &bytes_[segment.id][std::size_t{head} * segment.rows * segment.layout.bytes()];
  }
  std::vector<RunKeys> keys(std::uint32_t head) const {
    std::vector<RunKeys> out;
    for (const Run& run : runs_)
      out.push_back({run.rows->layout, run.rows->rows, records(*run.rows, head)});
    return out;
  }

 private:
  std::vector<Run> runs_;
  std::vector<std::vector<std::byte>> bytes_;
};

}  // namespace thermocline
