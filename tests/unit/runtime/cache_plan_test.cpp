// Where a method's rows are at home: planned by what reaches them there, or refused.
#include "runtime/cache_plan.h"

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>

namespace thermocline {
namespace {

constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;

class HomeIn final : public Placer {
 public:
  explicit HomeIn(Tier tier) : tier_(tier) {}
  std::string_view name() const override { return "there"; }
  Tier home(const Homes&, std::uint64_t) const override { return tier_; }

 private:
  Tier tier_;
};

CacheOptions options_with(std::uint64_t disk_bytes) {
  CacheOptions options;
  LayerSpec spec;
  spec.q_heads = 4;
  spec.kv_heads = 2;
  spec.key_dim = spec.value_dim = 32;
  options.layers = {spec};
  options.max_positions = 20000;
  options.tiers.host_bytes = 64 * kMiB;
  options.tiers.disk_bytes = disk_bytes;
  options.tiers.directory = ::testing::TempDir() + "thermocline-plan";
  return options;
}

constexpr std::uint64_t kPlenty = std::uint64_t{1} << 50;

Result<CachePlan> plan_by(std::unique_ptr<Placer> place, const CacheOptions& options,
                          std::uint64_t available_bytes = kPlenty) {
  TL_TRY_ASSIGN(const CpuTable* cpu, choose_cpu_table("auto"));
  TL_TRY_ASSIGN(Method method,
                load_method("exact", THERMOCLINE_SOURCE_DIR "/configs/methods", {}, *cpu));
  method.place = std::move(place);
  return make_plan(options, method, 1, available_bytes);
}

Result<CachePlan> plan_in(Tier home, const CacheOptions& options) {
  return plan_by(std::make_unique<HomeIn>(home), options);
}

TEST(CachePlan, AHomeThatNoStoreServesIsRefused) {
  struct Case {
    Tier home;
    std::uint64_t disk_bytes;
    const char* served;
  };
  for (const Case& c : {Case{Tier::device, 0, "host"}, Case{Tier::device, 64 * kMiB, "host, disk"},
                        Case{Tier::disk, 0, "host"}}) {
    const auto refused = plan_in(c.home, options_with(c.disk_bytes));
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code, ErrorCode::unsupported);
    EXPECT_EQ(refused.error().message,
              "place.rows = there puts rows in the " + std::string(name_of(c.home)) +
                  " tier, and this cache has stores for " + c.served + ": name another place.rows");
  }
}

TEST(CachePlan, RowsAreCountedWhereTheyAreAtHome) {
  const CacheOptions options = options_with(64 * kMiB);
  const auto host = plan_in(Tier::host, options), disk = plan_in(Tier::disk, options);
  ASSERT_TRUE(host && disk);
  // All but sinks and tail: 38 times 512 rows.
  EXPECT_EQ(host->home_bytes(Tier::host), 38u * 512 * 2 * 128);
  EXPECT_EQ(host->lines().total("disk"), 0u);
  EXPECT_EQ(host->row_cache_bytes, 0u);
  EXPECT_EQ(disk->lines().total("disk"), disk->home_bytes(Tier::disk));
  EXPECT_GT(disk->row_cache_bytes, 0u);
  // Checksums and a page's image are a disk's alone; what reads it is there once there is a disk.
  EXPECT_GT(disk->tables_bytes, host->tables_bytes);
  // In host memory the last segment is not there yet when the longest is formed.
  EXPECT_GE(disk->coding_bytes, host->coding_bytes);
  EXPECT_EQ(host->writing_bytes, 0u);
  EXPECT_GE(disk->writing_bytes, disk->coding_bytes);
  EXPECT_EQ(disk->staging_bytes, host->staging_bytes);
  EXPECT_EQ(host->host_bytes(), host->lines().total("host"));
  EXPECT_EQ(disk->host_bytes(), disk->lines().total("host"));
}

TEST(CachePlan, ADiskThatHoldsLessThanTheRowsIsRefusedByItsFlag) {
  const auto refused = plan_in(Tier::disk, options_with(kMiB));
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().message,
            "the KV cache for 20000 positions needs 4.75 MiB on disk and --kv-disk gives 1 MiB: "
            "raise it or lower -c");
  // A context bounds no text that is there, and hardly what little is to come after it.
  const auto advice = [](Course course) {
    CacheOptions options = options_with(kMiB);
    options.course = std::move(course);
    const std::string said = plan_in(Tier::disk, options).error().message;
    return said.substr(said.rfind(": ") + 2);
  };
  EXPECT_EQ(advice({{}, {19990}}), "raise it or take a shorter text");
  EXPECT_EQ(advice({{.positions = 19000}, {}}), "raise it or take a shorter text");
  EXPECT_EQ(advice({{}, {100}}), "raise it or lower -n or -c");
}

// Whole layers, from the first one on, as far as they fit; the others are below.
TEST(CachePlan, ADeviceTakesTheRowsOfAsManyLayersAsFit) {
  for (const std::uint64_t disk : {std::uint64_t{0}, 64 * kMiB}) {
    CacheOptions options = options_with(disk);
    for (int l = 1; l < 4; ++l) options.layers.push_back(options.layers.front());
    options.layers[1].window = 100;  // seals nothing
    options.tiers.device = "host";
    const std::uint64_t of_layer = 38u * 512 * 2 * 128;  // all but sinks and tail
    const Tier below = disk > 0 ? Tier::disk : Tier::host;
    struct Case {
      std::uint64_t device_bytes, layers;
    };
    for (const Case& c : {Case{of_layer, 1}, Case{2 * of_layer - 1, 1}, Case{1000 * of_layer, 3}}) {
      options.tiers.device_bytes = c.device_bytes;
      const auto plan = plan_by(std::make_unique<HomeSpill>(), options);
      ASSERT_TRUE(plan) << plan.error().message;
      EXPECT_EQ(plan->home_bytes(Tier::device), c.layers * of_layer);
      EXPECT_EQ(plan->lines().total("device"), c.layers * of_layer);
      EXPECT_EQ(plan->home_bytes(below) > 0, c.layers < 3);
      EXPECT_EQ(plan->layers[0].home.tier, Tier::device);
      EXPECT_EQ(plan->layers[3].home.tier, c.layers > 2 ? Tier::device : below);
      EXPECT_EQ(plan->row_cache_rows > 0, disk > 0 && c.layers < 3);
    }
    // One that gets nothing was not meant so: too small for a layer, or passed by.
    for (const std::uint64_t little : {std::uint64_t{1}, of_layer - 1}) {
      options.tiers.device_bytes = little;
      const auto refused = plan_by(std::make_unique<HomeSpill>(), options);
      ASSERT_FALSE(refused) << little;
      EXPECT_EQ(refused.error().code, ErrorCode::exhausted);
      EXPECT_NE(refused.error().message.find("raise --kv-device to " +
                                             std::to_string(of_layer / 1024) + "K"),
                std::string::npos)
          << refused.error().message;
    }
    options.tiers.device_bytes = 1000 * of_layer;
    const auto passed = plan_by(std::make_unique<HomeLowest>(), options);
    ASSERT_FALSE(passed);
    EXPECT_NE(passed.error().message.find("say --method-set place.rows=spill"), std::string::npos)
        << passed.error().message;
    // Of a text without sealed rows none could be there.
    options.max_positions = 200;
    const auto alone = plan_by(std::make_unique<HomeSpill>(), options);
    ASSERT_TRUE(alone) << alone.error().message;
    ASSERT_EQ(alone->notes().size(), 1u);
    EXPECT_NE(alone->notes()[0].find("stays in the tail"), std::string::npos);
  }
}

TEST(CachePlan, ADeviceThatIsNotThereIsRefused) {
  CacheOptions options = options_with(0);
  const auto refusal = [&](const char* device, std::uint64_t bytes) {
    options.tiers.device = device;
    options.tiers.device_bytes = bytes;
    const auto plan = plan_by(std::make_unique<HomeSpill>(), options);
    return plan ? std::string() : plan.error().message;
  };
  EXPECT_EQ(refusal("none", 0), "");
  EXPECT_EQ(refusal("host", 64 * kMiB), "");
  EXPECT_NE(refusal("none", 1).find("--device host"), std::string::npos);
  EXPECT_NE(refusal("none", kAutoBytes).find("none is named"), std::string::npos);
  EXPECT_NE(refusal("host", 0).find("--kv-device"), std::string::npos);
  EXPECT_NE(refusal("host", kAutoBytes).find("--kv-device"), std::string::npos);
  EXPECT_NE(refusal("gpu", 1).find("known: none, host, cuda, cuda:N"), std::string::npos);
  EXPECT_NE(refusal("cuda", 0).find("say --kv-device"), std::string::npos);
  // Without CUDA, without a driver, without as many devices: each says which.
  EXPECT_NE(refusal("cuda:9999", 1).find("--device cuda:9999: "), std::string::npos);
}

TEST(CachePlan, ASessionIsRefusedWhereRowsAreAtHomeInMemory) {
  CacheOptions options = options_with(0);
  options.session.path = ::testing::TempDir() + "never-made.tls";
  EXPECT_TRUE(plan_by(std::make_unique<HomeSpill>(), options));
  options.tiers.device = "host";
  options.tiers.device_bytes = 64 * kMiB;
  const auto refused = plan_by(std::make_unique<HomeSpill>(), options);
  ASSERT_FALSE(refused);
  EXPECT_NE(refused.error().message.find("leave --device and --kv-device out"), std::string::npos)
      << refused.error().message;
  options.tiers.device = "none";
  options.tiers.device_bytes = 0;
  options.tiers.disk_bytes = 64 * kMiB;
  const auto in_memory = plan_by(std::make_unique<HomeHost>(), options);
  ASSERT_FALSE(in_memory);
  EXPECT_NE(in_memory.error().message.find("place.rows=lowest"), std::string::npos)
      << in_memory.error().message;
}

// What is planned has to fit the machine, with all that is beside it; a budget need not.
TEST(CachePlan, NoMoreIsPlannedThanTheMachineCanGive) {
  for (const std::uint64_t device : {std::uint64_t{0}, 64 * kMiB}) {
    for (const std::uint64_t disk : {std::uint64_t{0}, 64 * kMiB}) {
      CacheOptions options = options_with(disk);
      for (int l = 1; l < 40; ++l) options.layers.push_back(options.layers.front());
      options.beside_bytes = 5 * kMiB;
      options.tiers.device = device > 0 ? "host" : "none";
      options.tiers.device_bytes = device;
      const auto plan = [&](std::uint64_t host, std::uint64_t available) {
        options.tiers.host_bytes = host;
        return plan_by(std::make_unique<HomeSpill>(), options, available);
      };
      const auto refusal = [&](std::uint64_t host, std::uint64_t available) {
        const auto made = plan(host, available);
        EXPECT_TRUE(made || made.error().code == ErrorCode::exhausted);
        return made ? std::string() : made.error().message;
      };
      options.tiers.disk_bytes = disk > 0 ? kPlenty : 0;
      const auto whole = plan(kPlenty, kPlenty);
      ASSERT_TRUE(whole) << whole.error().message;
      const std::uint64_t allowance = whole->lines().allowance_bytes;
      const auto all_of = [&](const CachePlan& one) {
        return one.host_bytes() + one.home_bytes(Tier::device) + one.workspace_bytes() + 5 * kMiB;
      };
      // A budget far beyond the machine is none of its business; what is planned of it is.
      EXPECT_EQ(refusal(kPlenty, all_of(*whole) + allowance), "");
      const std::string said = refusal(kPlenty, all_of(*whole) + allowance - 1);
      EXPECT_NE(said.find("and this machine has "), std::string::npos) << said;
      EXPECT_NE(said.find(disk > 0     ? ": lower --kv-host"
                          : device > 0 ? ": lower --kv-device, or lower -c"
                                       : ": give --kv-disk SIZE"),
                std::string::npos)
          << said;
      // And so it is of memory that nobody asked for, which is what is left beside all that.
      const std::uint64_t least = all_of(*whole) - whole->row_cache_bytes + allowance;
      const auto automatic = plan(kAutoBytes, least + 1000);
      ASSERT_TRUE(automatic) << automatic.error().message;
      EXPECT_LE(all_of(*automatic) + allowance, least + 1000);
      EXPECT_EQ(automatic->bytes_of(Tier::host),
                whole->host_bytes() - whole->row_cache_bytes + 1000);
      EXPECT_NE(refusal(kAutoBytes, least - 1).find("and this machine has "), std::string::npos);
      EXPECT_NE(refusal(kAutoBytes, 0), "");
    }
  }
}

TEST(CachePlan, MoreRowsThanCanBeNumberedAreRefused) {
  CacheOptions options = options_with(0);
  options.tiers.host_bytes = kPlenty / 2;
  struct Case {
    std::uint32_t positions, timelines;
    bool refused;
  };
  // In 32 bits the rows of the third would be 0.
  for (const Case& c : {Case{1u << 30, 1, false}, Case{1u << 30, 2, true}, Case{1u << 31, 2, true},
                        Case{1, 1u << 24, false}, Case{1, 1u << 25, true}, Case{~0u, 1, true},
                        Case{~0u, ~0u, true}}) {
    SCOPED_TRACE(std::to_string(c.positions) + " x " + std::to_string(c.timelines));
    options.max_positions = c.positions;
    options.max_timelines = c.timelines;
    const auto plan = plan_in(Tier::host, options);
    ASSERT_EQ(!plan, c.refused) << (plan ? "" : plan.error().message);
    if (plan) {
      EXPECT_GE(plan->home_bytes(Tier::host) + plan->tail_bytes,
                std::uint64_t{c.positions} * c.timelines * 2 * 128);
    } else {
      EXPECT_EQ(plan.error().code, ErrorCode::invalid_argument);
      EXPECT_NE(plan.error().message.find("2147483648 rows"), std::string::npos)
          << plan.error().message;
    }
  }
}

TEST(CachePlan, AWindowOfAnySizeKeepsNoMoreThanThePositions) {
  CacheOptions options = options_with(0);
  options.layers[0].window = ~0u;
  const auto plan = plan_in(Tier::host, options);
  ASSERT_TRUE(plan) << plan.error().message;
  EXPECT_EQ(plan->layers[0].tail_capacity, options.max_positions + kMaxStepRows);
}

}  // namespace
}  // namespace thermocline
