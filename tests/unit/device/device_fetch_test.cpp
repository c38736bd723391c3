// A device that attends all sealed rows of a decode step, wherever they are at home: the same bits
// for every home, budget and number of threads, and as many bytes sent to it as were picked, or as
// it had no copy of. More of the latter: device_slots_test.cpp.
#include <gtest/gtest.h>
#include <unistd.h>

#include <string>
#include <utility>
#include <vector>

#include "runtime/kv_cache.h"
#include "tests/support/temporary_folder.h"
#include "tests/unit/device/each_device.h"
#include "tests/unit/device/fed_caches.h"

namespace thermocline {
namespace {

CacheOptions fetching(CacheOptions options) {
  options.method_overrides.push_back("place.run=fetch");
  return options;
}

CacheOptions in_host_memory(CacheOptions options) {
  options.method_overrides.push_back("place.rows=host");
  return options;
}

// Rows that fit on the device are there, and others on a disk.
CacheOptions beside_a_disk(CacheOptions options, const std::string& folder) {
  options.tiers.directory = folder;
  options.tiers.disk_bytes = std::uint64_t{256} << 20;
  return options;
}

std::uint64_t staging(const MemoryPlan& of, const char* tier) {
  return peak_of(of, tier, "staging");
}

class DeviceFetch : public EachDevice {
 protected:
  const test::TemporaryFolder folder_{"device-fetch"};
};

TEST_P(DeviceFetch, AnswersTheSameWhereverRowsAre) {
  const std::vector<std::string> int8 = {"keys.compress=int8", "values.compress=int8"};
  const std::pair<const char*, std::vector<std::string>> methods[] = {
      {"exact", {}}, {"exact", int8}, {"sketch", {}}, {"sketch", int8}, {"ladder2", {}}};
  for (const auto& [method, overrides] : methods) {
    SCOPED_TRACE(std::string(method) + (overrides.empty() ? "" : ", int8"));
    CacheOptions host = options_for(method, 1200);
    host.method_overrides = overrides;
    const CacheOptions there = fetching(on_device(host, GetParam()));
    Fed fed({host, there});
    fed.add(in_host_memory(there), 4);
    fed.add(on_disk(there, folder_.path(), 0), 1);
    fed.add(on_disk(there, folder_.path(), 100 << 10), 4);
    CacheOptions wide = in_host_memory(there);  // whose launches take more
    wide.max_timelines = 4;
    fed.add(wide, 1);
    fed.add(beside_a_disk(there, folder_.path()), 2);
    const bool chooses = std::string(method) != "exact";  // the device does
    const auto prompt = fed.advance(1090, Pass::prefill);
    std::vector<CacheReport> sealed;
    for (const auto& cache : fed.caches) sealed.push_back(cache->report());
    std::size_t other_bits = 0;
    for (int step = 0; step < 4; ++step) {
      const auto out = fed.advance(1 + step % 3, Pass::decode);
      EXPECT_LE(farthest(out[0], out[1]), fed.bound());
      other_bits += !same_bits(out[0], out[1]);
      for (std::size_t c = 2; c < out.size(); ++c)
        EXPECT_TRUE(same_bits(out[1], out[c])) << "cache " << c << ", step " << step;
    }
    EXPECT_GT(other_bits, 0u);  // it was the device that attended
    std::vector<CacheReport> moved;
    for (std::size_t c = 0; c < fed.caches.size(); ++c) {
      EXPECT_LE(farthest(prompt[0], prompt[c]), fed.prefill_bound()) << "cache " << c;
      EXPECT_TRUE(c == 0 || same_bits(prompt[1], prompt[c])) << "cache " << c;
      moved.push_back(difference(fed.caches[c]->report(), sealed[c]));
      EXPECT_EQ(moved[c].rows_read, moved[0].rows_read);
      EXPECT_EQ(moved[c].device_bytes_copied, 0u);
    }
    // What a step picks crosses, or a part of it where the rest has copies there, and nothing else.
    const std::uint64_t picked = moved[1].device_bytes_read;
    EXPECT_GT(picked, 0u);
    EXPECT_EQ(moved[0].device_bytes_fetched, 0u);
    EXPECT_EQ(moved[1].device_bytes_fetched, 0u);
    EXPECT_EQ(moved[6].device_bytes_read, picked);
    for (const std::size_t c : {2, 3, 4, 5}) {
      EXPECT_EQ(moved[c].device_bytes_fetched + moved[c].device_bytes_read, picked)
          << "cache " << c;
      EXPECT_EQ(moved[c].device_bytes_read > 0, chooses);
      EXPECT_EQ(fed.caches[c]->report().device_bytes_written > 0, chooses);
      EXPECT_EQ(moved[c].disk_bytes_read > 0, c == 3 || c == 4) << "cache " << c;
    }
    EXPECT_EQ(moved[2].host_bytes_read + moved[2].device_bytes_read, moved[0].host_bytes_read);
    EXPECT_EQ(moved[3].row_cache_hits > 0, chooses);
    EXPECT_GT(moved[4].row_cache_hits, moved[3].row_cache_hits);
    EXPECT_LT(moved[4].row_cache_misses, moved[3].row_cache_misses);
  }
}

// Some layers are at home on the device, the rows of others are sent.
TEST_P(DeviceFetch, AnswersTheSameWhicheverLayersFit) {
  CacheOptions options = options_for("exact", 1100);
  options.layers.assign(6, plain_layer(2, 2, 32, 32));
  const CacheOptions all = fetching(on_device(options, GetParam()));
  const auto home = KvCache::plan(all);
  ASSERT_TRUE(home) << home.error().message;
  CacheOptions some = all;
  some.tiers.device_bytes = home->total("device") - 1;
  Fed fed({all, some});
  fed.advance(1090, Pass::prefill);
  const CacheReport sealed[] = {fed.caches[0]->report(), fed.caches[1]->report()};
  for (int step = 0; step < 2; ++step) {
    const auto out = fed.advance(1, Pass::decode);
    EXPECT_TRUE(same_bits(out[0], out[1]));
  }
  const CacheReport one = difference(fed.caches[0]->report(), sealed[0]);
  const CacheReport other = difference(fed.caches[1]->report(), sealed[1]);
  EXPECT_GT(other.device_bytes_read, 0u);
  EXPECT_GT(other.device_bytes_fetched, 0u);
  EXPECT_EQ(other.device_bytes_read + other.device_bytes_fetched, one.device_bytes_read);
}

// Rows are kept by what queries gave them: of those that a device attended, by what it says.
TEST_P(DeviceFetch, KeepsTheSameRowsWhereverTheyAre) {
  const CacheOptions there = fetching(on_device(options_for("h2o", 700), GetParam()));
  Fed fed({there, in_host_memory(there), on_disk(there, folder_.path(), 0)});
  fed.advance(600, Pass::prefill);
  const CacheReport before = fed.caches[1]->report();
  for (int step = 0; step < 70; ++step) {
    const auto out = fed.advance(1, Pass::decode);
    EXPECT_TRUE(same_bits(out[0], out[1])) << "step " << step;
    EXPECT_TRUE(same_bits(out[0], out[2])) << "step " << step;
  }
  const CacheReport decoded = difference(fed.caches[1]->report(), before);
  EXPECT_GT(decoded.rows_sealed, 0u);
  EXPECT_GT(decoded.device_bytes_fetched, 0u);
}

// A session has its rows in its file, and a device attends them, and chooses among them, also when
// they are those of an earlier process.
TEST_P(DeviceFetch, AttendsTheRowsOfASession) {
  const std::vector<std::string> low_rank = {"keys.compress=lowrank"};
  for (const auto& [method, overrides] : std::vector<std::pair<const char*, decltype(low_rank)>>{
           {"exact", {}}, {"ladder2", {}}, {"shadowkv", {}}, {"sketch", low_rank}}) {
    SCOPED_TRACE(method);
    CacheOptions there = options_for(method, 1200);
    there.method_overrides = overrides;
    there = fetching(on_device(there, GetParam()));
    CacheOptions session = there;
    session.method_overrides.push_back("place.rows=lowest");
    session.session.path = folder_.path() + "/" + method + ".tls";
    const auto plan = KvCache::plan(session);  // of which all but a row cache will do
    ASSERT_TRUE(plan) << plan.error().message;
    session.tiers.host_bytes = plan->total("host") - peak_of(*plan, "host", "row_cache");
    Fed fed({there, session});
    const auto expect_same_steps = [&] {
      const CacheReport before[] = {fed.caches[0]->report(), fed.caches[1]->report()};
      for (int step = 0; step < 3; ++step) {
        const auto out = fed.advance(1, Pass::decode);
        EXPECT_TRUE(same_bits(out[0], out[1])) << "step " << step;
      }
      const CacheReport home = difference(fed.caches[0]->report(), before[0]);
      const CacheReport moved = difference(fed.caches[1]->report(), before[1]);
      EXPECT_GT(moved.disk_bytes_read, 0u);
      EXPECT_EQ(moved.device_bytes_fetched + moved.device_bytes_read, home.device_bytes_read);
      EXPECT_EQ(moved.device_bytes_read > 0, std::string(method) != "exact");
    };
    fed.advance(1090, Pass::prefill);
    expect_same_steps();
    fed.reopen_last(session);
    expect_same_steps();
  }
}

// More rows than are sent at a time: of one position of the step as much as two launches hold, of
// four as much as each of the two takes several times.
TEST_P(DeviceFetch, SendsInSeveralLaunchesWhatNoneHolds) {
  CacheOptions options = options_for("exact", 1600);
  options.layers = {plain_layer(8, 1, 128, 128)};
  const CacheOptions there = fetching(on_device(options, GetParam()));
  Fed fed({there, in_host_memory(there), on_disk(there, folder_.path(), 0)});
  fed.advance(1590, Pass::prefill);
  for (const std::uint32_t rows : {1u, 4u}) {
    const CacheReport before = fed.caches[1]->report();
    const auto out = fed.advance(rows, Pass::decode);
    EXPECT_TRUE(same_bits(out[0], out[1]));
    EXPECT_TRUE(same_bits(out[0], out[2]));
    const CacheReport moved = difference(fed.caches[1]->report(), before);
    constexpr std::uint64_t kLaunchBytes = std::uint64_t{4} << 20;
    EXPECT_GT(moved.device_bytes_fetched, rows * kLaunchBytes);
  }
}

// What crosses is staged in memory that was planned, in each tier, and taken before the first step.
TEST_P(DeviceFetch, TakesWhatIsPlanned) {
  CacheOptions options =
      in_host_memory(fetching(on_device(options_for("exact", 1600), GetParam())));
  const auto plan = KvCache::plan(options);
  ASSERT_TRUE(plan) << plan.error().message;
  EXPECT_GT(staging(*plan, "device"), 0u);
  EXPECT_EQ(plan->total("device"), staging(*plan, "device"));
  EXPECT_TRUE(plan->notes.empty());
  options.tiers.device_bytes = plan->total("device");
  Fed fed({options});
  fed.advance(1590, Pass::prefill);
  for (int step = 0; step < 3; ++step) {
    fed.advance(2, Pass::decode);
    for (const char* tier : {"device", "host"})
      EXPECT_EQ(staging(fed.caches[0]->usage(), tier), staging(*plan, tier));
    EXPECT_EQ(fed.caches[0]->usage().total("device"), plan->total("device"));
  }
  options.tiers.host_bytes = plan->total("host");
  EXPECT_TRUE(KvCache::plan(options));
  for (const std::string tier : {"device", "host"}) {
    CacheOptions less = options;
    (tier == "host" ? less.tiers.host_bytes : less.tiers.device_bytes) -= 1;
    const auto refused = KvCache::plan(less);
    ASSERT_FALSE(refused) << tier;
    EXPECT_EQ(refused.error().code, ErrorCode::exhausted);
    EXPECT_NE(refused.error().message.find("--kv-" + tier), std::string::npos)
        << refused.error().message;
  }
  // Where all layers are at home there nothing is to be sent, and no room is kept for it.
  CacheOptions roomy = fetching(on_device(options_for("exact", 1600), GetParam()));
  const auto all = KvCache::plan(roomy);
  ASSERT_TRUE(all) << all.error().message;
  roomy.tiers.device_bytes = all->total("device");
  const auto whole = KvCache::plan(roomy);
  ASSERT_TRUE(whole) << whole.error().message;
  EXPECT_EQ(staging(*whole, "device"), staging(*all, "device"));
  EXPECT_LT(staging(*whole, "device"), staging(*plan, "device"));
}

TEST_P(DeviceFetch, RefusesRowsThatADeviceDoesNotAttend) {
  CacheOptions options =
      in_host_memory(fetching(on_device(options_for("exact", 1600), GetParam())));
  EXPECT_TRUE(KvCache::plan(options));
  options.method_overrides.push_back("values.compress=q4_0");
  const auto refused = KvCache::plan(options);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::unsupported);
  EXPECT_NE(refused.error().message.find("values.compress = q4_0"), std::string::npos)
      << refused.error().message;
}

// Keys at low rank are attended of rows that it chose: it says why it does not choose.
TEST_P(DeviceFetch, RefusesKeysThatADeviceDoesNotRebuild) {
  const auto refusal = [&](const char* method, std::uint32_t group, const char* override) {
    CacheOptions options = fetching(on_device(options_for(method, 1600), GetParam()));
    options.layers = {plain_layer(1, group, 32, 32), plain_layer(1, group, 32, 32)};
    options.method_overrides.emplace_back(override);
    const auto refused = KvCache::plan(options);
    EXPECT_FALSE(refused);
    if (refused) return std::string();
    EXPECT_EQ(refused.error().code, ErrorCode::unsupported);
    EXPECT_NE(refused.error().message.find("keys.compress = lowrank"), std::string::npos);
    EXPECT_NE(refused.error().message.find("low rank only of rows that the device chose"),
              std::string::npos);
    return refused.error().message;
  };
  refusal("exact", 2, "keys.compress=lowrank");
  const auto expect_said = [&](const std::string& said, const std::string& why) {
    EXPECT_NE(said.find(why), std::string::npos) << said;
  };
  expect_said(refusal("xkv", 2, "place.rows=spill"), "what several layers share");
  expect_said(refusal("shadowkv", 9, "place.rows=spill"), "not 9");
  expect_said(refusal("shadowkv_int4", 2, "place.rows=spill"), "f16, int8 or q8_0");
}

// What the disk gives back that was not written there ends the step, which leaves no trace, also
// not of what was on its way already.
TEST_P(DeviceFetch, ADamagedReadIsRefusedAndTheStepCanBeDoneAgain) {
  CacheOptions options = options_for("exact", 1600);
  options.layers = {plain_layer(2, 2, 32, 32), plain_layer(8, 1, 128, 128)};
  const CacheOptions there = fetching(on_device(options, GetParam()));
  Fed fed({on_disk(there, folder_.path(), 0), there});
  fed.advance(1590, Pass::prefill);
  const auto before = fed.advance(1, Pass::decode);
  EXPECT_TRUE(same_bits(before[0], before[1]));

  const int file = open_rows_in(folder_.path());
  ASSERT_GE(file, 0);
  // Far in the last layer, of which others have been sent by then: of the first one reads are done
  // ahead.
  constexpr off_t kAt = 2 * 1536 * 128 + (5 << 20);
  std::vector<char> right(4096), wrong(4096, 'x');
  ASSERT_EQ(::pread(file, right.data(), right.size(), kAt), 4096);
  ASSERT_EQ(::pwrite(file, wrong.data(), wrong.size(), kAt), 4096);
  ASSERT_EQ(::fsync(file), 0);
  const std::uint32_t length = fed.texts[0].length();
  EXPECT_THROW(fed.advance(1, Pass::decode), std::runtime_error);
  fed.caches[0]->rollback();
  EXPECT_EQ(fed.texts[0].length(), length);
  ASSERT_EQ(::pwrite(file, right.data(), right.size(), kAt), 4096);
  ASSERT_EQ(::fsync(file), 0);
  ::close(file);
  const auto after = fed.advance(1, Pass::decode);
  EXPECT_TRUE(same_bits(after[0], after[1]));
}
INSTANTIATE_TEST_SUITE_P(Each, DeviceFetch, testing::Values("cuda"), name_of_device);

// Where nobody else attends, a method that has a device fetch is as one that does not.
TEST(DeviceFetchWithoutOne, IsTheHosts) {
  const CacheOptions none = options_for("sketch", 1200);
  Fed fed({none, fetching(none), fetching(on_device(none, "host"))});
  fed.advance(1090, Pass::prefill);
  for (int step = 0; step < 3; ++step) {
    const auto out = fed.advance(2, Pass::decode);
    EXPECT_TRUE(same_bits(out[0], out[1]));
    EXPECT_TRUE(same_bits(out[0], out[2]));
  }
  for (const auto& cache : fed.caches) EXPECT_EQ(cache->report().device_bytes_fetched, 0u);
}

}  // namespace
}  // namespace thermocline
