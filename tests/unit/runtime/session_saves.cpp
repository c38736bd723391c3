#include "tests/unit/runtime/session_saves.h"

#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>

#include "tests/support/written_rows.h"

namespace thermocline {

namespace fs = std::filesystem;

CacheOptions saved_options(const std::string& path) {
  CacheOptions options;
  options.layers = {plain_layer(2, 2, 32, 32), plain_layer(1, 1, 64, 32)};
  options.method = "sketch";
  options.method_directory = std::string(THERMOCLINE_SOURCE_DIR) + "/configs/methods";
  options.max_positions = 1500;
  options.max_timelines = 2;
  options.session.path = path;
  return options;
}

Status read_on(KvCache* cache, const Timeline& timeline) {
  TL_TRY(advance(cache, timeline, timeline.length() == 0 ? kFirst : kStep, Pass::prefill));
  return {};
}

std::uint32_t SessionSaves::check() {
  EXPECT_LE(std::distance(fs::directory_iterator(root_), fs::directory_iterator()), 1);
  if (!fs::exists(path_)) return 0;
  const Found found = go_on();
  // Space that nobody names was given back: what is left is held, or headers and record. Looked
  // at when the file is closed: while it is open, a piece of it measures what a read costs.
  constexpr std::uint64_t kOther = 64 << 10;
  struct stat file {};
  EXPECT_EQ(::stat(path_.c_str(), &file), 0);
  EXPECT_LE(static_cast<std::uint64_t>(file.st_blocks) * 512, found.held_bytes + kOther);
  return found.length;
}

SessionSaves::Found SessionSaves::go_on() {
  const auto start = std::chrono::steady_clock::now();
  const auto cache = KvCache::create(saved_options(path_), 1, "auto");
  EXPECT_TRUE(cache) << (cache ? "" : cache.error().message);
  if (!cache) return {};
  const SessionText saved = *(*cache)->saved();
  auto timeline = (*cache)->resume();
  EXPECT_TRUE(timeline) << (timeline ? "" : timeline.error().message);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(5));
  if (!timeline) return {};
  const std::uint32_t length = timeline->length();
  EXPECT_EQ(saved.tokens.size(), length);
  const Found found{length, (*cache)->usage().total("disk")};
  const auto next = advance(cache->get(), *timeline, 1, Pass::decode);
  EXPECT_TRUE(next);
  if (next) {
    EXPECT_EQ(*next, due(length)) << length;
  }
  return found;
}

const std::vector<float>& SessionSaves::due(std::uint32_t length) {
  if (due_.count(length)) return due_[length];
  const auto cache = KvCache::create(saved_options(""), 1, "auto");
  const Timeline timeline = std::move(*(*cache)->start());
  while (timeline.length() < length) EXPECT_TRUE(read_on(cache->get(), timeline));
  return due_[length] = *advance(cache->get(), timeline, 1, Pass::decode);
}

}  // namespace thermocline
