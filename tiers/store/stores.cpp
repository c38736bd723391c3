#include "tiers/store/stores.h"

#include <algorithm>
#include <utility>

#include "tiers/store/device_memory.h"
#include "tiers/store/device_stand_in.h"
#include "tiers/store/host_memory.h"
#include "tiers/store/pinned_memory.h"
#include "tiers/store/scratch_file.h"
#include "tiers/store/session_file.h"

namespace thermocline {
namespace {

constexpr auto kDevice = static_cast<std::size_t>(Tier::device);
constexpr auto kDisk = static_cast<std::size_t>(Tier::disk);

bool has_device(const StoreOptions& options) {
  return options.bytes[kDevice] > 0 && options.device != DeviceStandIn::kDevice;
}
Result<std::unique_ptr<Store>> open_device_memory(const StoreOptions& options) {
  TL_TRY_ASSIGN(DeviceMemory memory, DeviceMemory::open(options.device, options.planned[kDevice]));
  return std::make_unique<DeviceMemory>(std::move(memory));
}
Result<std::string> probe_device_memory(const StoreOptions& options) {
  TL_TRY(DeviceMemory::open(options.device, options.planned[kDevice]));
  return std::string();
}

bool has_stand_in(const StoreOptions& options) {
  return options.bytes[kDevice] > 0 && options.device == DeviceStandIn::kDevice;
}
Result<std::unique_ptr<Store>> open_stand_in(const StoreOptions&) {
  return std::make_unique<DeviceStandIn>();
}
Result<std::string> probe_stand_in(const StoreOptions&) {
  return std::string(DeviceStandIn::kNote);
}

// Host memory is always there, in one of two kinds: what it may hold is the ledger's to refuse.
bool has_host(const StoreOptions& options) { return !options.pinned; }
Result<std::unique_ptr<Store>> open_host(const StoreOptions&) {
  return std::make_unique<HostMemory>();
}
Result<std::string> probe_host(const StoreOptions&) { return std::string(); }

bool has_pinned(const StoreOptions& options) { return options.pinned; }
Result<std::unique_ptr<Store>> open_pinned(const StoreOptions& options) {
  TL_TRY_ASSIGN(PinnedMemory memory, PinnedMemory::open(options.device));
  return std::make_unique<PinnedMemory>(std::move(memory));
}
Result<std::string> probe_pinned(const StoreOptions& options) {
  TL_TRY(PinnedMemory::open(options.device));
  return std::string();
}

bool has_scratch(const StoreOptions& options) {
  return options.bytes[kDisk] > 0 && options.session.empty();
}
Result<std::unique_ptr<Store>> open_scratch(const StoreOptions& options) {
  TL_TRY_ASSIGN(ScratchFile file, ScratchFile::create(options.directory, options.bytes[kDisk],
                                                      options.planned[kDisk]));
  return std::make_unique<ScratchFile>(std::move(file));
}
Result<std::string> probe_scratch(const StoreOptions& options) {
  return ScratchFile::probe(options.directory, options.planned[kDisk]);
}

bool has_session(const StoreOptions& options) {
  return options.bytes[kDisk] > 0 && !options.session.empty();
}
Result<std::unique_ptr<Store>> open_session(const StoreOptions& options) {
  TL_TRY_ASSIGN(SessionFile file,
                SessionFile::open(options.session, options.bytes[kDisk], options.planned[kDisk]));
  return std::make_unique<SessionFile>(std::move(file));
}
Result<std::string> probe_session(const StoreOptions& options) {
  return SessionFile::probe(options.session, options.planned[kDisk]);
}

// A new store is its file and a line here. At most one of a tier is there.
struct Kind {
  StoreFacts facts;
  bool (*is_there)(const StoreOptions&);
  Result<std::unique_ptr<Store>> (*open)(const StoreOptions&);
  Result<std::string> (*probe)(const StoreOptions&);
};
constexpr Kind kKinds[] = {
    {DeviceMemory::kFacts, has_device, open_device_memory, probe_device_memory},
    {DeviceStandIn::kFacts, has_stand_in, open_stand_in, probe_stand_in},
    {HostMemory::kFacts, has_host, open_host, probe_host},
    {PinnedMemory::kFacts, has_pinned, open_pinned, probe_pinned},
    {ScratchFile::kFacts, has_scratch, open_scratch, probe_scratch},
    {SessionFile::kFacts, has_session, open_session, probe_session}};

}  // namespace

std::optional<Reach> reach_of(const StoreOptions& options, Tier tier) {
  for (const Kind& kind : kKinds)
    if (kind.facts.tier == tier && kind.is_there(options)) return kind.facts.reach;
  return std::nullopt;
}

Tier lowest_of(const StoreOptions& options) {
  return reach_of(options, Tier::disk) ? Tier::disk : Tier::host;
}

bool any_in_pages(const StoreOptions& options) {
  return std::any_of(kAllTiers.begin(), kAllTiers.end(),
                     [&](Tier tier) { return reach_of(options, tier) == Reach::pages; });
}

bool any_staged(const StoreOptions& options) {
  return std::any_of(kAllTiers.begin(), kAllTiers.end(), [&](Tier tier) {
    return reach_of(options, tier).value_or(Reach::memory) != Reach::memory;
  });
}

Result<Stores> open_stores(const StoreOptions& options) {
  Stores stores;
  for (const Kind& kind : kKinds) {
    if (!kind.is_there(options)) continue;
    TL_TRY_ASSIGN(stores[static_cast<std::size_t>(kind.facts.tier)], kind.open(options));
  }
  return stores;
}

Result<std::vector<std::string>> probe_stores(const StoreOptions& options) {
  std::vector<std::string> notes;
  for (const Kind& kind : kKinds) {
    if (!kind.is_there(options)) continue;
    TL_TRY_ASSIGN(std::string note, kind.probe(options));
    if (!note.empty()) notes.push_back(std::move(note));
  }
  return notes;
}

}  // namespace thermocline
