#include "tests/support/reader.h"

#include <xxhash.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <utility>

namespace thermocline::test {
namespace {

const std::string kFolder = THERMOCLINE_SOURCE_DIR "/tests/golden/";

void require(const Status& status) {
  if (!status) throw std::runtime_error(status.error().message);
}

template <typename T>
T take(Result<T> result) {
  if (!result) throw std::runtime_error(result.error().message);
  return std::move(*result);
}

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot read " + path);
  return {std::istreambuf_iterator<char>(file), {}};
}

}  // namespace

nlohmann::json read_expectations(const std::string& name) {
  return nlohmann::json::parse(read_file(kFolder + name));
}

std::string read_prompt(const std::string& name) {
  const std::string path = kFolder + "prompts/long/" + name + ".txt";
  return read_file(std::filesystem::exists(path) ? path : kFolder + "prompts/" + name + ".txt");
}

std::string hash_of(std::span<const int> tokens) {
  std::string text;
  for (const int token : tokens) text += (text.empty() ? "" : ",") + std::to_string(token);
  const XXH128_hash_t hash = XXH3_128bits(text.data(), text.size());
  char digits[33];
  std::snprintf(digits, sizeof digits, "%016llx%016llx",
                static_cast<unsigned long long>(hash.high64),
                static_cast<unsigned long long>(hash.low64));
  return digits;
}

std::size_t best_of(std::span<const float> logits) {
  return static_cast<std::size_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

double surprise_of(std::span<const float> logits, int token) {
  const float largest = logits[best_of(logits)];
  double sum = 0;
  for (const float logit : logits) sum += static_cast<double>(std::exp(logit - largest));
  return std::log(sum) + static_cast<double>(largest - logits[static_cast<std::size_t>(token)]);
}

Reader::Reader(const std::string& path, std::uint32_t positions, const std::string& method,
               const std::vector<std::string>& overrides, const std::string& isa) {
  EngineOptions options;
  options.model_path = path;
  options.isa = isa;
  options.threads = 2;
  engine_ = take(Engine::open(options));
  CacheOptions cache;
  cache.method = method;
  cache.method_overrides = overrides;
  cache.method_directory = THERMOCLINE_SOURCE_DIR "/configs/methods";
  cache.max_positions = positions;
  cache.max_timelines = 2;
  cache_ = take(engine_->open_cache(cache));
  logits_.resize(engine_->model().vocabulary);
  start();
}

std::vector<int> Reader::tokens(std::string_view text) const {
  return take(engine_->encode(text, Engine::Special::parse, Engine::Start::add));
}

void Reader::start() {
  timeline_ = Timeline();
  timeline_ = take(cache_->start());
}

// Not truncate(): rows behind a sliding window are gone.
void Reader::mark() { marked_ = take(timeline_.fork()); }
void Reader::rewind() { timeline_ = std::move(marked_); }

std::span<const float> Reader::prefill(std::span<const int> tokens, const OnLogits& on_logits) {
  if (tokens.empty()) return logits_;
  PrefillOptions options;
  if (on_logits)
    options.all_logits = [&](std::uint32_t first, MatView<const float> logits) {
      for (std::size_t row = 0; row < logits.rows(); ++row) on_logits(first + row, logits[row]);
    };
  require(engine_->prefill(timeline_, tokens, logits_, options));
  return logits_;
}

void Reader::decode(std::span<const int> tokens, const OnLogits& on_logits) {
  for (const int token : tokens) {
    const Feed feed{&timeline_, token};
    require(engine_->step({&feed, 1}, {logits_.data(), 1, logits_.size()}));
    on_logits(timeline_.length() - 1, logits_);
  }
}

}  // namespace thermocline::test
