// Finds the tokens that stand in a text by their name, before anything else looks at it.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

#include "runtime/model/vocabulary.h"

namespace thermocline {

// Immutable; the names are the Vocabulary's, which must outlive it. User-defined tokens are always
// found, control and unknown ones only when the text is to be parsed.
class SpecialTokens {
 public:
  enum class Which : std::uint8_t { user_defined, all };
  SpecialTokens(const Vocabulary& vocabulary, Which which);

  struct Match {
    std::int32_t token = kNoToken;  // kNoToken: none from here to the end
    std::size_t at = 0, bytes = 0;
  };
  // The leftmost at or after `from`, of those the longest.
  Match find(std::string_view text, std::size_t from) const;

 private:
  struct Entry {
    std::string_view name;
    std::int32_t token;
  };
  Match longest_at(std::string_view text, std::size_t at) const;

  std::vector<Entry> entries_;  // by name
  std::array<std::uint32_t, 257>
      first_{};  // entries that begin with byte b: [first_[b], first_[b + 1])
};

}  // namespace thermocline
