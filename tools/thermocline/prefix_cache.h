// Prompts that were read before: session files in the user's cache folder, each named by a
// cryptographic hash of what it was made with and of its tokens, within a budget that holds from
// run to run.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "runtime/thermocline.h"

namespace thermocline {

// One process's view of the folder. Others may use it at the same time: an entry that one of them
// has open is neither chosen nor removed.
class PrefixCache {
 public:
  // Makes the folder, 0700, where it is missing; "" is the user's (XDG_CACHE_HOME).
  static Result<PrefixCache> open(std::uint64_t budget_bytes, std::string folder = {});
  // Where that would be; it need not exist.
  static Result<std::string> default_folder();

  // The file to read `tokens` with: the entry of these facts that has most of them from the first
  // on, where that is worth while; else the name of a new one.
  std::string choose(std::span<const SessionFact> facts, std::span<const int> tokens) const;
  // Whether `bytes` more may be kept beside the other entries than `path`: removes those that were
  // used longest ago. A cache that is too small for it stays as it is.
  bool make_room(std::uint64_t bytes, const std::string& path) const;
  // `path` was used now: it is the last to go.
  void used(const std::string& path) const;
  // `path` holds `tokens` now, and gets their name.
  void name(const std::string& path, std::span<const SessionFact> facts,
            std::span<const int> tokens) const;

 private:
  PrefixCache(std::string folder, std::uint64_t budget_bytes)
      : folder_(std::move(folder)), budget_bytes_(budget_bytes) {}
  std::string name_of(std::span<const SessionFact> facts, std::span<const int> tokens) const;

  std::string folder_;
  std::uint64_t budget_bytes_ = 0;
};

}  // namespace thermocline
