// Reuse of a selection from step to step: it is read again for as long as the queries stay near
// those that it was made for; then another one is made.
//
// TokenSelect (arXiv 2411.02886, its selection cache) and LouisKV (arXiv 2510.11292, retrieval at
// semantic boundaries) are this with a threshold of their own. Both compare the queries of a whole
// layer; here a KV head decides for itself, by the cosine of the angle between its group's queries
// then and now, as one vector of [heads][key_dim]. The queries are rotated for their positions, so
// they drift apart a little with every step even where nothing else changes.
//
// What is kept belongs to the timeline, and a step that is given up leaves it alone. A step may
// have several rows of one timeline: each compares with what the step before left, so none waits
// for another, and the last one's is left for the next step. Rows that leave the tail end a
// selection, since they would be read no more: a new one is made. So does cutting the timeline. A
// fork goes on with a copy. A session's file does not hold what is kept.
//
// Estimates cannot be read again, as their scores are of one query: a list that has some is not
// kept.
#pragma once

#include <memory>
#include <span>

#include "retrieval/select/wrapped.h"
#include "tiers/parameter.h"

namespace thermocline {

inline constexpr std::uint32_t kReuseNever = 0, kReuseSimilar = 1;

// Ranges: ReusingSelector::parameters().
struct ReuseOptions {
  std::uint32_t reuse = kReuseNever;
  double similarity = 0.9;  // the least cosine of the angle to the queries of what is read again
};

class ReusingSelector final : public WrappedSelector {
 public:
  // What a method's file may say of the options.
  static std::span<const Parameter<ReuseOptions>> parameters();
  // `inner` itself, where nothing is to be reused. invalid_argument: an option outside of its
  // range.
  static Result<std::unique_ptr<Selector>> wrap(std::unique_ptr<Selector> inner,
                                                const ReuseOptions& options);

  SelectorFacts facts() const override {
    SelectorFacts facts = WrappedSelector::facts();
    facts.remembers = true;
    return facts;
  }

 private:
  ReusingSelector(std::unique_ptr<Selector> inner, const ReuseOptions& options)
      : WrappedSelector(std::move(inner)), options_(options) {}
  Result<Chosen> choose_list(const LayerQuery& query, const Workers& workers,
                             ReadList* out) override;

  ReuseOptions options_;
};

}  // namespace thermocline
