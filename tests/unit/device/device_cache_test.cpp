// A cache whose sealed rows are at home on a device, against one in host memory that was fed the
// same: to the bit where host memory stands in, within a computed bound where a GPU attends them,
// in a prefill as in a decode step.
#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "kernels/device.h"
#include "runtime/kv_cache.h"
#include "tests/unit/device/each_device.h"
#include "tests/unit/device/fed_caches.h"

namespace thermocline {
namespace {

class DeviceCache : public EachDevice {};

TEST_P(DeviceCache, AttendsWithinTheBoundOfTheHosts) {
  const std::vector<std::string> int8 = {"keys.compress=int8", "values.compress=int8"};
  // Of so many rows no two are so nearly tied for the last place that a device takes the other one:
  // where it does is for device_choice_test.cpp.
  const std::string untied = "select.min_rows=65";
  const std::pair<const char*, std::vector<std::string>> methods[] = {
      {"exact", {}},
      {"exact", int8},
      {"exact", {"keys.compress=q8_0", "values.compress=q8_0"}},
      {"sketch", {untied}},
      {"sketch", {"keys.compress=int8", untied}}};
  for (const auto& [method, overrides] : methods) {
    SCOPED_TRACE(std::string(method) + (overrides.empty() ? "" : ", " + overrides[0]));
    CacheOptions host = options_for(method, 1600);
    host.method_overrides = overrides;
    Fed fed({host, on_device(host, GetParam())});
    const auto prompt = fed.advance(1200, Pass::prefill);
    const CacheReport sealed = fed.caches[1]->report();
    EXPECT_LE(farthest(prompt[0], prompt[1]), fed.prefill_bound());
    EXPECT_EQ(same_bits(prompt[0], prompt[1]), !is_gpu());
    std::size_t other_bits = 0;
    for (int step = 0; step < 6; ++step) {
      const auto out = fed.advance(1 + step % 2, Pass::decode);
      EXPECT_LE(farthest(out[0], out[1]), fed.bound());
      other_bits += !same_bits(out[0], out[1]);
    }
    EXPECT_LT(fed.bound(), 2e-3);  // it says something
    EXPECT_LT(fed.prefill_bound(), 0.2);
    EXPECT_EQ(other_bits > 0, is_gpu());
    const CacheReport decoded = difference(fed.caches[1]->report(), sealed);
    const CacheReport of_host = fed.caches[0]->report();
    EXPECT_GT(decoded.device_bytes_read, 0u);
    EXPECT_EQ(decoded.device_bytes_copied, 0u);  // what a step reads there stays there
    EXPECT_EQ(of_host.device_bytes_read, 0u);
    EXPECT_EQ(fed.caches[1]->report().rows_read, of_host.rows_read);
    EXPECT_EQ(fed.caches[1]->report().host_bytes_read + fed.caches[1]->report().device_bytes_read,
              of_host.host_bytes_read);
    EXPECT_EQ(sealed.device_bytes_written > 0, is_gpu());
    // The next prefill reads them there as well; what lies elsewhere is sent, queries go over and
    // results come back.
    const CacheReport before = fed.caches[1]->report();
    const auto more = fed.advance(40, Pass::prefill);
    const CacheReport read = difference(fed.caches[1]->report(), before);
    EXPECT_GT(read.device_bytes_read, 0u);
    EXPECT_EQ(read.device_bytes_copied, 0u);
    EXPECT_EQ(read.device_bytes_fetched > 0, is_gpu());
    EXPECT_EQ(read.device_bytes_exchanged > 0, is_gpu());
    EXPECT_LE(farthest(more[0], more[1]), fed.prefill_bound());
    EXPECT_EQ(same_bits(more[0], more[1]), !is_gpu());
  }
}

// As much is taken as was planned, in each tier.
TEST_P(DeviceCache, TakesWhatIsPlanned) {
  const CacheOptions options = on_device(options_for("exact", 1600), GetParam());
  const auto plan = KvCache::plan(options);
  ASSERT_TRUE(plan) << plan.error().message;
  Fed fed({options});
  fed.advance(1590, Pass::prefill);
  fed.advance(1, Pass::decode);
  const MemoryPlan usage = fed.caches[0]->usage();
  EXPECT_EQ(peak_of(usage, "device", "staging"), peak_of(*plan, "device", "staging"));
  EXPECT_EQ(peak_of(usage, "host", "staging"), peak_of(*plan, "host", "staging"));
  EXPECT_EQ(peak_of(usage, "device", "staging") > 0, is_gpu());
  EXPECT_EQ(peak_of(usage, "host", "staging") > 0, is_gpu());
  EXPECT_GT(peak_of(usage, "device", "rows"), 0u);
  EXPECT_LE(peak_of(usage, "device", "rows"), peak_of(*plan, "device", "rows"));
}

// Only whole layers fit, and what a device works in has to as well.
TEST_P(DeviceCache, HasTheLayersThatFit) {
  const CacheOptions host = options_for("exact", 1600);
  CacheOptions options = on_device(host, GetParam());
  const auto all = KvCache::plan(options);
  ASSERT_TRUE(all) << all.error().message;
  options.tiers.device_bytes = all->total("device") - 1;
  const auto some = KvCache::plan(options);
  ASSERT_TRUE(some) << some.error().message;
  EXPECT_LT(some->total("device"), all->total("device"));
  EXPECT_GT(some->total("device"), 0u);
  Fed fed({host, options});
  fed.advance(1200, Pass::prefill);
  const auto out = fed.advance(1, Pass::decode);
  EXPECT_LE(farthest(out[0], out[1]), fed.bound());
  EXPECT_GT(fed.caches[1]->report().device_bytes_read, 0u);
  expect_the_least_is_said(options);
}

// A fold has the same bits whatever is attended with it: a step of more rows than there are
// timelines takes several launches where one was planned for.
TEST_P(DeviceCache, BitsDependOnNoLaunch) {
  const CacheOptions narrow = on_device(options_for("exact", 1600), GetParam());
  CacheOptions wide = narrow;
  wide.max_timelines = 8;
  Fed fed({narrow, wide});
  fed.advance(1100, Pass::prefill);
  const auto out = fed.advance(8, Pass::decode);
  EXPECT_TRUE(same_bits(out[0], out[1]));
}

// What the host wants of rows there, to show, cut, copy and seal them anew, is copied back.
TEST_P(DeviceCache, GivesRowsBack) {
  CacheOptions host = options_for("exact", 1600);
  host.layers.erase(host.layers.begin() + 1);  // whose window could not be cut
  const CacheOptions there = on_device(host, GetParam());
  Fed fed({host, there, there});
  fed.advance(1200, Pass::prefill);
  const auto rows_of = [&](KvCache& cache, const Timeline& text) {
    std::vector<float> all;
    for (const std::uint32_t l : {0u, 1u}) {
      const LayerSpec& spec = cache.layers()[l];
      const std::size_t cols = std::size_t{spec.kv_heads} * spec.key_dim, n = text.length();
      std::vector<float> keys(n * cols), values(n * cols);
      Fed::check(cache.read(text, LayerId{l}, 0, {keys.data(), n, cols}, {values.data(), n, cols}));
      all.insert(all.end(), keys.begin(), keys.end());
      all.insert(all.end(), values.begin(), values.end());
    }
    return all;
  };
  const auto whole = rows_of(*fed.caches[0], fed.texts[0]);
  EXPECT_TRUE(same_bits(whole, rows_of(*fed.caches[1], fed.texts[1])));
  {
    const Timeline fork = std::move(*fed.texts[1].fork());
    EXPECT_TRUE(same_bits(whole, rows_of(*fed.caches[1], fork)));
    Timeline copy = std::move(*fed.caches[0]->start());
    Fed::check(fed.caches[0]->copy(fork, copy));
    EXPECT_TRUE(same_bits(whole, rows_of(*fed.caches[0], copy)));
  }
  // A step that is given up leaves all as it was.
  const Token next{fed.texts[1].id(), fed.texts[1].length()};
  Fed::check(fed.caches[1]->begin({&next, 1}, Pass::decode));
  fed.caches[1]->rollback();
  for (Timeline& text : fed.texts) Fed::check(text.truncate(703));
  const auto cut = rows_of(*fed.caches[0], fed.texts[0]);
  EXPECT_TRUE(same_bits(cut, rows_of(*fed.caches[1], fed.texts[1])));
  const auto on = fed.advance(100, Pass::prefill);
  EXPECT_LE(farthest(on[0], on[1]), fed.prefill_bound());
  EXPECT_TRUE(same_bits(on[1], on[2]));
  const auto step = fed.advance(1, Pass::decode);
  EXPECT_LE(farthest(step[0], step[1]), fed.bound());
  EXPECT_TRUE(same_bits(step[1], step[2]));
}

TEST_P(DeviceCache, RefusesWhatADeviceDoesNotAttend) {
  const auto refusal = [](const std::vector<std::string>& overrides) {
    CacheOptions options = on_device(options_for("exact", 1600), GetParam());
    options.method_overrides = overrides;
    const auto plan = KvCache::plan(options);
    return plan ? std::string() : plan.error().message;
  };
  EXPECT_EQ(refusal({"keys.compress=int8", "values.compress=q8_0"}), "");
  const std::string said = refusal({"keys.compress=q4_0", "values.compress=kivi2"});
  if (!is_gpu()) {
    EXPECT_EQ(said, "");
    return;
  }
  EXPECT_EQ(
      said,
      "--device cuda with keys.compress = q4_0, values.compress = kivi2: CUDA attention takes "
      "rows in f16, int8 or q8_0, and as rotated codes only values whose scores are given: "
      "change those, or leave --device out");
  EXPECT_NE(refusal({"values.compress=bf16"}), "");
  EXPECT_NE(refusal({"place.rows=host"}).find("place.rows=spill"), std::string::npos);
}

TEST_P(DeviceCache, IsRefusedWithoutASize) {
  CacheOptions options = options_for("exact", 1600);
  options.tiers.device = GetParam();
  const auto none = KvCache::plan(options);
  ASSERT_FALSE(none);
  EXPECT_NE(none.error().message.find("--kv-device"), std::string::npos) << none.error().message;
  options.tiers.device_bytes = kAutoBytes;
  const auto automatic = KvCache::plan(options);
  ASSERT_EQ(automatic.has_value(), is_gpu());
  if (is_gpu()) {
    EXPECT_GT(automatic->total("device"), 0u);
    options.tiers.device = "cuda:9999";
    const auto far = KvCache::plan(options);
    ASSERT_FALSE(far);
    EXPECT_EQ(far.error().code, ErrorCode::not_found);
    EXPECT_NE(far.error().message.find("--device cuda:9999: this machine has "), std::string::npos)
        << far.error().message;
  }
}
THERMOCLINE_EACH_DEVICE(DeviceCache);

}  // namespace
}  // namespace thermocline
