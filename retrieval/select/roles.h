// roles: some KV heads read every row, the others sinks and tail alone.
//
// DuoAttention (arXiv 2410.10819): retrieval heads and streaming heads. There the heads of a model
// are told apart once, by training a gate for each on texts with passkeys, and a share of them is
// taken. Here each text tells: when a prompt is sealed, some of its queries are looked at, and a KV
// head reads everything if one of its query heads gives more than `far` of its attention, on
// average, to rows that are neither sinks nor recent. Only the sealed segment and the sinks are
// looked at, so that of a longer text every segment is measured by its own queries; the first one
// that was decides for the whole timeline. Where none was (a short prompt, rows that a decode has
// sealed, a cut timeline) every head reads everything.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "kernels/cpu/table.h"
#include "retrieval/select/selector.h"
#include "tiers/parameter.h"

namespace thermocline {

// Ranges: RolesSelector::parameters().
struct RolesOptions {
  double far = 0.4;  // a share of attention
};

class RolesSelector final : public Selector {
 public:
  // What a method's file may say of the options.
  static std::span<const Parameter<RolesOptions>> parameters();
  // `cpu` outlives the selector. invalid_argument: an option outside of its range.
  static Result<std::unique_ptr<RolesSelector>> create(const RolesOptions& options,
                                                       const CpuTable& cpu);

  std::string_view name() const override { return "roles"; }
  SelectorFacts facts() const override { return {.watches = Watched::queries}; }
  Result<Formation> form(const Sealing& sealing, const Workers& workers) const override;
  void save(const Formation& formation, RecordWriter* out) const override;
  Result<Formation> load(HeadShape shape, std::uint32_t heads, std::uint32_t rows,
                         RecordReader* in) const override;
  Result<Chosen> choose(const LayerQuery& query, const Workers& workers,
                        std::span<ReadList> out) override;
  std::uint64_t index_bytes(HeadShape, std::uint64_t rows) const override;

 private:
  // What is kept of a segment's head.
  struct Measured {
    std::uint32_t queries = 0;  // that were looked at; 0: nothing is known
    float far = 0;              // of the query head with most: the mean share
  };

  RolesSelector(const RolesOptions& options, const CpuTable& cpu) : options_(options), cpu_(cpu) {}
  Measured measure(const Sealing& sealing, std::uint32_t head) const;
  void add_shares(const Sealing& sealing, std::uint32_t head, std::uint32_t query,
                  std::vector<float>* scores, std::vector<double>* far) const;
  bool reads_everything(const ListQuery& list) const;

  RolesOptions options_;
  const CpuTable& cpu_;
};

}  // namespace thermocline
