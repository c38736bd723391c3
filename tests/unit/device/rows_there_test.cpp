// Decode steps whose rows stay on the device that computes their layers: what they give, against
// layers there whose rows the host attends, and against themselves with rows elsewhere.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "runtime/observer.h"
#include "runtime/thermocline.h"
#include "tests/support/float_table.h"
#include "tests/support/temporary_folder.h"
#include "tests/unit/device/each_device.h"

namespace thermocline {
namespace {

constexpr std::uint32_t kAll = 1000;  // more layers than any has
constexpr std::uint32_t kPositions = 700;
constexpr double kBound = 0.01;  // of logits' size, as in layers_on_device_test.cpp

using Logits = std::vector<float>;

template <typename T>
T checked(Result<T> made) {
  if (!made) throw std::runtime_error(made.error().message);
  return *std::move(made);
}
void check(const Status& status) {
  if (!status) throw std::runtime_error(status.error().message);
}

std::unique_ptr<Engine> open(const std::string& model, std::uint32_t device_layers = kAll) {
  EngineOptions options;
  options.model_path = "tests/golden/tiny/" + model;
  options.threads = 2;
  options.isa = test::float_isa();
  options.device_layers = device_layers;
  return checked(Engine::open(options));
}

CacheOptions host_options(const std::string& method, std::vector<std::string> overrides = {}) {
  CacheOptions options;
  options.method = method;
  options.method_directory = "configs/methods";
  options.method_overrides = {"steady.recent=40", "steady.seal=64"};
  options.method_overrides.insert(options.method_overrides.end(), overrides.begin(),
                                  overrides.end());
  options.max_positions = kPositions;
  options.max_timelines = 3;
  return options;
}

CacheOptions there(CacheOptions options, std::uint64_t bytes = std::uint64_t{64} << 20) {
  options.tiers.device = "cuda";
  options.tiers.device_bytes = bytes;
  return options;
}

bool all_stay(const KvCache& cache) {
  for (std::uint32_t l = 0; l < cache.layers().size(); ++l)
    if (!cache.stays_there(LayerId{l})) return false;
  return true;
}

std::vector<int> random_tokens(const Engine& engine, std::size_t count, unsigned seed = 11) {
  std::mt19937 random(seed);
  std::vector<int> tokens(count);
  for (int& token : tokens) token = static_cast<int>(random() % engine.model().vocabulary);
  return tokens;
}

Logits read(Engine& engine, Timeline& text, std::span<const int> tokens) {
  Logits logits(engine.model().vocabulary);
  check(engine.prefill(text, tokens, logits, {}));
  return logits;
}

// The logits after each token, one step each.
std::vector<Logits> decode(Engine& engine, Timeline& text, std::span<const int> tokens) {
  std::vector<Logits> all;
  for (const int token : tokens) {
    all.emplace_back(engine.model().vocabulary);
    const Feed feed{&text, token};
    check(engine.step({&feed, 1}, {all.back().data(), 1, all.back().size()}));
  }
  return all;
}

void expect_near(const std::vector<Logits>& got, const std::vector<Logits>& want) {
  ASSERT_EQ(got.size(), want.size());
  for (std::size_t i = 0; i < got.size(); ++i) {
    double squares = 0;
    for (const float x : want[i]) squares += double{x} * double{x};
    const double bound = kBound * std::sqrt(squares / static_cast<double>(want[i].size()));
    for (std::size_t v = 0; v < want[i].size(); ++v)
      ASSERT_NEAR(got[i][v], want[i][v], bound) << "step " << i << ", token " << v;
  }
}

// With how few of a device's bytes these are planned, but for some; without more it is exhausted.
std::uint64_t least_bytes(const Engine& engine, CacheOptions options) {
  std::uint64_t refused = 0, least = options.tiers.device_bytes;
  while (least - refused > 256) {
    options.tiers.device_bytes = (least + refused) / 2;
    const auto plan = engine.plan(options);
    EXPECT_TRUE(plan || plan.error().code == ErrorCode::exhausted) << plan.error().message;
    (plan ? least : refused) = options.tiers.device_bytes;
  }
  return least;
}

class RowsThereTest : public OnAGpu {};

// Every architecture: rotary embeddings of either kind and of a part of a head, biases, norms, keys
// that are balanced, windows, one KV head and several. All rows are read, so that no tie decides.
TEST_F(RowsThereTest, GiveWhatTheHostGives) {
  const std::vector<std::string> all = {"select.min_rows=5000"};
  for (const auto& [model, method, overrides] :
       {std::tuple("llama_f32.gguf", "sketch", all), std::tuple("llama_mixed.gguf", "sketch", all),
        std::tuple("llama_mixed.gguf", "quest", all),
        std::tuple("llama_mixed.gguf", "exact", std::vector<std::string>()),
        std::tuple("llama_mixed.gguf", "streaming", std::vector<std::string>()),
        std::tuple("llama3_f16.gguf", "quest", all), std::tuple("qwen2_bf16.gguf", "sketch", all),
        std::tuple("qwen3_q8_0.gguf", "sketch", all), std::tuple("gemma3_f16.gguf", "sketch", all),
        std::tuple("gemma3_scaled_q4_0.gguf", "streaming", std::vector<std::string>())}) {
    SCOPED_TRACE(std::string(model) + ", " + method);
    const auto engine = open(model);
    const CacheOptions options = host_options(method, overrides);
    const auto host = checked(engine->open_cache(options));
    const auto device = checked(engine->open_cache(there(options)));
    EXPECT_FALSE(host->stays_there(LayerId{0}));
    EXPECT_TRUE(all_stay(*device));
    Timeline here = checked(host->start()), on = checked(device->start());
    const auto tokens = random_tokens(*engine, 180);
    // What is read before is copied, so that what they attend is the same, where it can be.
    const std::size_t read_first = std::string(method) == "streaming" ? 0 : 115;
    if (read_first > 0) {
      read(*engine, on, std::span(tokens).first(read_first));
      check(host->copy(on, here));
    }
    const CacheReport before[] = {host->report(), device->report()};
    const auto rest = std::span(tokens).subspan(read_first);  // one sealed already
    const auto want = decode(*engine, here, rest);
    expect_near(decode(*engine, on, rest), want);
    const CacheReport of_host = difference(host->report(), before[0]);
    const CacheReport of_device = difference(device->report(), before[1]);
    EXPECT_EQ(of_device.rows_read, of_host.rows_read);
    EXPECT_EQ(of_device.rows_held, of_host.rows_held);
    EXPECT_EQ(of_device.rows_sealed, of_host.rows_sealed);
    EXPECT_EQ(of_device.device_bytes_read, of_host.host_bytes_read);
    EXPECT_EQ(of_device.host_bytes_read, 0u);
    EXPECT_EQ(of_device.select_ms, 0.0);
  }
}

// A text from its first token on: the sinks come one by one.
TEST_F(RowsThereTest, BeginATextAtItsFirstToken) {
  const auto engine = open("llama_mixed.gguf");
  const CacheOptions options = host_options("sketch", {"select.min_rows=5000"});
  const auto host = checked(engine->open_cache(options));
  const auto device = checked(engine->open_cache(there(options)));
  Timeline here = checked(host->start()), on = checked(device->start());
  const auto tokens = random_tokens(*engine, 120);
  expect_near(decode(*engine, on, tokens), decode(*engine, here, tokens));
}

// Where a method has the device fetch, an answer is the same to the bit wherever rows are at home,
// and on the disk the host goes between.
TEST_F(RowsThereTest, NoHomeOfRowsChangesABit) {
  test::TemporaryFolder folder("rows-there");
  for (const char* method : {"sketch", "ladder2", "shadowkv"}) {
    SCOPED_TRACE(method);
    const auto engine = open("llama_mixed.gguf");
    const CacheOptions options =
        host_options(method, {"place.run=fetch", "select.share=0.2", "select.min_rows=40"});
    const auto on_device = checked(engine->open_cache(there(options)));
    CacheOptions elsewhere = there(options);
    elsewhere.method_overrides.push_back("place.rows=lowest");
    const auto in_memory = checked(engine->open_cache(elsewhere));
    elsewhere.tiers.disk_bytes = std::uint64_t{64} << 20;
    elsewhere.tiers.directory = folder.path();
    const auto on_disk = checked(engine->open_cache(elsewhere));
    const auto tokens = random_tokens(*engine, 300);
    std::vector<std::vector<Logits>> seen;
    std::vector<CacheReport> moved;
    for (KvCache* cache : {on_device.get(), in_memory.get(), on_disk.get()}) {
      EXPECT_TRUE(all_stay(*cache));
      Timeline text = checked(cache->start());
      read(*engine, text, std::span(tokens).first(250));
      const CacheReport before = cache->report();
      seen.push_back(decode(*engine, text, std::span(tokens).subspan(250)));
      moved.push_back(difference(cache->report(), before));
    }
    EXPECT_EQ(seen[1], seen[0]);
    EXPECT_EQ(seen[2], seen[0]);
    EXPECT_EQ(moved[0].device_bytes_fetched, 0u);
    EXPECT_GT(moved[1].device_bytes_fetched, 0u);
    EXPECT_GT(moved[1].row_cache_hits, 0u);
    EXPECT_GT(moved[2].disk_bytes_read, 0u);
    EXPECT_EQ(moved[1].rows_read, moved[0].rows_read);
    EXPECT_EQ(moved[2].rows_read, moved[0].rows_read);
    // Nor does the least that a device may be given: rows stay with that too.
    CacheOptions least = there(options, least_bytes(*engine, there(options)));
    const auto small = checked(engine->open_cache(least));
    EXPECT_TRUE(all_stay(*small));
    Timeline text = checked(small->start());
    read(*engine, text, std::span(tokens).first(250));
    EXPECT_EQ(decode(*engine, text, std::span(tokens).subspan(250)), seen[0]);
  }
}

// Several texts, and several rows of one, in a step; more of them than there are timelines, so that
// choosing is done in parts.
TEST_F(RowsThereTest, ARowHasTheBitsThatItHasAlone) {
  for (const char* run : {"place.run=near", "place.run=fetch"}) {
    const auto engine = open("llama_mixed.gguf");
    CacheOptions options = there(host_options("sketch", {run, "select.share=0.2"}));
    if (std::string(run).ends_with("fetch"))
      options.method_overrides.push_back("place.rows=lowest");
    const auto cache = checked(engine->open_cache(options));
    const std::size_t vocabulary = engine->model().vocabulary;
    const std::size_t lengths[] = {30, 260, 400};
    std::vector<std::vector<Logits>> alone;
    for (unsigned t = 0; t < 3; ++t) {
      Timeline text = checked(cache->start());
      read(*engine, text, random_tokens(*engine, lengths[t], t));
      alone.push_back(decode(*engine, text, random_tokens(*engine, 8, 10 + t)));
    }
    std::vector<Timeline> texts;
    std::vector<Feed> feeds;
    std::vector<std::vector<int>> tokens;
    for (unsigned t = 0; t < 3; ++t) {
      texts.push_back(checked(cache->start()));
      read(*engine, texts.back(), random_tokens(*engine, lengths[t], t));
      tokens.push_back(random_tokens(*engine, 8, 10 + t));
    }
    for (std::size_t first = 0; first < 8; first += 4) {  // four rows of each together
      feeds.clear();
      for (std::size_t i = first; i < first + 4; ++i)
        for (std::size_t t = 0; t < 3; ++t) feeds.push_back({&texts[t], tokens[t][i]});
      Logits logits(feeds.size() * vocabulary);
      check(engine->step(feeds, {logits.data(), feeds.size(), vocabulary}));
      for (std::size_t f = 0; f < feeds.size(); ++f)
        EXPECT_TRUE(std::equal(alone[f % 3][first + f / 3].begin(),
                               alone[f % 3][first + f / 3].end(),
                               logits.begin() + static_cast<std::ptrdiff_t>(f * vocabulary)))
            << run << ", row " << f;
    }
  }
}

// What is on the device follows what the host does to a text: reads on, forks, cuts, begins anew.
TEST_F(RowsThereTest, TailsFollowTheirTexts) {
  for (const char* model : {"llama_mixed.gguf", "gemma3_f16.gguf"}) {
    SCOPED_TRACE(model);
    const auto engine = open(model);
    const auto cache = checked(engine->open_cache(there(host_options("sketch"))));
    ASSERT_TRUE(all_stay(*cache));
    const auto prompt = random_tokens(*engine, 200), more = random_tokens(*engine, 30, 2),
               rest = random_tokens(*engine, 12, 3), other = random_tokens(*engine, 12, 4);
    // With nothing there before: the text is read, and that is what its steps find.
    const auto fresh = [&](const std::vector<std::span<const int>>& parts) {
      const auto anew = checked(engine->open_cache(there(host_options("sketch"))));
      Timeline text = checked(anew->start());
      read(*engine, text, prompt);
      std::vector<Logits> last;
      for (const auto& part : parts) {
        if (part.data() == more.data())
          read(*engine, text, part);
        else
          last = decode(*engine, text, part);
      }
      return last;
    };
    Timeline text = checked(cache->start());
    read(*engine, text, prompt);
    decode(*engine, text, other);
    read(*engine, text, more);  // behind rows that steps have left there
    EXPECT_EQ(decode(*engine, text, rest), fresh({other, more, rest}));
    Timeline fork = checked(text.fork());
    const auto on = decode(*engine, text, other);
    EXPECT_EQ(decode(*engine, fork, other), on);
    // The same positions with other tokens, after a cut into the tail and one into what is sealed.
    check(text.truncate(200 + 12 + 30));
    EXPECT_EQ(decode(*engine, text, rest), fresh({other, more, rest}));
    // And where those are read, so that no step writes them there.
    check(text.truncate(200 + 12 + 30));
    read(*engine, text, more);
    EXPECT_EQ(decode(*engine, text, rest), fresh({other, more, more, rest}));
    if (std::string(model).starts_with("gemma")) continue;  // whose windows are gone by then
    check(text.truncate(204));
    check(fork.truncate(0));
    read(*engine, fork, prompt);
    const auto four = std::span(other).first(4);
    decode(*engine, fork, four);
    EXPECT_EQ(decode(*engine, text, rest), decode(*engine, fork, rest));
  }
}

// A step that is given up leaves rows there that are nobody's, also to who forks amid it.
TEST_F(RowsThereTest, AStepThatIsGivenUpLeavesNothing) {
  const auto engine = open("llama_mixed.gguf");
  const auto tokens = random_tokens(*engine, 330), rest = random_tokens(*engine, 6, 3);
  const auto options = there(host_options("sketch", {"place.run=fetch", "place.rows=lowest"}));
  const auto untouched = checked(engine->open_cache(options));
  Timeline want_text = checked(untouched->start());
  read(*engine, want_text, tokens);
  const auto want = decode(*engine, want_text, rest);

  const auto cache = checked(engine->open_cache(options));
  Timeline text = checked(cache->start());
  read(*engine, text, tokens);
  // Rows of queries, keys and values there, of which the step goes no further than the first layer.
  const auto device = checked(open_device(0));
  const auto layers = checked(device->open_layers({}, 1));
  const LayerSpec& spec = cache->layers()[0];
  std::byte* const floats = checked(device->take(4096));
  check(device->write(floats, std::vector<std::byte>(4096)));
  const auto* const zeros = reinterpret_cast<const float*>(floats);
  const Token at{text.id(), text.length()};
  check(cache->begin({&at, 1}, Pass::decode));
  ASSERT_LE(spec.q_heads * spec.key_dim * sizeof(float), 2048u);
  check(cache->attend_there(LayerId{0}, {&layers->queue(), zeros, zeros, zeros,
                                         reinterpret_cast<float*>(floats + 2048)}));
  EXPECT_FALSE(cache->attend_there(LayerId{0}, {}));  // twice
  EXPECT_FALSE(cache->commit());                      // the others are due
  Timeline fork = checked(text.fork());
  cache->rollback();
  device->give(floats);
  EXPECT_EQ(decode(*engine, text, rest), want);
  EXPECT_EQ(decode(*engine, fork, rest), want);
}

// Nor does one that fails when it is whole, here since another text's rows cannot be sealed.
TEST_F(RowsThereTest, AStepThatCannotSealLeavesNothing) {
  const auto engine = open("llama_mixed.gguf");
  const auto tokens = random_tokens(*engine, 235), more = random_tokens(*engine, 10, 2),
             rest = random_tokens(*engine, 6, 3);
  const auto options = there(host_options("sketch"));
  const auto go_on = [&](Timeline& text) {
    read(*engine, text, more);  // at the positions of the step that failed, and behind
    return decode(*engine, text, rest);
  };
  const auto untouched = checked(engine->open_cache(options));
  Timeline want_text = checked(untouched->start());
  read(*engine, want_text, std::span(tokens).first(150));
  const auto want = go_on(want_text);

  const auto cache = checked(engine->open_cache(options));
  Timeline text = checked(cache->start()), longer = checked(cache->start());
  read(*engine, text, std::span(tokens).first(150));
  read(*engine, longer, tokens);  // of which the next row is the 236th: three segments are due
  std::vector<std::byte*> taken;
  for (std::uint64_t bytes = std::uint64_t{1} << 40; bytes >= 4096; bytes /= 2)
    while (const auto piece = device_->take(bytes)) taken.push_back(*piece);
  const std::size_t vocabulary = engine->model().vocabulary;
  Logits logits(2 * vocabulary);
  const Feed feeds[] = {{&text, rest[0]}, {&longer, rest[0]}};
  const Status refused = engine->step(feeds, {logits.data(), 2, vocabulary});
  for (std::byte* const piece : taken) device_->give(piece);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::exhausted) << refused.error().message;
  EXPECT_EQ(text.length(), 150u);
  EXPECT_EQ(go_on(text), want);
}

// What is observed is attended by the host, which then has the last word on what was read.
TEST_F(RowsThereTest, WhatIsObservedDoesNotStay) {
  class Counts final : public AttendObserver {
   public:
    void attended(const AttendedList&) override { ++lists; }
    int lists = 0;
  } counts;
  const auto engine = open("llama_mixed.gguf");
  const CacheOptions options = there(host_options("sketch", {"select.min_rows=5000"}));
  const auto cache = checked(engine->open_cache(options));
  Timeline text = checked(cache->start()), other = checked(cache->start());
  const auto tokens = random_tokens(*engine, 250), rest = random_tokens(*engine, 9, 3);
  for (Timeline* each : {&text, &other}) read(*engine, *each, tokens);
  const auto want = decode(*engine, other, rest);
  std::vector<Logits> got;
  for (std::size_t i = 0; i < rest.size(); ++i) {  // every other step
    cache->observe(i % 2 == 1 ? &counts : nullptr);
    EXPECT_EQ(cache->stays_there(LayerId{0}), i % 2 == 0);
    got.push_back(decode(*engine, text, std::span(rest).subspan(i, 1))[0]);
  }
  EXPECT_GT(counts.lists, 0);
  expect_near(got, want);
}

// Steps that are alike run as one graph; a sealing changes what is queued, once.
TEST_F(RowsThereTest, StepsComeBackAsGraphs) {
  for (const char* method : {"sketch", "ladder2", "quest", "exact"}) {
    SCOPED_TRACE(method);
    const auto engine = open("llama_mixed.gguf");
    const auto cache = checked(engine->open_cache(there(host_options(method))));
    Timeline text = checked(cache->start());
    read(*engine, text, random_tokens(*engine, 250));
    const std::uint64_t before = engine->graph_replays();
    decode(*engine, text, random_tokens(*engine, 64));
    // Of what is queued in a step, and again after the one sealing, the first time is no graph's.
    EXPECT_GE(engine->graph_replays() - before, 60u);
  }
}

// Tails are planned and taken on the device, and no more than that.
TEST_F(RowsThereTest, TakeWhatIsPlanned) {
  const auto engine = open("llama_mixed.gguf");
  const CacheOptions options = there(host_options("sketch"));
  const auto plan = checked(engine->plan(options));
  const auto cache = checked(engine->open_cache(options));
  std::vector<Timeline> texts;
  for (int t = 0; t < 3; ++t) {
    texts.push_back(checked(cache->start()));
    read(*engine, texts.back(), random_tokens(*engine, 640));
  }
  decode(*engine, texts[0], random_tokens(*engine, 20));
  const auto bytes = [](const MemoryPlan& of, const std::string& tier, const std::string& purpose) {
    std::uint64_t sum = 0;
    for (const MemoryLine& line : of.lines)
      if (line.tier == tier && line.purpose == purpose) sum += line.bytes;
    return sum;
  };
  const MemoryPlan usage = engine->usage(*cache);
  EXPECT_GT(bytes(plan, "device", "tail"), 0u);
  EXPECT_EQ(bytes(usage, "device", "tail"), bytes(plan, "device", "tail"));
  EXPECT_EQ(bytes(usage, "device", "staging"), bytes(plan, "device", "staging"));
  for (const char* tier : {"device", "host"})
    EXPECT_LE(usage.peak_bytes.at(tier), plan.peak_bytes.at(tier)) << tier;
}

// A device that has no room for them, but for rows, attends what it would without.
TEST_F(RowsThereTest, DoNotStayWhereThereIsNoRoom) {
  const auto engine = open("llama_mixed.gguf");
  const CacheOptions roomy = there(host_options("exact"));
  EXPECT_TRUE(all_stay(*checked(engine->open_cache(roomy))));
  const std::uint64_t least = least_bytes(*engine, roomy);
  const auto cache = checked(engine->open_cache(there(host_options("exact"), least)));
  for (std::uint32_t l = 0; l < cache->layers().size(); ++l)
    EXPECT_FALSE(cache->stays_there(LayerId{l}));
  Timeline text = checked(cache->start());
  const auto tokens = random_tokens(*engine, 200);
  read(*engine, text, tokens);
  decode(*engine, text, std::span(tokens).first(2));
  EXPECT_GT(cache->report().device_bytes_read, 0u);
}

}  // namespace
}  // namespace thermocline
