// Decode by a device of what the host chose. Of rows at home there it attends that in one launch a
// layer, while the host attends what lies elsewhere. And, where a method has it fetch, of rows at
// home elsewhere: those it is sent in launches that take turns: one's rows are gathered while
// another's are attended. Who does what is planned with the cache: it depends on the method and on
// a layer's home, never on what a step found where. Where a device chooses itself: kv_chosen.cpp.
#include <algorithm>

#include "runtime/kv_impl.h"

namespace thermocline {

Status KvCache::Impl::open_device_attention() {
  if (plan.device_staging_bytes() == 0) return {};
  TL_TRY_ASSIGN(device_memory,
                budget->reserve(Tier::device, Purpose::staging, plan.device_staging_bytes()));
  TL_TRY_ASSIGN(pinned_memory, budget->reserve(Tier::host, Purpose::staging, plan.pinned_bytes()));
  if (plan.choice.device > 0) {
    TL_TRY_ASSIGN(device_choice, table->device()->open_choice(plan.choice));
  }
  if (plan.step_there.device > 0) {
    TL_TRY_ASSIGN(device_step, table->device()->open_step(plan.step_bounds));
  }
  if (plan.prefill.device > 0) {
    TL_TRY_ASSIGN(device_prefill, table->device()->open_prefill(plan.prefill));
  }
  if (plan.device_work_bytes > 0) {
    TL_TRY_ASSIGN(device_attention, table->device()->open_attention(plan.device_work_bytes, 0));
  }
  for (std::uint64_t i = 0; plan.fetch.folds > 0 && i < CachePlan::kFetchLaunches; ++i) {
    TL_TRY_ASSIGN(FetchLaunch launch, FetchLaunch::open(table->device(), plan.fetch));
    fetch_launches.push_back(std::move(launch));
  }
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
  return device_attention->begin(heads, device_folds, 0);
}

// A step of more rows than there are timelines, which none was planned for, takes several launches.
Status KvCache::Impl::finish_on_device(LayerId l, std::size_t begun) {
  const HeadShape heads = shape(l);
  for (std::size_t first = 0; first < device_folds.size();) {
    TL_TRY_ASSIGN(const DeviceAttention::States states, device_attention->finish());
    take_states(l, states, std::span(device_partial).subspan(first, begun));
    first += begun;
    if (first == device_folds.size()) break;
    TL_TRY_ASSIGN(begun, device_attention->begin(heads, std::span(device_folds).subspan(first), 0));
  }
  return {};
}

void KvCache::Impl::take_states(LayerId l, const DeviceAttention::States& states,
                                std::span<const std::uint32_t> into) {
  const HeadShape heads = shape(l);
  counted.device_bytes_exchanged += states.crossed_bytes;
  workers->parallel(into.size(), 16, [&](std::size_t first, std::size_t last) {
    for (std::size_t f = first; f < last; ++f)
      for (std::uint32_t h = 0; h < heads.heads; ++h) {
        const std::size_t at = f * heads.heads + h;
        AttnState& state = partials[into[f] + h];
        state.max = states.max[at];
        state.sum = states.sum[at];
        std::copy_n(states.acc + at * heads.value_dim, heads.value_dim, state.acc);
      }
  });
}

Status KvCache::Impl::drop_fetched() {
  for (FetchLaunch& launch : fetch_launches) {
    if (!launch.empty()) TL_TRY(launch.finish());
    launch.clear();
  }
  return {};
}

Result<FetchLaunch*> KvCache::Impl::free_launch(LayerId l) {
  FetchLaunch* const launch = &fetch_launches[next_launch];
  next_launch = (next_launch + 1) % fetch_launches.size();
  TL_TRY(finish_launch(l, launch));
  return launch;
}

std::size_t KvCache::Impl::address(LayerId l, std::span<const ReadyFold> wave,
                                   FetchLaunch* launch) const {
  const std::uint32_t heads = shape(l).heads;
  std::size_t folds = 0;
  while (folds < wave.size() &&
         launch->add(wave[folds], list_queries[wave[folds].list].query,
                     (first_partial[wave[folds].list] + wave[folds].ordinal) * heads))
    ++folds;
  TL_CHECK(folds > 0);  // there is room for the largest
  return folds;
}

Status KvCache::Impl::begin_launch(LayerId l, FetchLaunch* launch) {
  if (launch->empty()) return {};
  counted.device_bytes_fetched += launch->row_bytes();
  return launch->begin(shape(l));
}

Status KvCache::Impl::finish_launch(LayerId l, FetchLaunch* launch) {
  if (!launch->empty()) {
    TL_TRY_ASSIGN(const DeviceAttention::States states, launch->finish());
    take_states(l, states, launch->partials());
  }
  launch->clear();
  return {};
}

Status KvCache::Impl::finish_fetched(LayerId l) {
  for (std::size_t i = 0; i < fetch_launches.size(); ++i) TL_TRY(free_launch(l));
  return {};
}

}  // namespace thermocline
