// Layers that share a selection: a few layers choose, and those between read the same positions.
//
// TidalDecode (arXiv 2410.05076, section 3): the first layers attend everything; so does a layer
// that chooses, and the rows that it liked best are what the layers after it read, up to the next
// one that chooses. There scores are those of its attention; here they are what the selector inside
// makes of its index, which `flat` has exact.
//
// A row of one layer has to be the same position in another, so rows lie in position order. KV head
// h reads what KV head h of the layer that chose did. A layer with another number of KV heads
// chooses for itself, and so do the layers after it; as does a layer before which none has chosen,
// where the layer that is named has a sliding window.
#pragma once

#include <memory>
#include <span>

#include "retrieval/select/wrapped.h"
#include "tiers/parameter.h"

namespace thermocline {

inline constexpr std::uint32_t kLayersEach = 0, kLayersShare = 1;

// Ranges: SharingSelector::parameters().
struct ShareOptions {
  std::uint32_t layers = kLayersEach;  // each chooses; or those after these layers share:
  std::uint32_t choose_in = 2;
  std::uint32_t choose_again_in = 13;  // 0: not again
};

class SharingSelector final : public WrappedSelector {
 public:
  // What a method's file may say of the options.
  static std::span<const Parameter<ShareOptions>> parameters();
  // `inner` itself, where each layer chooses. invalid_argument: an option outside of its range, or
  // a second layer that is not after the first.
  // unsupported: rows that lie in an order of the selector's own.
  static Result<std::unique_ptr<Selector>> wrap(std::unique_ptr<Selector> inner,
                                                const ShareOptions& options);

  std::vector<NamedLayer> named_layers() const override;

  SelectorFacts facts() const override {
    SelectorFacts facts = WrappedSelector::facts();
    facts.shares = true;
    return facts;
  }

 private:
  SharingSelector(std::unique_ptr<Selector> inner, const ShareOptions& options)
      : WrappedSelector(std::move(inner)), options_(options) {}
  bool chooses_in(LayerId layer) const;
  Result<Chosen> choose_list(const LayerQuery& query, const Workers& workers,
                             ReadList* out) override;

  ShareOptions options_;
};

}  // namespace thermocline
