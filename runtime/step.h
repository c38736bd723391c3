// A decode step: the main path. Prefill (prefill.h) walks the same calls over long spans.
#pragma once

#include <span>
#include <utility>

#include "kernels/base/error.h"
#include "kernels/base/ids.h"
#include "kernels/base/view.h"
#include "runtime/kv_cache.h"
#include "runtime/model/layer.h"

namespace thermocline {

// Rows on their way through the layers, with what attention takes and gives. Allocated once for
// `rows` rows; the views are of that many.
class RowState {
 public:
  static Result<RowState> create(const ModelSpec& model, std::size_t rows);
  static std::uint64_t bytes_for(const ModelSpec& model, std::size_t rows);
  std::uint64_t bytes() const { return memory_.size(); }

  std::size_t capacity() const { return hidden_.rows(); }
  MatView<float> hidden(std::size_t rows) const { return hidden_.rows_from(0, rows); }
  Projection projection(const LayerSpec& layer, std::size_t rows) const;
  MatView<float> mixed(const LayerSpec& layer, std::size_t rows) const;

 private:
  Buffer memory_;
  MatView<float> hidden_, q_, k_, v_, mixed_;
};

// The rows begun in a cache: taken back when destroyed without commit().
class PendingRows {
 public:
  static Result<PendingRows> begin(KvCache* cache, std::span<const Token> rows, Pass pass);
  PendingRows(PendingRows&& other) noexcept : cache_(std::exchange(other.cache_, nullptr)) {}
  PendingRows& operator=(PendingRows&&) = delete;
  ~PendingRows();
  Status commit();

 private:
  explicit PendingRows(KvCache* cache) : cache_(cache) {}
  KvCache* cache_;
};

// corrupt: a logit is not a finite number, which only broken weights give.
Status check_logits(MatView<const float> logits);

// One token for each row, at most kMaxStepRows; logits [rows][vocabulary]. On an error every
// timeline is as it was.
Status step(const Model& model, KvCache& cache, std::span<const Token> at,
            std::span<const int> tokens, const RowState& rows, LayerScratch* scratch,
            MatView<float> logits);

}  // namespace thermocline
