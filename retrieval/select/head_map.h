// Which KV heads of a model read every row, as a text file says it. One head a line,
//
//     layer head role
//
// three whole numbers from 0 on, the role 1 (a retrieval head, which reads everything) or 0 (a
// streaming head: sinks and tail alone). What follows a `#` is a comment. Every head of a layer
// that is named has a line, in any order.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/error.h"

namespace thermocline {

class HeadMap {
 public:
  // io: the file cannot be read. invalid_argument: the line, and what was found there.
  static Result<HeadMap> read(const std::string& path);
  // Of untrusted text; `name` begins messages.
  static Result<HeadMap> parse(std::string_view text, const std::string& name);

  const std::string& name() const { return name_; }
  // 0: the layer is not in the map.
  std::uint32_t heads(std::uint32_t layer) const {
    return layer < roles_.size() ? static_cast<std::uint32_t>(roles_[layer].size()) : 0;
  }
  bool reads_everything(std::uint32_t layer, std::uint32_t head) const {
    return roles_[layer][head] != 0;
  }
  // The same for the same map, however its file is written.
  std::string fingerprint() const;

 private:
  std::string name_;
  std::vector<std::vector<std::uint8_t>> roles_;  // [layer][KV head]
};

}  // namespace thermocline
