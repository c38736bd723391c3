// Items in the order of their groups.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace thermocline {

struct Grouped {
  std::vector<std::uint32_t> begin;   // [groups + 1]
  std::vector<std::uint32_t> member;  // of group g: [begin[g], begin[g + 1]), ascending

  std::size_t groups() const { return begin.size() - 1; }
  std::span<const std::uint32_t> of(std::size_t g) const {
    return std::span(member).subspan(begin[g], begin[g + 1] - begin[g]);
  }

  // group_of(i) of each item.
  template <typename GroupOf>
  static Grouped by(std::size_t items, std::size_t groups, const GroupOf& group_of) {
    Grouped made{std::vector<std::uint32_t>(groups + 1), std::vector<std::uint32_t>(items)};
    for (std::size_t i = 0; i < items; ++i) ++made.begin[group_of(i) + 1];
    for (std::size_t g = 0; g < groups; ++g) made.begin[g + 1] += made.begin[g];
    std::vector<std::uint32_t> next(made.begin.begin(), made.begin.end() - 1);
    for (std::size_t i = 0; i < items; ++i)
      made.member[next[group_of(i)]++] = static_cast<std::uint32_t>(i);
    return made;
  }
};

}  // namespace thermocline
