// Whole steps of a cache whose disk is in trouble: what passes changes no bit of an answer; what
// stays is an error after which the step can be done again; and nothing is left behind.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/faults/cache_walk.h"
#include "tests/faults/kernel_faults.h"

namespace thermocline {
namespace {

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
      const Undisturbed right = walk_undisturbed(options);
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
  const Undisturbed right = walk_undisturbed(options);
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
