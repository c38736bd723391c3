#include "tiers/store/store.h"

namespace thermocline {

Result<Slot> Slot::take(Store* store, Budget* budget, Purpose purpose, std::uint64_t bytes) {
  Slot slot;
  TL_TRY_ASSIGN(slot.held_, budget->reserve(store->facts().tier, purpose, bytes));
  TL_TRY_ASSIGN(slot.space_, store->take(bytes));
  slot.store_ = store;
  return slot;
}

}  // namespace thermocline
