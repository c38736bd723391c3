#include "retrieval/select/reuse.h"

#include <cmath>

namespace thermocline {
namespace {

// In double, in the order of the channels: the same on every machine.
double cosine(std::span<const float> a, const float* b) {
  double dot = 0, of_a = 0, of_b = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    dot += double{a[i]} * b[i];
    of_a += double{a[i]} * a[i];
    of_b += double{b[i]} * b[i];
  }
  const double lengths = std::sqrt(of_a) * std::sqrt(of_b);
  return lengths > 0 ? dot / lengths : 0.0;
}

}  // namespace

std::span<const Parameter<ReuseOptions>> ReusingSelector::parameters() {
  static constexpr std::string_view kReuses[] = {"never", "similar"};
  static constexpr Parameter<ReuseOptions> kParameters[] = {
      {"reuse", &ReuseOptions::reuse, 0, 1, kReuses},
      {"similarity", &ReuseOptions::similarity, -1, 1, {}, {}, "reuse"}};
  return kParameters;
}

Result<std::unique_ptr<Selector>> ReusingSelector::wrap(std::unique_ptr<Selector> inner,
                                                        const ReuseOptions& options) {
  TL_TRY(check(inner->name(), parameters(), options));
  if (options.reuse == kReuseNever) return inner;
  return std::unique_ptr<Selector>(new ReusingSelector(std::move(inner), options));
}

Result<Chosen> ReusingSelector::choose_list(const LayerQuery& query, const Workers& workers,
                                            ReadList* out) {
  const ListQuery& list = query.lists[0];
  if (list.kept && cosine(list.kept->query, list.query) >= options_.similarity) {
    *out = list.kept->list;
    return Chosen{};
  }
  TL_TRY_ASSIGN(const Chosen chosen, ask(query, workers, out));
  if (list.keep && out->log_weight.empty()) {
    list.keep->list = *out;
    list.keep->query.assign(list.query,
                            list.query + std::size_t{query.shape.heads} * query.shape.key_dim);
    list.keep->made = true;
  }
  return chosen;
}

}  // namespace thermocline
