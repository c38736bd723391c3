#include "tiers/store/stores.h"

#include <algorithm>
#include <utility>

#include "tiers/store/host_memory.h"
#include "tiers/store/scratch_file.h"

namespace thermocline {
namespace {

// Host memory is always there: what it may hold is the ledger's to refuse.
bool is_there(const StoreOptions& options, Tier tier) {
  return tier == Tier::host || options.bytes[static_cast<std::size_t>(tier)] > 0;
}

Result<std::unique_ptr<Store>> open_host(const StoreOptions&) {
  return std::make_unique<HostMemory>();
}
Result<std::string> probe_host(const StoreOptions&) { return std::string(); }

Result<std::unique_ptr<Store>> open_scratch(const StoreOptions& options) {
  constexpr auto kDisk = static_cast<std::size_t>(Tier::disk);
  TL_TRY_ASSIGN(ScratchFile file, ScratchFile::create(options.directory, options.bytes[kDisk],
                                                      options.planned[kDisk]));
  return std::make_unique<ScratchFile>(std::move(file));
}
Result<std::string> probe_scratch(const StoreOptions& options) {
  return ScratchFile::probe(options.directory,
                            options.planned[static_cast<std::size_t>(Tier::disk)]);
}

// A new store is its file and a line here.
struct Kind {
  StoreFacts facts;
  Result<std::unique_ptr<Store>> (*open)(const StoreOptions&);
  Result<std::string> (*probe)(const StoreOptions&);
};
constexpr Kind kKinds[] = {{HostMemory::kFacts, open_host, probe_host},
                           {ScratchFile::kFacts, open_scratch, probe_scratch}};

}  // namespace

std::optional<Reach> reach_of(const StoreOptions& options, Tier tier) {
  for (const Kind& kind : kKinds)
    if (kind.facts.tier == tier && is_there(options, tier)) return kind.facts.reach;
  return std::nullopt;
}

bool any_in_pages(const StoreOptions& options) {
  return std::any_of(kAllTiers.begin(), kAllTiers.end(),
                     [&](Tier tier) { return reach_of(options, tier) == Reach::pages; });
}

Result<Stores> open_stores(const StoreOptions& options) {
  Stores stores;
  for (const Kind& kind : kKinds) {
    if (!is_there(options, kind.facts.tier)) continue;
    TL_TRY_ASSIGN(stores[static_cast<std::size_t>(kind.facts.tier)], kind.open(options));
  }
  return stores;
}

Result<std::vector<std::string>> probe_stores(const StoreOptions& options) {
  std::vector<std::string> notes;
  for (const Kind& kind : kKinds) {
    if (!is_there(options, kind.facts.tier)) continue;
    TL_TRY_ASSIGN(std::string note, kind.probe(options));
    if (!note.empty()) notes.push_back(std::move(note));
  }
  return notes;
}

}  // namespace thermocline
