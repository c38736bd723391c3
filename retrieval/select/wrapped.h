// A selector around another: it forms as that one does, and says when that one is asked to choose.
#pragma once

#include <memory>
#include <utility>

#include "retrieval/select/selector.h"

namespace thermocline {

class WrappedSelector : public Selector {
 public:
  std::string_view name() const override { return inner_->name(); }
  SelectorFacts facts() const override { return inner_->facts(); }
  std::string fingerprint() const override { return inner_->fingerprint(); }
  std::vector<NamedLayer> named_layers() const override { return inner_->named_layers(); }
  Result<Formation> form(const Sealing& sealing, const Workers& workers) const override {
    return inner_->form(sealing, workers);
  }
  void save(const Formation& formation, RecordWriter* out) const override {
    inner_->save(formation, out);
  }
  Result<Formation> load(HeadShape shape, std::uint32_t heads, std::uint32_t rows,
                         RecordReader* in) const override {
    return inner_->load(shape, heads, rows, in);
  }
  std::uint64_t index_bytes(HeadShape shape, std::uint64_t rows) const override {
    return inner_->index_bytes(shape, rows);
  }
  std::uint64_t summary_bytes(HeadShape shape, std::uint64_t rows) const override {
    return inner_->summary_bytes(shape, rows);
  }
  std::uint64_t code_bytes(HeadShape shape, std::uint64_t rows) const override {
    return inner_->code_bytes(shape, rows);
  }
  std::uint64_t always_rows(std::uint64_t rows) const override { return inner_->always_rows(rows); }
  Result<Chosen> choose(const LayerQuery& query, const Workers& workers,
                        std::span<ReadList> out) override {
    TL_CHECK(query.lists.size() == out.size());
    Chosen all;
    for (std::size_t l = 0; l < out.size(); ++l) {
      TL_TRY_ASSIGN(
          const Chosen one,
          choose_list({query.layer, query.shape, query.lists.subspan(l, 1)}, workers, &out[l]));
      all.index_bytes += one.index_bytes;
    }
    return all;
  }

 protected:
  explicit WrappedSelector(std::unique_ptr<Selector> inner) : inner_(std::move(inner)) {}
  // For a query of one list.
  virtual Result<Chosen> choose_list(const LayerQuery& query, const Workers& workers,
                                     ReadList* out) = 0;
  // What the selector inside chooses.
  Result<Chosen> ask(const LayerQuery& query, const Workers& workers, ReadList* out) {
    return inner_->choose(query, workers, {out, 1});
  }

 private:
  std::unique_ptr<Selector> inner_;
};

}  // namespace thermocline
