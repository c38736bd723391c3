#include "runtime/sampler.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <locale>
#include <sstream>
#include <type_traits>

namespace thermocline {

Sampler::Sampler(const SamplingOptions& options) : options_(options), random_(options.seed) {}

namespace {

// Floats as their bits: what is read back is what was written.
template <typename Options, typename Visit>
void for_options(Options* options, const Visit& visit) {
  visit(&options->temperature);
  visit(&options->top_k);
  visit(&options->top_p);
  visit(&options->min_p);
  visit(&options->repeat_penalty);
  visit(&options->repeat_last_n);
}

bool read_options(std::istream& text, SamplingOptions* options) {
  for_options(options, [&](auto* field) {
    std::uint32_t bits = 0;
    text >> bits;
    *field = std::bit_cast<std::remove_pointer_t<decltype(field)>>(bits);
  });
  return static_cast<bool>(text);
}

std::istringstream reading(const std::string& state) {
  std::istringstream text(state);
  text.imbue(std::locale::classic());
  return text;
}

tl::unexpected<Error> no_state(const std::string& state) {
  return fail(ErrorCode::corrupt, "the sampler's state of ", state.size(), " bytes is none");
}

}  // namespace

std::string Sampler::state() const {
  std::ostringstream text;
  text.imbue(std::locale::classic());
  for_options(&options_,
              [&](const auto* field) { text << std::bit_cast<std::uint32_t>(*field) << ' '; });
  text << random_;
  return text.str();
}

Status Sampler::restore(const std::string& state) {
  std::istringstream text = reading(state);
  SamplingOptions ignored;
  std::mt19937_64 random;
  if (!read_options(text, &ignored) || !(text >> random)) return no_state(state);
  random_ = random;
  return {};
}

Result<SamplingOptions> Sampler::options_in(const std::string& state) {
  std::istringstream text = reading(state);
  SamplingOptions options;
  if (!read_options(text, &options)) return no_state(state);
  return options;
}

bool Sampler::better(const Candidate& a, const Candidate& b) {
  return a.logit > b.logit || (a.logit == b.logit && a.token < b.token);
}

void Sampler::accept(int token) {
  if (token < 0 || options_.repeat_last_n == 0 || options_.repeat_penalty == 1.0f) return;
  const std::size_t t = static_cast<std::size_t>(token);
  if (t >= repeats_.size()) repeats_.resize(t + 1, 0);
  ++repeats_[t];
  if (options_.repeat_last_n < 0) return;  // nothing is ever forgotten
  const std::size_t last_n = static_cast<std::size_t>(options_.repeat_last_n);
  if (history_.size() < last_n) {
    history_.push_back(token);
    return;
  }
  --repeats_[static_cast<std::size_t>(history_[next_])];
  history_[next_] = token;
  next_ = (next_ + 1) % last_n;
}

float Sampler::penalized(float logit, std::size_t token) const {
  if (std::isnan(logit)) return -std::numeric_limits<float>::infinity();
  if (token >= repeats_.size() || repeats_[token] == 0) return logit;
  return logit > 0.0f ? logit / options_.repeat_penalty : logit * options_.repeat_penalty;
}

int Sampler::sample(std::span<const float> logits) {
  if (!(options_.temperature > 0.0f) || options_.top_k == 1) return best(logits);
  collect(logits);
  keep_top_p();
  keep_min_p();
  return draw();
}

int Sampler::best(std::span<const float> logits) const {
  Candidate found{penalized(logits[0], 0), 0};
  for (std::size_t t = 1; t < logits.size(); ++t) {
    const float logit = penalized(logits[t], t);
    if (logit > found.logit) found = {logit, static_cast<int>(t)};
  }
  return found.token;
}

// The top_k best, sorted. A heap with the worst of them on top: most tokens cost one comparison.
void Sampler::collect(std::span<const float> logits) {
  const std::size_t k = options_.top_k > 0
                            ? std::min(static_cast<std::size_t>(options_.top_k), logits.size())
                            : logits.size();
  candidates_.clear();
  candidates_.reserve(k);
  for (std::size_t t = 0; t < logits.size(); ++t) {
    const Candidate candidate{penalized(logits[t], t), static_cast<int>(t)};
    if (candidates_.size() < k) {
      candidates_.push_back(candidate);
      if (candidates_.size() == k) std::make_heap(candidates_.begin(), candidates_.end(), better);
    } else if (better(candidate, candidates_.front())) {
      std::pop_heap(candidates_.begin(), candidates_.end(), better);
      candidates_.back() = candidate;
      std::push_heap(candidates_.begin(), candidates_.end(), better);
    }
  }
  std::sort(candidates_.begin(), candidates_.end(), better);
}

// The shortest list of the best that holds top_p of the probability.
void Sampler::keep_top_p() {
  if (!(options_.top_p < 1.0f)) return;
  double total = 0.0;
  weights_.clear();
  for (const Candidate& c : candidates_) {
    weights_.push_back(std::exp(double{c.logit} - candidates_.front().logit));
    total += weights_.back();
  }
  double held = 0.0;
  for (std::size_t i = 0; i < candidates_.size(); ++i) {
    held += weights_[i];
    if (held >= options_.top_p * total) {
      candidates_.resize(i + 1);
      return;
    }
  }
}

// Those at least min_p times as likely as the best.
void Sampler::keep_min_p() {
  if (!(options_.min_p > 0.0f)) return;
  const double least = candidates_.front().logit + std::log(double{options_.min_p});
  std::size_t kept = 1;
  while (kept < candidates_.size() && candidates_[kept].logit >= least) ++kept;
  candidates_.resize(kept);
}

int Sampler::draw() {
  double total = 0.0;
  weights_.clear();
  for (const Candidate& c : candidates_) {
    weights_.push_back(
        std::exp((double{c.logit} - candidates_.front().logit) / options_.temperature));
    total += weights_.back();
  }
  // 53 random bits of [0, 1): std's distributions differ between libraries.
  double left = static_cast<double>(random_() >> 11) * 0x1.0p-53 * total;
  for (std::size_t i = 0; i < candidates_.size(); ++i) {
    left -= weights_[i];
    if (left < 0.0) return candidates_[i].token;
  }
  return candidates_.front().token;  // every logit was -inf, or rounding left a rest
}

}  // namespace thermocline
