#include "retrieval/select/share.h"

namespace thermocline {

std::span<const Parameter<ShareOptions>> SharingSelector::parameters() {
  static constexpr std::string_view kLayers[] = {"each", "share"};
  static constexpr Parameter<ShareOptions> kParameters[] = {
      {"layers", &ShareOptions::layers, 0, 1, kLayers},
      {"choose_in", &ShareOptions::choose_in, 0, 1 << 16, {}, {}, "layers"},
      {"choose_again_in", &ShareOptions::choose_again_in, 0, 1 << 16, {}, {}, "layers"}};
  return kParameters;
}

Result<std::unique_ptr<Selector>> SharingSelector::wrap(std::unique_ptr<Selector> inner,
                                                        const ShareOptions& options) {
  TL_TRY(check(inner->name(), parameters(), options));
  if (options.layers == kLayersEach) return inner;
  if (const RowOrder order = inner->facts().order; order != RowOrder::position)
    return fail(ErrorCode::unsupported, "select.layers = share needs rows in position order, and ",
                "select.by = ", inner->name(), " stores them in its ", name_of(order));
  if (options.choose_again_in != 0 && options.choose_again_in <= options.choose_in)
    return fail(ErrorCode::invalid_argument, "select.choose_again_in = ", options.choose_again_in,
                " is not after select.choose_in = ", options.choose_in,
                ": name a later layer, or 0 for none");
  return std::unique_ptr<Selector>(new SharingSelector(std::move(inner), options));
}

std::vector<NamedLayer> SharingSelector::named_layers() const {
  std::vector<NamedLayer> named = {{"choose_in", LayerId{options_.choose_in}}};
  if (options_.choose_again_in > 0)
    named.push_back({"choose_again_in", LayerId{options_.choose_again_in}});
  return named;
}

bool SharingSelector::chooses_in(LayerId layer) const {
  return index(layer) == options_.choose_in ||
         (options_.choose_again_in > 0 && index(layer) == options_.choose_again_in);
}

Result<Chosen> SharingSelector::choose_list(const LayerQuery& query, const Workers& workers,
                                            ReadList* out) {
  const ListQuery& list = query.lists[0];
  if (list.shared && chooses_in(query.layer)) {
    TL_TRY_ASSIGN(const Chosen chosen, ask(query, workers, &list.shared->list));
    // An estimate's scores are of this layer's query.
    list.shared->made = list.shared->list.log_weight.empty();
    out->take_all(list.runs.size());
    return chosen;
  }
  if (list.shared && list.shared->made) {
    *out = list.shared->list;
    return Chosen{};
  }
  return ask(query, workers, out);
}

}  // namespace thermocline
