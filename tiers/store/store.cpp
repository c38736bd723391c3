#include "tiers/store/store.h"

#include "tiers/store/keeper.h"

namespace thermocline {

Result<Slot> Slot::take(Store* store, Budget* budget, Purpose purpose, std::uint64_t bytes) {
  Slot slot;
  TL_TRY_ASSIGN(slot.held_, budget->reserve(store->facts().tier, purpose, bytes));
  TL_TRY_ASSIGN(slot.space_, store->take(bytes));
  slot.store_ = store;
  return slot;
}

Result<Slot> Slot::claim(Store* store, Budget* budget, Purpose purpose, const Extent& extent,
                         Reservation* kept) {
  TL_CHECK(store->keeper() != nullptr);
  Slot slot;
  TL_TRY_ASSIGN(slot.space_, store->keeper()->claim(extent));
  slot.store_ = store;
  TL_TRY(kept->resize(kept->bytes() - extent.bytes));
  TL_TRY_ASSIGN(slot.held_, budget->reserve(store->facts().tier, purpose, extent.bytes));
  return slot;
}

}  // namespace thermocline
