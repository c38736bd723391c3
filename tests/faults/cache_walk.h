// Whole steps of a small cache over a disk, each a function of its number: what is done again after
// trouble must give the same, to the bit.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "runtime/kv_cache.h"
#include "tests/support/float_table.h"

namespace thermocline {

inline constexpr int kSteps = 30;

// Two tiny layers whose sealed rows go to the disk. `cached_bytes`: of host memory for copies.
CacheOptions cache_options(const std::string& backend, const std::string& method,
                           std::uint64_t cached_bytes);

class Walk {
 public:
  explicit Walk(const CacheOptions& options, int threads = 2,
                const std::string& isa = test::float_isa());
  KvCache& cache() { return *cache_; }

  // Prefills now and then, a fork that comes and goes, a cut; else decode steps. The first one lies
  // where another text was. An error has been rolled back.
  Status step(int number, std::vector<float>* outputs);
  // Of the last step, before it began: what is held again if it failed.
  std::uint64_t held_before_step() const { return held_before_; }
  // On the host and the disk, without the span's buffer, which stays for the next prefill.
  std::uint64_t held_bytes() const;
  void forget_texts();

 private:
  Status advance(const Timeline& text, std::uint32_t rows, unsigned seed,
                 std::vector<float>* outputs);

  std::unique_ptr<KvCache> cache_;
  Timeline text_, fork_;
  std::uint64_t held_before_ = 0;
};

bool same(const std::vector<float>& a, const std::vector<float>& b);

// Of all steps, without trouble.
struct Undisturbed {
  std::vector<std::vector<float>> outputs;
  std::vector<std::uint64_t> held;  // after each
  std::uint64_t held_at_end = 0, most_on_disk = 0;
};
Undisturbed walk_undisturbed(const CacheOptions& options);

}  // namespace thermocline
