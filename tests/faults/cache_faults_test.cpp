// Whole steps of a cache whose disk is in trouble: what passes changes no bit of an answer; what
// stays is an error after which the step can be done again; and nothing is left behind.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "runtime/kv_cache.h"
#include "tests/faults/kernel_faults.h"
#include "tests/support/float_table.h"

namespace thermocline {
namespace {

constexpr int kSteps = 30;

CacheOptions cache_options(const std::string& backend, const std::string& method,
                           std::uint64_t cached_bytes) {
  CacheOptions options;
  for (const std::uint32_t heads : {2u, 1u}) {
    LayerSpec spec;
    spec.q_heads = 2 * heads;
    spec.kv_heads = heads;
    spec.key_dim = 32;
    spec.value_dim = 48;
    spec.scale = 0.2f;
    options.layers.push_back(spec);
  }
  options.method = method;
  options.method_directory = std::string(THERMOCLINE_SOURCE_DIR) + "/configs/methods";
  options.method_overrides = {"steady.seal=64", "steady.recent=16"};
  if (method == "sketch") options.method_overrides.push_back("select.min_rows=40");
  options.max_positions = 900;
  options.max_timelines = 2;
  options.tiers.directory = ::testing::TempDir() + "thermocline-faults";
  options.tiers.disk_bytes = std::uint64_t{64} << 20;
  options.tiers.io_backend = backend;
  const auto plan = KvCache::plan(options);
  EXPECT_TRUE(plan) << (plan ? "" : plan.error().message);
  options.tiers.host_bytes = cached_bytes;
  for (const MemoryLine& line : plan->lines)
    if (line.tier == "host" && line.purpose != "row_cache") options.tiers.host_bytes += line.bytes;
  return options;
}

std::vector<float> random_floats(std::mt19937& random, std::size_t n) {
  std::vector<float> values(n);
  for (float& value : values) value = static_cast<float>(random() % 2001) / 1000.0f - 1.0f;
  return values;
}

// A text whose every step is a function of its number: doing one again is doing the same.
class Walk {
 public:
  explicit Walk(const CacheOptions& options) {
    auto made = KvCache::create(options, 2, test::float_isa());
    if (!made) {
      ADD_FAILURE() << made.error().message;
      return;
    }
    cache_ = std::move(*made);
    text_ = std::move(*cache_->start());
  }
  KvCache& cache() { return *cache_; }

  // Prefills now and then, a fork that comes and goes, a cut; else decode steps. The first one lies
  // where another text was.
  Status step(int number, std::vector<float>* outputs) {
    if (number == 0) {
      TL_TRY_ASSIGN(Timeline other, cache_->start());
      TL_TRY(advance(other, 400, 5, outputs));
    }
    if (number % 8 == 5) fork_ = {};
    if (number % 8 == 3) {
      fork_ = {};
      TL_TRY_ASSIGN(fork_, text_.fork());
    }
    held_before_ = held_bytes();
    if (number % 16 == 9 && text_.length() > 470) TL_TRY(text_.truncate(450));
    held_before_ = held_bytes();
    const std::uint32_t rows = number == 0 ? 400 : number % 7 == 6 ? 70 : 3;
    return advance(text_, rows, static_cast<unsigned>(number) + 77, outputs);
  }
  // In the middle of the last step: what it has to hold again if it fails.
  std::uint64_t held_before_step() const { return held_before_; }
  // Without the span's buffer, which stays for the next prefill.
  std::uint64_t held_bytes() const {
    std::uint64_t bytes = 0;
    for (const MemoryLine& line : cache_->usage().lines)
      if (line.purpose != "sealing" && (line.tier == "host" || line.tier == "disk"))
        bytes += line.bytes;
    return bytes;
  }
  void forget_texts() {
    fork_ = {};
    text_ = {};
  }

 private:
  Status advance(const Timeline& text, std::uint32_t rows, unsigned seed,
                 std::vector<float>* outputs) {
    std::mt19937 random(seed);
    std::vector<Token> at;
    for (std::uint32_t r = 0; r < rows; ++r) at.push_back({text.id(), text.length() + r});
    TL_TRY(cache_->begin(at, rows > kMaxStepRows ? Pass::prefill : Pass::decode));
    std::vector<float> all;
    const auto carry_out = [&]() -> Status {
      for (std::uint32_t l = 0; l < cache_->layers().size(); ++l) {
        const LayerSpec& spec = cache_->layers()[l];
        const std::size_t k = spec.kv_heads * spec.key_dim, v = spec.kv_heads * spec.value_dim;
        const std::size_t q = spec.q_heads * spec.key_dim, o = spec.q_heads * spec.value_dim;
        const auto keys = random_floats(random, rows * k), values = random_floats(random, rows * v);
        const auto queries = random_floats(random, rows * q);
        std::vector<float> out(rows * o);
        TL_TRY(cache_->append(LayerId{l}, {keys.data(), rows, k}, {values.data(), rows, v}));
        TL_TRY(cache_->attend(LayerId{l}, {queries.data(), rows, q}, {out.data(), rows, o}));
        all.insert(all.end(), out.begin(), out.end());
      }
      return cache_->commit();
    };
    if (Status done = carry_out(); !done) {
      cache_->rollback();
      return done;
    }
    *outputs = std::move(all);
    return {};
  }

  std::unique_ptr<KvCache> cache_;
  Timeline text_, fork_;
  std::uint64_t held_before_ = 0;
};

bool same(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

struct Right {  // without a fault
  std::vector<std::vector<float>> outputs;
  std::vector<std::uint64_t> held;
  std::uint64_t held_at_end = 0;
};
Right walk_undisturbed(const CacheOptions& options) {
  Right right;
  Walk walk(options);
  for (int s = 0; s < kSteps; ++s) {
    right.outputs.emplace_back();
    const Status done = walk.step(s, &right.outputs.back());
    EXPECT_TRUE(done) << s << ": " << (done ? "" : done.error().message);
    right.held.push_back(walk.held_bytes());
  }
  EXPECT_GT(walk.cache().report().disk_reads, 200u);
  EXPECT_EQ(walk.cache().report().pages_read_again, 0u);
  walk.forget_texts();
  right.held_at_end = walk.held_bytes();
  EXPECT_EQ(walk.cache().usage().total("disk"), 0u);
  return right;
}

void print(const char* what, const std::string& backend, const KernelFaultCounts& counts) {
  std::string text;
  for (std::size_t f = 0; f < kKernelFaults; ++f)
    if (counts.injected[f] > 0)
      text +=
          ", " + std::to_string(counts.injected[f]) + " " + name_of(static_cast<KernelFault>(f));
  std::printf("%s, %s: %lu faults in %lu transfers%s\n", what, backend.c_str(),
              static_cast<unsigned long>(counts.total()),
              static_cast<unsigned long>(counts.transfers), text.c_str());
}

class CacheFaults : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    const auto probe = KvCache::plan(cache_options(GetParam(), "exact", 0));
    if (!probe) GTEST_SKIP() << probe.error().message;
  }
};

TEST_P(CacheFaults, WhatPassesChangesNoBit) {
  KernelFaultCounts sum;
  for (const char* method : {"exact", "sketch"})
    for (const std::uint64_t cached : {0u, 60'000u}) {
      const CacheOptions options = cache_options(GetParam(), method, cached);
      const Right right = walk_undisturbed(options);
      for (unsigned seed = 1; seed <= 4; ++seed) {
        SCOPED_TRACE(std::string(method) + ", " + std::to_string(cached) + " bytes cached, seed " +
                     std::to_string(seed));
        Walk walk(options);
        KernelFaultPlan plan;
        plan.seed = seed;
        for (const KernelFault fault :
             {KernelFault::again, KernelFault::interrupted, KernelFault::partial})
          plan.with(fault, 0.08);
        for (const KernelFault fault : {KernelFault::io_error, KernelFault::flipped,
                                        KernelFault::misdirected, KernelFault::stale})
          plan.with(fault, 0.05);
        plan.with(KernelFault::late, 0.01);
        KernelFaults faults(plan);
        for (int s = 0; s < kSteps; ++s) {
          std::vector<float> outputs;
          const Status done = walk.step(s, &outputs);
          ASSERT_TRUE(done) << s << ": " << done.error().message;
          ASSERT_TRUE(same(outputs, right.outputs[static_cast<std::size_t>(s)])) << "step " << s;
          ASSERT_EQ(walk.held_bytes(), right.held[static_cast<std::size_t>(s)]) << "step " << s;
        }
        EXPECT_GT(walk.cache().report().pages_read_again, 0u);
        const KernelFaultCounts counts = faults.counts();
        sum.transfers += counts.transfers;
        for (std::size_t f = 0; f < kKernelFaults; ++f) sum.injected[f] += counts.injected[f];
        walk.forget_texts();
        EXPECT_EQ(walk.held_bytes(), right.held_at_end);
      }
    }
  print("faults that pass", GetParam(), sum);
  for (const KernelFault fault :
       {KernelFault::again, KernelFault::interrupted, KernelFault::partial, KernelFault::late,
        KernelFault::io_error, KernelFault::flipped, KernelFault::misdirected, KernelFault::stale})
    EXPECT_GE(sum[fault], 10u) << name_of(fault);
  EXPECT_GE(sum.total(), 1000u);
}

TEST_P(CacheFaults, WhatStaysIsAnErrorAndTheStepCanBeDoneAgain) {
  const CacheOptions options = cache_options(GetParam(), "exact", 0);
  const Right right = walk_undisturbed(options);
  struct Case {
    KernelFault fault;
    const char* said;
  };
  KernelFaultCounts sum;
  int errors = 0;
  for (const Case& c : {Case{KernelFault::again, "EAGAIN"},
                        {KernelFault::interrupted, "EINTR"},
                        {KernelFault::io_error, "EIO"},
                        {KernelFault::flipped, "twice"},
                        {KernelFault::misdirected, "twice"},
                        {KernelFault::stale, "twice"},
                        {KernelFault::write_error, "EIO"},
                        {KernelFault::full, "ENOSPC"},
                        {KernelFault::lost, "twice"}})
    for (const std::uint64_t first : {0u, 3u, 17u, 60u, 200u}) {
      SCOPED_TRACE(std::string(name_of(c.fault)) + " from " + std::to_string(first));
      Walk walk(options);
      bool failed = false;
      for (int s = 0; s < kSteps && !failed;) {
        KernelFaultPlan plan;
        plan.always = c.fault;
        plan.first = first;
        // A lost write is noticed when it is read, so the walk goes on over it.
        std::vector<float> outputs;
        Status done{};
        {
          KernelFaults faults(plan);
          for (; s < kSteps; ++s) {
            done = walk.step(s, &outputs);
            if (!done) break;
            ASSERT_TRUE(same(outputs, right.outputs[static_cast<std::size_t>(s)])) << "step " << s;
          }
          const KernelFaultCounts counts = faults.counts();
          sum.transfers += counts.transfers;
          for (std::size_t f = 0; f < kKernelFaults; ++f) sum.injected[f] += counts.injected[f];
          EXPECT_EQ(done.has_value(), counts.total() == 0) << "step " << s;
        }
        if (done) break;
        failed = true;
        ++errors;
        EXPECT_TRUE(done.error().code == ErrorCode::io || done.error().code == ErrorCode::corrupt);
        for (const char* part : {"scratch file", c.said})
          EXPECT_NE(done.error().message.find(part), std::string::npos) << done.error().message;
        EXPECT_EQ(done.error().message.find('\n'), std::string::npos);
        if (walk.held_before_step() > 0) {
          EXPECT_EQ(walk.held_bytes(), walk.held_before_step());
        }
        if (c.fault == KernelFault::lost) break;  // what was lost stays lost
        for (; s < kSteps; ++s) {
          done = walk.step(s, &outputs);
          ASSERT_TRUE(done) << done.error().message;
          ASSERT_TRUE(same(outputs, right.outputs[static_cast<std::size_t>(s)])) << "step " << s;
          ASSERT_EQ(walk.held_bytes(), right.held[static_cast<std::size_t>(s)]) << "step " << s;
        }
      }
      walk.forget_texts();
      EXPECT_EQ(walk.held_bytes(), right.held_at_end);
      EXPECT_EQ(walk.cache().usage().total("disk"), 0u);
    }
  print("faults that stay", GetParam(), sum);
  std::printf("%d of them ended a step\n", errors);
  EXPECT_GE(errors, 30);
}

INSTANTIATE_TEST_SUITE_P(Backends, CacheFaults, ::testing::Values("uring", "threads"),
                         [](const auto& suite) { return suite.param; });

}  // namespace
}  // namespace thermocline
