// Decode over rows at home on a device, which attends them where they lie, in one launch a layer,
// while the host attends what lies elsewhere. Which folds those are is planned with the cache: it
// depends on a layer's home, never on what a step found where.
#include <algorithm>

#include "runtime/kv_impl.h"

namespace thermocline {

Status KvCache::Impl::open_device_attention() {
  const std::uint64_t bytes = plan.device_work_bytes;
  if (bytes == 0) return {};
  TL_TRY_ASSIGN(device_memory, budget->reserve(Tier::device, Purpose::staging, bytes));
  TL_TRY_ASSIGN(pinned_memory, budget->reserve(Tier::host, Purpose::staging, bytes));
  TL_TRY_ASSIGN(device_attention, table->device()->open_attention(bytes));
  return {};
}

Result<std::size_t> KvCache::Impl::begin_on_device(LayerId l) {
  device_folds.clear();
  device_partial.clear();
  const HeadShape heads = shape(l);
  for (const ReadyFold& ready : reader->on_device()) {
    device_folds.push_back({ready.fold, list_queries[ready.list].query});
    device_partial.push_back((first_partial[ready.list] + ready.ordinal) * heads.heads);
  }
  if (device_folds.empty()) return 0;
  return device_attention->begin(heads, device_folds);
}

// A step of more rows than there are timelines, which none was planned for, takes several launches.
Status KvCache::Impl::finish_on_device(LayerId l, std::size_t begun) {
  const HeadShape heads = shape(l);
  for (std::size_t first = 0; first < device_folds.size();) {
    TL_TRY_ASSIGN(const DeviceAttention::States states, device_attention->finish());
    workers->parallel(begun, 16, [&](std::size_t from, std::size_t to) {
      for (std::size_t f = from; f < to; ++f)
        for (std::uint32_t h = 0; h < heads.heads; ++h) {
          const std::size_t at = f * heads.heads + h;
          AttnState& state = partials[device_partial[first + f] + h];
          state.max = states.max[at];
          state.sum = states.sum[at];
          std::copy_n(states.acc + at * heads.value_dim, heads.value_dim, state.acc);
        }
    });
    first += begun;
    if (first == device_folds.size()) break;
    TL_TRY_ASSIGN(begun, device_attention->begin(heads, std::span(device_folds).subspan(first)));
  }
  return {};
}

}  // namespace thermocline
