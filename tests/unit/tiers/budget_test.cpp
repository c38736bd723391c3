#include "tiers/budget.h"

#include <gtest/gtest.h>

#include <atomic>
#include <optional>
#include <random>
#include <thread>
#include <vector>

namespace thermocline {
namespace {

constexpr std::uint64_t kGiB = std::uint64_t{1} << 30;

TEST(Budget, ReservationsReleaseThemselves) {
  Budget budget({0, 8 * kGiB, 100});
  {
    auto index = budget.reserve(Tier::host, Purpose::index, 6 * kGiB);
    ASSERT_TRUE(index);
    Reservation moved = std::move(*index);
    EXPECT_EQ(index->bytes(), 0u);
    EXPECT_EQ(moved.bytes(), 6 * kGiB);
    EXPECT_EQ(budget.usage(Tier::host).held_bytes, 6 * kGiB);
    EXPECT_EQ(budget.usage(Tier::host).free_bytes(), 2 * kGiB);
    EXPECT_EQ(budget.usage(Tier::disk).held_bytes, 0u);
    budget.check_conservation();
    auto tail = budget.reserve(Tier::host, Purpose::tail, kGiB);
    ASSERT_TRUE(tail);
    moved = std::move(*tail);  // the index goes when `tail` does
  }
  const TierUsage usage = budget.usage(Tier::host);
  EXPECT_EQ(usage.held_bytes, 0u);
  EXPECT_EQ(usage.peak_bytes, 7 * kGiB);
  EXPECT_EQ(usage.peak[static_cast<std::size_t>(Purpose::tail)], kGiB);
  budget.check_conservation();
}

TEST(Budget, TheErrorSaysNeedHaveHoldersAndFlag) {
  Budget budget({kGiB, 8 * kGiB, 0});
  const auto index = budget.reserve(Tier::host, Purpose::index, 6 * kGiB);
  const auto tail = budget.reserve(Tier::host, Purpose::tail, kGiB + kGiB / 2);
  const auto refused = budget.reserve(Tier::host, Purpose::row_cache, 2 * kGiB);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::exhausted);
  EXPECT_EQ(refused.error().message,
            "host: row_cache needs 2 GiB, 512 MiB of 8 GiB is free (held: index 6 GiB, tail 1.50 "
            "GiB): raise --kv-host by 1.50 GiB");
  const auto disk = budget.reserve(Tier::disk, Purpose::rows, 4096);
  ASSERT_FALSE(disk);
  EXPECT_EQ(disk.error().message,
            "disk: rows needs 4 KiB, 0 bytes of 0 bytes is free (nothing is held): raise --kv-disk "
            "by 4 KiB");
  EXPECT_NE(
      budget.reserve(Tier::device, Purpose::rows, 2 * kGiB).error().message.find("--kv-device"),
      std::string::npos);
  budget.check_conservation();
}

TEST(Budget, ExactlyAllFitsAndSumsDoNotOverflow) {
  Budget budget({0, 1000, Budget::kUnlimited});
  auto all = budget.reserve(Tier::host, Purpose::rows, 1000);
  ASSERT_TRUE(all);
  EXPECT_FALSE(budget.reserve(Tier::host, Purpose::rows, 1));
  EXPECT_TRUE(budget.reserve(Tier::host, Purpose::rows, 0));
  EXPECT_FALSE(budget.reserve(Tier::host, Purpose::rows, ~std::uint64_t{0}));
  const auto most = budget.reserve(Tier::disk, Purpose::rows, Budget::kUnlimited);
  ASSERT_TRUE(most);
  EXPECT_FALSE(budget.reserve(Tier::disk, Purpose::rows, ~std::uint64_t{0}));
  EXPECT_FALSE(all->resize(~std::uint64_t{0}));
  EXPECT_EQ(all->bytes(), 1000u);
  budget.check_conservation();
}

TEST(Budget, ResizeGrowsWithinTheTotalAndShrinksAlways) {
  Budget budget({0, 1000, 0});
  auto rows = budget.reserve(Tier::host, Purpose::rows, 400);
  const auto index = budget.reserve(Tier::host, Purpose::index, 500);
  ASSERT_TRUE(rows && index);
  EXPECT_TRUE(rows->resize(500));
  EXPECT_FALSE(rows->resize(501));
  EXPECT_EQ(rows->bytes(), 500u);
  EXPECT_TRUE(rows->resize(0));
  EXPECT_TRUE(rows->resize(0));
  EXPECT_EQ(budget.usage(Tier::host).held_bytes, 500u);
  EXPECT_EQ(budget.usage(Tier::host).peak_bytes, 1000u);
  budget.check_conservation();
}

TEST(Budget, ConservesUnderThreads) {
  Budget budget({10'000, 10'000, 10'000});
  const auto work = [&budget](std::uint64_t seed) {
    std::mt19937_64 random(seed);
    std::vector<Reservation> held;
    for (int i = 0; i < 5000; ++i) {
      auto taken = budget.reserve(kAllTiers[random() % kTiers],
                                  static_cast<Purpose>(random() % kPurposes), random() % 3000);
      if (taken) held.push_back(std::move(*taken));
      if (!held.empty() && random() % 3 == 0) (void)held.back().resize(random() % 3000);
      if (!held.empty() && random() % 2 == 0)
        held.erase(held.begin() + static_cast<long>(random() % held.size()));
      if (i % 100 == 0) budget.check_conservation();
    }
  };
  std::vector<std::thread> threads;
  for (std::uint64_t seed = 0; seed < 4; ++seed) threads.emplace_back(work, seed);
  for (auto& thread : threads) thread.join();
  for (const Tier tier : kAllTiers) {
    EXPECT_EQ(budget.usage(tier).held_bytes, 0u) << name_of(tier);
    EXPECT_GT(budget.usage(tier).peak_bytes, 5000u);
    EXPECT_LE(budget.usage(tier).peak_bytes, 10'000u);
  }
  budget.check_conservation();
}

TEST(Budget, AShareHasWhatWasPlannedAndBeyondItWhatOthersLeave) {
  Budget whole({0, 1000, 500});
  const auto held = [&](Tier tier) { return whole.usage(tier).held_bytes; };
  auto first = Budget::share(&whole, {0, 600, 100}, {0, 900, 500});
  ASSERT_TRUE(first);
  EXPECT_EQ(held(Tier::host), 600u);
  // One whose plan does not fit in one tier takes nothing in any.
  const auto refused = Budget::share(&whole, {0, 100, 401}, {0, 100, 500});
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::exhausted);
  EXPECT_EQ(held(Tier::host), 600u);
  EXPECT_EQ(held(Tier::disk), 100u);
  {
    const auto second = Budget::share(&whole, {0, 300, 0}, {0, Budget::kUnlimited, 0});
    ASSERT_TRUE(second);
    auto rows = (*first)->reserve(Tier::host, Purpose::rows, 650);
    ASSERT_TRUE(rows);
    EXPECT_EQ(held(Tier::host), 950u);
    const auto beyond = (*first)->reserve(Tier::host, Purpose::sealing, 51);
    ASSERT_FALSE(beyond);
    EXPECT_EQ(beyond.error().code, ErrorCode::exhausted);
    EXPECT_EQ(beyond.error().message,
              "host: sealing needs 51 bytes more than this cache planned, and 50 bytes of 1000 "
              "bytes is free of what its engine gives all caches: raise "
              "EngineOptions::limits.host_bytes, or let another cache go");
    EXPECT_EQ((*first)->usage(Tier::host).held_bytes, 650u);
    EXPECT_TRUE((*second)->reserve(Tier::host, Purpose::rows, 350)) << "its own 300, and 50";
    (*first)->check_conservation();
    (*second)->check_conservation();
    EXPECT_TRUE(rows->resize(500));
    EXPECT_EQ(held(Tier::host), 900u) << "planned stays planned";
  }
  EXPECT_EQ(held(Tier::host), 600u);
  EXPECT_TRUE((*first)->reserve(Tier::host, Purpose::rows, 900));
  const auto own = (*first)->reserve(Tier::host, Purpose::rows, 901);
  ASSERT_FALSE(own) << "more than its own size";
  EXPECT_NE(own.error().message.find("raise --kv-host"), std::string::npos) << own.error().message;
  first->reset();
  for (const Tier tier : kAllTiers) EXPECT_EQ(held(tier), 0u);
  whole.check_conservation();
}

TEST(Budget, SharesConserveUnderThreads) {
  Budget whole({10'000, 10'000, 10'000});
  std::atomic<int> opened = 0, refused = 0;
  const auto work = [&](std::uint64_t seed) {
    std::mt19937_64 random(seed);
    for (int i = 0; i < 300; ++i) {
      const auto some = [&] { return random() % 4000; };
      const auto share = Budget::share(&whole, {some(), some(), some()}, {10'000, 10'000, 10'000});
      ++(share ? opened : refused);
      if (!share) continue;
      std::vector<Reservation> held;
      for (int k = 0; k < 30; ++k) {
        auto taken = (*share)->reserve(kAllTiers[random() % kTiers], Purpose::rows, some());
        if (taken) held.push_back(std::move(*taken));
        if (!held.empty() && random() % 3 == 0) held.pop_back();
        (*share)->check_conservation();
        whole.check_conservation();
      }
    }
  };
  std::vector<std::thread> threads;
  for (std::uint64_t seed = 0; seed < 4; ++seed) threads.emplace_back(work, seed);
  for (auto& thread : threads) thread.join();
  EXPECT_GT(opened, 100);
  EXPECT_GT(refused, 10);
  for (const Tier tier : kAllTiers) EXPECT_EQ(whole.usage(tier).held_bytes, 0u) << name_of(tier);
}

TEST(BudgetDeathTest, AReservationDoesNotOutliveItsBudget) {
  ::testing::FLAGS_gtest_death_test_style = "threadsafe";
  EXPECT_DEATH(
      {
        std::optional<Budget> budget(std::in_place, std::array<std::uint64_t, kTiers>{10, 10, 10});
        const auto kept = budget->reserve(Tier::host, Purpose::rows, 1);
        budget.reset();
      },
      "check failed");
}

TEST(Budget, EveryPurposeHasItsName) {
  for (std::size_t i = 0; i < kPurposes; ++i)
    for (std::size_t j = 0; j < i; ++j)
      EXPECT_NE(name_of(static_cast<Purpose>(i)), name_of(static_cast<Purpose>(j)));
  EXPECT_EQ(name_of(Purpose::tables), "tables");
}

}  // namespace
}  // namespace thermocline
