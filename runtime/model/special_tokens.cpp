#include "runtime/model/special_tokens.h"

#include <algorithm>

namespace thermocline {

SpecialTokens::SpecialTokens(const Vocabulary& vocabulary, Which which) {
  for (std::int32_t t = 0; t < static_cast<std::int32_t>(vocabulary.size()); ++t) {
    const TokenType type = vocabulary.type(t);
    const bool wanted =
        type == TokenType::user_defined ||
        (which == Which::all && (type == TokenType::control || type == TokenType::unknown));
    if (wanted && !vocabulary.name(t).empty()) entries_.push_back({vocabulary.name(t), t});
  }
  std::sort(entries_.begin(), entries_.end(),
            [](const Entry& a, const Entry& b) { return a.name < b.name; });
  for (const Entry& entry : entries_) ++first_[static_cast<unsigned char>(entry.name[0]) + 1];
  for (std::size_t b = 1; b < first_.size(); ++b) first_[b] += first_[b - 1];
}

SpecialTokens::Match SpecialTokens::longest_at(std::string_view text, std::size_t at) const {
  const auto lead = static_cast<unsigned char>(text[at]);
  auto low = entries_.begin() + first_[lead], high = entries_.begin() + first_[lead + 1];
  Match best;
  // Every entry of [low, high) agrees with the text in its first `depth` bytes; one that has no
  // more comes first.
  for (std::size_t depth = 1; low != high; ++depth) {
    if (low->name.size() == depth) {
      best = {low->token, at, depth};
      ++low;
    }
    if (at + depth == text.size()) break;
    const auto byte = static_cast<unsigned char>(text[at + depth]);
    const auto at_depth = [depth](const Entry& entry) {
      return static_cast<unsigned char>(entry.name[depth]);
    };
    low = std::partition_point(low, high, [&](const Entry& e) { return at_depth(e) < byte; });
    high = std::partition_point(low, high, [&](const Entry& e) { return at_depth(e) <= byte; });
  }
  return best;
}

SpecialTokens::Match SpecialTokens::find(std::string_view text, std::size_t from) const {
  for (std::size_t at = from; at < text.size(); ++at) {
    const auto lead = static_cast<unsigned char>(text[at]);
    if (first_[lead] == first_[lead + 1]) continue;
    const Match match = longest_at(text, at);
    if (match.token != kNoToken) return match;
  }
  return {kNoToken, text.size(), 0};
}

}  // namespace thermocline
