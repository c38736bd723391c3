#include "tests/support/fuzz_resume.h"

#include <array>
#include <cstring>
#include <filesystem>
#include <string>

#include "runtime/kv_cache.h"
#include "tests/support/session_parts.h"
#include "tests/support/temporary_folder.h"
#include "tests/support/written_rows.h"

namespace thermocline::test {
namespace {

constexpr std::uint32_t kLength = 290;

struct Change {
  std::uint8_t what = 0, of = 0;
  std::uint16_t where = 0;
  std::uint32_t value = 0;
};

// Sessions of a few kilobytes, one a method, made when they are first asked for.
class Sessions {
 public:
  // Inputs name them by number: new ones come last.
  static constexpr std::array kMethods = {
      "exact",   "sketch",      "streaming",          "xkv",   "shadowkv",
      "kivi2",   "kvquant",     "rotatekv2",          "think", "allot2",
      "ladder2", "tidaldecode", "retrieval_attention"};

  CacheOptions options(std::size_t method, const std::string& file) const {
    CacheOptions made;
    made.layers = {plain_layer(2, 2, 16, 16), plain_layer(1, 1, 16, 32, 100),
                   plain_layer(2, 2, 16, 16)};
    made.method = kMethods[method];
    made.method_directory = std::string(THERMOCLINE_SOURCE_DIR) + "/configs/methods";
    made.method_overrides = {"steady.recent=32", "steady.seal=64"};
    if (made.method == "sketch") {
      made.method_overrides.emplace_back("select.min_rows=20");
      made.method_overrides.emplace_back("values.compress=int8");
    }
    if (made.method == "tidaldecode")  // the last of three layers reads what the first has chosen
      for (const char* more : {"dense_layers=0", "choose_in=0", "choose_again_in=0", "min_rows=20"})
        made.method_overrides.push_back(std::string("select.") + more);
    made.max_positions = 600;
    made.max_timelines = 1;
    made.session.path = folder_.path() + "/" + file;
    return made;
  }

  const SessionParts& of(std::size_t method) {
    SessionParts& parts = made_[method];
    if (!parts.bytes.empty()) return parts;
    const CacheOptions given = options(method, kMethods[method]);
    const auto cache = KvCache::create(given, 1, "auto");
    TL_CHECK(cache.has_value());
    const auto timeline = (*cache)->start();
    TL_CHECK(timeline.has_value());
    TL_CHECK(advance(cache->get(), *timeline, kLength, Pass::prefill).has_value());
    TL_CHECK((*cache)->save(*timeline, session_text(kLength)).has_value());
    parts = SessionParts::read(given.session.path);
    return parts;
  }

 private:
  const TemporaryFolder folder_{"resume"};
  std::array<SessionParts, kMethods.size()> made_;
};

void change(const Change& by, SessionParts* parts) {
  SessionManifest& manifest = parts->manifest;
  SessionManifest::Layer& layer = manifest.layers[by.of % manifest.layers.size()];
  constexpr std::uint32_t kMostBytes = 1u << 16;
  switch (by.what) {
    case 0:
      manifest.length = by.value;
      break;
    case 1:
      layer.tail_first = by.value;
      break;
    case 2:
      layer.runs.resize(std::min<std::size_t>(by.value, layer.runs.size()));
      break;
    case 3:
      if (!layer.runs.empty()) layer.runs.push_back(layer.runs[by.value % layer.runs.size()]);
      break;
    case 4:
      layer.sinks.resize(by.value % kMostBytes);
      break;
    case 5:
      layer.tail.resize(by.value % kMostBytes);
      break;
    case 6: {  // four bytes of a segment's record
      if (layer.runs.empty()) break;
      const PageTable::Record& record = layer.runs[(by.of >> 1) % layer.runs.size()];
      const std::uint64_t at = by.where % (record.bytes - sizeof(by.value) + 1);
      std::memcpy(parts->bytes.data() + record.offset + at, &by.value, sizeof(by.value));
      break;
    }
    case 7:  // as many raw rows as length and tail ask for
      for (std::size_t l = 0; l < manifest.layers.size(); ++l) {
        SessionManifest::Layer& one = manifest.layers[l];
        const std::uint32_t row_bytes = l != 1 ? 2 * (16 + 16) * 2 : (16 + 32) * 2;
        const std::uint32_t sinks = l != 1 ? std::min(manifest.length, 4u) : 0;
        const std::uint32_t tail =
            manifest.length > one.tail_first ? manifest.length - one.tail_first : 0;
        one.sinks.resize(sinks * row_bytes);
        one.tail.resize(std::min(tail, kMostBytes / row_bytes) * row_bytes);
      }
      break;
    default:
      break;
  }
}

Status go_on(const CacheOptions& options) {
  TL_TRY_ASSIGN(const auto cache, KvCache::create(options, 1, "auto"));
  TL_TRY_ASSIGN(Timeline timeline, cache->resume());
  TL_TRY(advance(cache.get(), timeline, 40, Pass::prefill));
  TL_TRY(advance(cache.get(), timeline, 1, Pass::decode));
  if (timeline.length() > 70) TL_TRY(timeline.truncate(timeline.length() - 70));
  return cache->save(timeline, session_text(timeline.length()));
}

}  // namespace

void fuzz_resume(std::span<const std::byte> input) {
  if (input.empty()) return;
  static Sessions sessions;
  const std::size_t method = std::to_integer<std::size_t>(input[0]) % Sessions::kMethods.size();
  SessionParts parts = sessions.of(method);
  for (std::size_t at = 1; at + sizeof(Change) <= input.size() && at < 200; at += sizeof(Change)) {
    Change by;
    std::memcpy(&by, input.data() + at, sizeof(by));
    change(by, &parts);
  }
  parts.manifest.text.tokens.resize(std::min(parts.manifest.length, 1u << 16));
  const CacheOptions options = sessions.options(method, "changed");
  parts.write(options.session.path);
  const Status done = go_on(options);
  if (done) return;
  TL_CHECK(done.error().message.find('\n') == std::string::npos);
  TL_CHECK(!done.error().message.empty() && done.error().message.size() < 4096);
}

}  // namespace thermocline::test
