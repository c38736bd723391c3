// A prefill that a device attends: near the host's, and to the bit the same wherever rows are at
// home, however the text comes, and whatever went wrong before.
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "runtime/kv_cache.h"
#include "tests/support/temporary_folder.h"
#include "tests/unit/device/each_device.h"
#include "tests/unit/device/fed_caches.h"

namespace thermocline {
namespace {

CacheOptions there(const std::string& method, std::uint32_t positions,
                   const std::vector<std::string>& overrides = {}) {
  CacheOptions options = on_device(options_for(method, positions), "cuda");
  options.method_overrides = overrides;
  return options;
}

CacheOptions fetching_from(CacheOptions options, const char* home) {
  options.method_overrides.insert(options.method_overrides.end(),
                                  {"place.run=fetch", std::string("place.rows=") + home});
  return options;
}

class DevicePrefillTest : public OnAGpu {
 protected:
  CacheOptions from_a_disk(CacheOptions options, std::uint64_t cached = 0) const {
    options.method_overrides.push_back("place.run=fetch");
    return on_disk(std::move(options), folder_.path(), cached);
  }

  const test::TemporaryFolder folder_{"device-prefill"};
};

TEST_F(DevicePrefillTest, HasTheSameBitsForEveryHome) {
  const std::vector<std::string> int8 = {"keys.compress=int8", "values.compress=int8"};
  const std::vector<std::string> q8_0 = {"keys.compress=q8_0", "values.compress=raw"};
  for (const auto& overrides : {std::vector<std::string>{}, int8, q8_0}) {
    SCOPED_TRACE(overrides.empty() ? "raw" : overrides[0]);
    CacheOptions host = options_for("exact", 1000);
    host.method_overrides = overrides;
    const CacheOptions home = there("exact", 1000, overrides);
    CacheOptions beside = home;  // one of two layers there, the other one's rows near the host
    const auto plan = KvCache::plan(home);
    ASSERT_TRUE(plan) << plan.error().message;
    beside.tiers.device_bytes = plan->total("device") - 1;
    Fed fed({host, home, beside});
    fed.add(fetching_from(home, "host"), 4);
    fed.add(from_a_disk(home), 1);
    fed.add(from_a_disk(home, 100 << 10), 3);
    for (const std::uint32_t rows : {700u, 1u, 270u}) {
      std::vector<CacheReport> before;
      for (const auto& cache : fed.caches) before.push_back(cache->report());
      const auto out = fed.advance(rows, Pass::prefill);
      EXPECT_LE(farthest(out[0], out[1]), fed.prefill_bound());
      EXPECT_FALSE(same_bits(out[0], out[1]));  // it was the device
      for (std::size_t c = 2; c < out.size(); ++c)
        EXPECT_TRUE(same_bits(out[1], out[c])) << "cache " << c << ", " << rows << " rows";
      for (std::size_t c = 1; c < out.size(); ++c) {
        const CacheReport moved = difference(fed.caches[c]->report(), before[c]);
        EXPECT_GT(moved.device_bytes_fetched, 0u);  // new rows, at least
        EXPECT_EQ(moved.device_bytes_copied, 0u);
        if (before[c].rows_sealed == 0) continue;
        const bool all_there = c == 1, some = all_there || c == 2;
        EXPECT_EQ(moved.device_bytes_read > 0, some) << "cache " << c;
        if (c == 2 || c == 3) {
          EXPECT_GT(moved.host_bytes_read, 0u) << "cache " << c;
        }
        EXPECT_EQ(moved.disk_bytes_read > 0, c >= 4) << "cache " << c;
      }
    }
    EXPECT_LT(fed.prefill_bound(), 0.2);  // it says something
  }
}

// As the host's: under `exact`, whose segments are cut where folds are, and of raw rows.
TEST_F(DevicePrefillTest, BitsDependOnNoCall) {
  const auto read = [&](const CacheOptions& options, const std::vector<std::uint32_t>& calls) {
    auto made = KvCache::create(options, 2, test::float_isa());
    EXPECT_TRUE(made) << made.error().message;
    Timeline text = std::move(*(*made)->start());
    // Each layer's rows one after the other, whatever the call.
    std::vector<std::vector<float>> out(options.layers.size());
    for (const std::uint32_t count : calls) {
      std::vector<Token> rows;
      for (std::uint32_t r = 0; r < count; ++r) rows.push_back({text.id(), text.length() + r});
      Fed::check((*made)->begin(rows, Pass::prefill));
      for (std::uint32_t l = 0; l < options.layers.size(); ++l) {
        const LayerSpec& spec = options.layers[l];
        const auto floats = [&](std::size_t cols, std::uint32_t salt) {
          std::vector<float> all(count * cols);
          for (std::size_t i = 0; i < all.size(); ++i) {
            std::uint32_t x =
                static_cast<std::uint32_t>(rows[0].position * cols + i) * 2654435761u +
                salt * 40503u;
            x ^= x >> 15;
            x *= 2246822519u;
            all[i] = static_cast<float>(x >> 8) / static_cast<float>(1 << 23) - 1.0f;
          }
          return all;
        };
        const std::size_t k_cols = std::size_t{spec.kv_heads} * spec.key_dim;
        const std::size_t v_cols = std::size_t{spec.kv_heads} * spec.value_dim;
        const std::size_t q_cols = std::size_t{spec.q_heads} * spec.key_dim;
        const std::size_t out_cols = std::size_t{spec.q_heads} * spec.value_dim;
        const auto k = floats(k_cols, 3 * l), v = floats(v_cols, 3 * l + 1);
        const auto q = floats(q_cols, 3 * l + 2);
        std::vector<float> some(count * out_cols);
        Fed::check(
            (*made)->append(LayerId{l}, {k.data(), count, k_cols}, {v.data(), count, v_cols}));
        Fed::check(
            (*made)->attend(LayerId{l}, {q.data(), count, q_cols}, {some.data(), count, out_cols}));
        out[l].insert(out[l].end(), some.begin(), some.end());
      }
      Fed::check((*made)->commit());
    }
    return out;
  };
  for (const char* home : {"device", "host"}) {
    SCOPED_TRACE(home);
    const bool fetched = std::string(home) == "host";
    const CacheOptions options =
        fetched ? fetching_from(there("exact", 1500), home) : there("exact", 1500);
    const auto at_once = read(options, {1440});
    EXPECT_EQ(read(options, {700, 740}), at_once);
    EXPECT_EQ(read(options, {3, 60, 1, 1000, 376}), at_once);
  }
}

// A fork reads on, and so do a text that was cut, and one that comes from a session's file.
TEST_F(DevicePrefillTest, FollowsForksCutsAndSessions) {
  CacheOptions options = there("sketch", 1200, {"place.run=fetch"});
  options.layers.erase(options.layers.begin() + 1);  // whose window could not be cut
  CacheOptions session = options;
  session.method_overrides.push_back("place.rows=lowest");
  session.session.path = folder_.path() + "/text.tls";
  Fed fed({options, session});
  fed.advance(600, Pass::prefill);
  {
    std::vector<Timeline> forks;
    for (const Timeline& text : fed.texts) forks.push_back(std::move(*text.fork()));
    std::swap(forks, fed.texts);
    const auto of_forks = fed.advance(200, Pass::prefill);
    EXPECT_TRUE(same_bits(of_forks[0], of_forks[1]));
    std::swap(forks, fed.texts);
  }
  const auto on = fed.advance(150, Pass::prefill);
  EXPECT_TRUE(same_bits(on[0], on[1]));
  for (Timeline& text : fed.texts) Fed::check(text.truncate(520));
  const auto cut = fed.advance(150, Pass::prefill);
  EXPECT_TRUE(same_bits(cut[0], cut[1]));

  fed.reopen_last(session);
  const auto further = fed.advance(150, Pass::prefill);
  EXPECT_TRUE(same_bits(further[0], further[1]));
  const auto step = fed.advance(1, Pass::decode);
  EXPECT_TRUE(same_bits(step[0], step[1]));
}

// Texts of their own see what is theirs.
TEST_F(DevicePrefillTest, ReadsTextsAlone) {
  Fed fed({options_for("exact", 900), there("exact", 900)});
  fed.advance(300, Pass::prefill);
  const auto alone = fed.advance(350, Pass::alone);
  EXPECT_LE(farthest(alone[0], alone[1]), fed.prefill_bound());
  const auto after = fed.advance(40, Pass::prefill);
  EXPECT_LE(farthest(after[0], after[1]), fed.prefill_bound());
}

// Methods that count what a prefill gave to which row do so on the host, and keep the same.
TEST_F(DevicePrefillTest, VotesAreTheHosts) {
  for (const char* method : {"h2o", "snapkv"}) {
    SCOPED_TRACE(method);
    Fed fed({options_for(method, 900), there(method, 900)});
    for (const std::uint32_t rows : {500u, 300u}) {
      const auto read = fed.advance(rows, Pass::prefill);
      EXPECT_LE(farthest(read[0], read[1]), fed.prefill_bound());
    }
    const auto step = fed.advance(1, Pass::decode);
    EXPECT_LE(farthest(step[0], step[1]), fed.bound());
  }
}

// A page that is damaged ends the call, and nothing of it is left.
TEST_F(DevicePrefillTest, ADamagedReadCanBeDoneAgain) {
  const CacheOptions home = there("exact", 1200);
  const CacheOptions elsewhere = from_a_disk(home);
  Fed fed({home, elsewhere});
  fed.advance(700, Pass::prefill);
  const int rows = open_rows_in(folder_.path());
  ASSERT_GE(rows, 0);
  std::vector<char> good(4096), bad(4096, 0x5a);
  ASSERT_EQ(::pread(rows, good.data(), good.size(), 0), 4096);
  ASSERT_EQ(::pwrite(rows, bad.data(), bad.size(), 0), 4096);
  KvCache& cache = *fed.caches[1];
  const Token next{fed.texts[1].id(), fed.texts[1].length()};
  Fed::check(cache.begin({&next, 1}, Pass::prefill));
  const LayerSpec& spec = elsewhere.layers[0];
  const std::vector<float> k(spec.kv_heads * spec.key_dim, 0.5f);
  const std::vector<float> q(spec.q_heads * spec.key_dim, 0.5f);
  std::vector<float> out(spec.q_heads * spec.value_dim);
  Fed::check(cache.append(LayerId{0}, {k.data(), 1, k.size()}, {k.data(), 1, k.size()}));
  const Status read =
      cache.attend(LayerId{0}, {q.data(), 1, q.size()}, {out.data(), 1, out.size()});
  ASSERT_FALSE(read);
  EXPECT_EQ(read.error().code, ErrorCode::corrupt);
  cache.rollback();
  ASSERT_EQ(::pwrite(rows, good.data(), good.size(), 0), 4096);
  ::close(rows);
  const auto again = fed.advance(300, Pass::prefill);
  EXPECT_TRUE(same_bits(again[0], again[1]));
}

// What it works in is planned, in both memories, and what does not fit is said.
TEST_F(DevicePrefillTest, IsPlanned) {
  CacheOptions options = there("exact", 4000);
  const auto long_spans = KvCache::plan(options);
  ASSERT_TRUE(long_spans) << long_spans.error().message;
  options.course = Course{.reads = {1000, 2000, 3000, 4000}};
  const auto short_spans = KvCache::plan(options);
  ASSERT_TRUE(short_spans) << short_spans.error().message;
  // Queries and states of 3,000 rows less: 6 heads of 64 channels.
  const std::uint64_t of_row = 6 * (64 * 2 + 16 + (64 + 2) * sizeof(float));
  EXPECT_GT(peak_of(*long_spans, "device", "staging"),
            peak_of(*short_spans, "device", "staging") + 3000 * of_row - 64 * of_row);
  // And the host has none for it.
  const auto host = KvCache::plan(options_for("exact", 4000));
  ASSERT_TRUE(host) << host.error().message;
  EXPECT_LT(peak_of(*long_spans, kWorkspace, "attention") + 3000 * of_row,
            peak_of(*host, kWorkspace, "attention"));

  Fed fed({options});
  fed.advance(1000, Pass::prefill);
  const MemoryPlan usage = fed.caches[0]->usage();
  for (const char* tier : {"device", "host"})
    EXPECT_EQ(peak_of(usage, tier, "staging"), peak_of(*short_spans, tier, "staging"));
  EXPECT_LE(peak_of(usage, kWorkspace, "attention"),
            peak_of(*short_spans, kWorkspace, "attention"));
  expect_the_least_is_said(options);
}

// A call that is longer than any that was planned has the same bits.
TEST_F(DevicePrefillTest, TakesMoreThanWasPlanned) {
  const CacheOptions options = there("exact", 1200);
  CacheOptions short_calls = options;
  short_calls.course = Course{.reads = {200, 350}};
  Fed fed({options, short_calls});
  for (const std::uint32_t rows : {650u, 130u, 201u}) {
    const auto out = fed.advance(rows, Pass::prefill);
    EXPECT_TRUE(same_bits(out[0], out[1]));
  }
}

// A text that stays in the tail is the host's, whatever device there is: nothing is planned for it.
TEST_F(DevicePrefillTest, WithoutAPartForTheDeviceItIsTheHosts) {
  const CacheOptions host = options_for("exact", 300);
  Fed fed({host, on_device(host, "cuda")});
  EXPECT_EQ(peak_of(fed.caches[1]->usage(), "device", "staging"), 0u);
  const auto read = fed.advance(200, Pass::prefill);
  EXPECT_TRUE(same_bits(read[0], read[1]));
  EXPECT_FALSE(fed.caches[1]->notes().empty());
}

// A layer whose heads it does not take is the host's, and that is said.
TEST_F(DevicePrefillTest, LayersThatItDoesNotTakeAreTheHosts) {
  CacheOptions options = there("exact", 1200);
  options.layers.push_back(plain_layer(1, 2, 288, 288, 100));
  CacheOptions host = options_for("exact", 1200);
  host.layers = options.layers;
  Fed fed({host, options});
  const auto notes = fed.caches[1]->notes();
  EXPECT_TRUE(std::ranges::any_of(notes, [](const std::string& note) {
    return note.find(
               "the host attends a prefill of some layers: CUDA attention takes head sizes "
               "of 16 to 256") != std::string::npos;
  }));
  const auto read = fed.advance(1000, Pass::prefill);
  EXPECT_LE(farthest(read[0], read[1]), fed.prefill_bound());
  const std::size_t last = 1000 * 2 * 288;  // its outputs
  EXPECT_TRUE(std::equal(read[0].end() - last, read[0].end(), read[1].end() - last));
}

}  // namespace
}  // namespace thermocline
