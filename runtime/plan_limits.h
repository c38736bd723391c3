// What a plan may come to: what tiers, machine and engine have, and what no memory would be enough
// for; and how to need less, which every refusal says.
#pragma once

#include <cstdint>

#include "kernels/base/error.h"
#include "runtime/cache_plan.h"
#include "runtime/kv_cache.h"
#include "runtime/method.h"
#include "tiers/budget.h"
#include "tiers/store/stores.h"

namespace thermocline {

// invalid_argument: rows are numbered in 32 bits, and these are too many.
Status check_rows(const CacheOptions& options, const Method& method);
// invalid_argument: it goes back, or beyond the cache.
Status check_course(const CacheOptions& options);

// Of a ledger, if there is one, what is free in a tier.
std::uint64_t free_bytes(const Budget* whole, Tier tier);

// What each tier may hold, but for host memory that is not asked for.
Result<StoreOptions> stores_for(const TierOptions& tiers, const SessionOptions& session,
                                const Budget* whole);

// Of the machine's memory, beside a cache in it.
std::uint64_t beside_of(const CacheOptions& options, const CachePlan& plan);

// How to need less: of a text that is there no context says how long it is.
const char* fewer_positions(const CacheOptions& options);

// A budget may be larger than the machine; what is planned may not.
Status check_machine(const CacheOptions& options, const CachePlan& plan,
                     std::uint64_t available_bytes);

// The caches of an engine share what it gives them: none may need more than others have left.
Status check_whole(const CacheOptions& options, const CachePlan& plan, const Budget* whole);

}  // namespace thermocline
