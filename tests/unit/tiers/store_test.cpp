#include "tiers/store/store.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <utility>
#include <vector>

#include "tiers/store/device_stand_in.h"
#include "tiers/store/host_memory.h"
#include "tiers/store/stores.h"

namespace thermocline {
namespace {

constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;

class Refusing final : public Store {
 public:
  StoreFacts facts() const override { return {Tier::disk, Reach::pages}; }
  const std::string& name() const override {
    static const std::string kName = "refusing";
    return kName;
  }
  Result<Space> take(std::uint64_t) override { return fail(ErrorCode::exhausted, "full"); }
  void give(const Space&) override { ADD_FAILURE() << "nothing was taken"; }
};

TEST(Slot, HoldsSpaceAndItsBytesAndGivesBothBackOnce) {
  Budget budget({kMiB, kMiB, 0});
  HostMemory host;
  DeviceStandIn device;
  for (Store* store : {static_cast<Store*>(&host), static_cast<Store*>(&device)}) {
    const auto held = [&] { return budget.usage(store->facts().tier).held_bytes; };
    {
      auto first = Slot::take(store, &budget, Purpose::rows, 1000);
      ASSERT_TRUE(first) << first.error().message;
      EXPECT_EQ(first->space().bytes, 1000u);
      std::fill_n(first->space().address, 1000, std::byte{7});
      Slot moved = std::move(*first);
      Slot second = *Slot::take(store, &budget, Purpose::rows, 3000);
      EXPECT_EQ(held(), 4000u);
      EXPECT_EQ(std::count(moved.space().address, moved.space().address + 1000, std::byte{7}),
                1000);
      second = std::move(moved);
      second = Slot();
      budget.check_conservation();
    }
    EXPECT_EQ(held(), 0u);
    const auto refused = Slot::take(store, &budget, Purpose::rows, kMiB + 1);
    ASSERT_FALSE(refused);
    EXPECT_NE(refused.error().message.find(flag_of(store->facts().tier)), std::string::npos);
  }
}

TEST(Slot, AStoreThatRefusesLeavesTheLedgerAsItWas) {
  Budget budget({0, 0, kMiB});
  Refusing store;
  const auto refused = Slot::take(&store, &budget, Purpose::rows, 1000);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().message, "full");
  EXPECT_EQ(budget.usage(Tier::disk).held_bytes, 0u);
}

TEST(Stores, AreThoseOfTheTiersThatWereGivenBytes) {
  StoreOptions options;
  options.directory = ::testing::TempDir() + "thermocline-stores";
  for (const std::uint64_t disk : {std::uint64_t{0}, kMiB}) {
    const std::uint64_t device = disk / 2;
    options.bytes = {device, 0, disk};
    const auto stores = open_stores(options);
    ASSERT_TRUE(stores) << stores.error().message;
    for (const Tier tier : kAllTiers) {
      const auto& store = (*stores)[static_cast<std::size_t>(tier)];
      const auto reach = reach_of(options, tier);
      ASSERT_EQ(store != nullptr, reach.has_value()) << name_of(tier);
      EXPECT_EQ(store != nullptr, tier == Tier::host || disk > 0);
      if (!store) continue;
      EXPECT_EQ(store->facts().tier, tier);
      EXPECT_EQ(store->facts().reach, *reach);
    }
    EXPECT_EQ(any_in_pages(options), disk > 0);
    EXPECT_TRUE(probe_stores(options));
  }
  options.directory = "/dev/null";
  EXPECT_FALSE(probe_stores(options));
  EXPECT_FALSE(open_stores(options));
  std::filesystem::remove(::testing::TempDir() + "thermocline-stores");
}

}  // namespace
}  // namespace thermocline
