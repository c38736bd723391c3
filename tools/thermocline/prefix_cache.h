// Prompts that were read before: session files in the user's cache folder, each named by a
// cryptographic hash of what it was made with and of its tokens, within a budget that holds from
// run to run.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "runtime/thermocline.h"

namespace thermocline {

// One process's view of the folder. Others may use it at the same time: an entry that one of them
// has open is neither chosen nor removed.
class PrefixCache {
 public:
  // A folder that is missing is made, 0700; or it stays missing, and nothing is kept: what a run
  // would take is asked of the next folder above it. "" is the user's (XDG_CACHE_HOME).
  enum class Missing : std::uint8_t { is_made, stays };
  static Result<PrefixCache> open(std::uint64_t budget_bytes, Missing missing,
                                  std::string folder = {});
  // Where that would be; it need not exist.
  static Result<std::string> default_folder();

  // The file to read `tokens` with: the entry of these facts that has most of them from the first
  // on, and least else, where that is worth while; else the name of a new one.
  std::string choose(std::span<const SessionFact> facts, std::span<const int> tokens) const;
  // A copy of the entry `path`, to be gone on from as `tokens`, which it only begins like: so both
  // are kept. exhausted: there is no room for it beside that entry.
  Result<std::string> branch(const std::string& path, std::span<const SessionFact> facts,
                             std::span<const int> tokens) const;

  // While it lives no other process makes room or keeps anything: two that found the same room
  // would both fill it.
  class Keeping {
   public:
    Keeping(Keeping&& other) noexcept : folder_(std::exchange(other.folder_, -1)) {}
    Keeping& operator=(Keeping&&) = delete;
    ~Keeping();

   private:
    friend class PrefixCache;
    explicit Keeping(int folder) : folder_(folder) {}
    int folder_;
  };
  // Waits for another process, which saves, and not for ever.
  Result<Keeping> begin_keeping() const;
  // Whether `bytes` more may be kept beside the other entries than `path`: removes those that
  // cannot be read, then those that were used longest ago. A cache that is too small for it stays
  // as it is.
  bool make_room(const Keeping& keeping, std::uint64_t bytes, const std::string& path) const;
  // What is kept, under whatever budget, is brought within this one, beside what `path` holds or
  // will hold, `bytes` at least; where that alone is too much, `path` is one like the others. While
  // another process keeps something, it waits as begin_keeping() does, and leaves it at that.
  void hold_budget(std::uint64_t bytes, const std::string& path) const;
  // `path` was used now: it is the last to go.
  void used(const std::string& path) const;
  // `path` holds `tokens` now, and gets their name.
  void name(const Keeping& keeping, const std::string& path, std::span<const SessionFact> facts,
            std::span<const int> tokens) const;
  // An entry that is of no use, unless another process has it open.
  void remove(const std::string& path) const;

 private:
  PrefixCache(std::string folder, std::uint64_t budget_bytes)
      : folder_(std::move(folder)), budget_bytes_(budget_bytes) {}
  std::string name_of(std::span<const SessionFact> facts, std::span<const int> tokens) const;

  std::string folder_;
  bool missing_ = false;  // `folder_` is another
  std::uint64_t budget_bytes_ = 0;
};

}  // namespace thermocline
