// Keeps the rows that were attended most, and drops the others for good.
//
//   snapkv  SnapKV (arXiv 2404.14469, section 4): the prompt's last queries vote, each with its
//           attention; votes are pooled over neighbouring positions, so that what surrounds a row
//           of interest stays with it. What is written after the prompt stays.
//   h2o     H2O (arXiv 2306.14048, section 4): the sum of all attention that a row got; of each
//           query of a step, and of a prompt's of every 16th, or fewer where it is long
//           (runtime/query_sample.h), each for those that it stands for. There every step drops a
//           row, whichever has least then; here rows are judged once, among those that leave the
//           tail with them, by what they got until then. What was sealed is not judged again.
//
// In both one choice serves the query heads of a KV head, whose votes are added. A vote of a step
// is a share of all that its query attended; of a prompt it is one of sinks, tail and new rows, and
// not of what earlier calls have sealed. A longer text is sealed in several segments, each with its
// part of the budget.
#pragma once

#include <memory>
#include <span>

#include "kernels/base/error.h"
#include "kernels/cpu/table.h"
#include "tiers/parameter.h"
#include "tiers/retain/retainer.h"

namespace thermocline {

// Ranges: VotedRetainer::snapkv_parameters() and h2o_parameters().
struct VotedOptions {
  double share = 0.1;            // of the rows that leave are kept
  std::uint32_t rows = 0;        // of a prompt's so many are kept instead; 0: `share`
  std::uint32_t window = 32;     // of the prompt's last queries; snapkv
  std::uint32_t pool = 7;        // positions, with the row in their middle; snapkv
  std::uint32_t by_largest = 0;  // of pooled votes the mean counts (0), or the largest
};

class VotedRetainer final : public Retainer {
 public:
  // What a method's file may say of the options.
  static std::span<const Parameter<VotedOptions>> snapkv_parameters();
  static std::span<const Parameter<VotedOptions>> h2o_parameters();
  // `cpu` outlives the retainer. invalid_argument: an option outside of its range, or a pool
  // without a middle.
  static Result<std::unique_ptr<VotedRetainer>> snapkv(const VotedOptions& options,
                                                       const CpuTable& cpu);
  static Result<std::unique_ptr<VotedRetainer>> h2o(const VotedOptions& options,
                                                    const CpuTable& cpu);

  std::string_view name() const override { return voters_ == Voters::last ? "snapkv" : "h2o"; }
  bool keeps() const override { return true; }
  Voters voters() const override { return voters_; }
  std::uint32_t last() const override { return voters_ == Voters::last ? options_.window : 0; }
  void vote(const Ballot& ballot, float* votes) const override;
  std::uint32_t kept(std::uint32_t rows, std::uint32_t leave) const override;
  std::uint32_t kept_of_steps(std::uint32_t rows) const override;

 private:
  VotedRetainer(Voters voters, const VotedOptions& options, const CpuTable& cpu)
      : voters_(voters), options_(options), cpu_(cpu) {}
  void add_attention(const Ballot& ballot, std::uint32_t query, float* votes) const;
  void add_pooled(std::span<const float> given, float* votes) const;

  Voters voters_;
  VotedOptions options_;
  const CpuTable& cpu_;
};

}  // namespace thermocline
