// retain: which of the rows that leave the tail are kept at all. What is dropped never comes back.
#pragma once

#include <cstdint>
#include <string_view>

#include "kernels/attend.h"
#include "tiers/block.h"

namespace thermocline {

// Which queries a retainer is shown: none; a prefill's last ones; or of every prefill some of all,
// and each step's. What those give a row is added up as long as it is raw.
enum class Voters : std::uint8_t { none, last, all };

// One KV head of one layer, once a prefill or a row of a step has attended.
struct Ballot {
  HeadShape shape;         // heads: query heads a KV head
  std::uint32_t head = 0;  // KV head
  RawRows sinks, seen;     // keys rotated; of what the queries attended
  std::uint32_t rows = 0;  // of `seen`, from its first on, that are voted on
  std::uint32_t queries = 0, first_query = 0, stride = 1;  // how many, and at which positions
  const float* query = nullptr;  // [queries][heads][key_dim], rotated and scaled
  // [queries][heads]: all that each attended, wherever it is; null: sinks and `seen`.
  const AttnState* attended = nullptr;
  float* scores = nullptr;  // [heads][rows of sinks and seen] to compute in
};

// Any thread may use it.
class Retainer {
 public:
  virtual ~Retainer() = default;
  virtual std::string_view name() const = 0;
  // Whether rows that leave the tail are sealed (true) or dropped (false).
  virtual bool keeps() const = 0;

  // Who votes on which of the rows that leave are sealed.
  virtual Voters voters() const { return Voters::none; }
  // Of the last queries, so many at most.
  virtual std::uint32_t last() const { return 0; }
  // Adds to votes[r] of each row that is voted on, nothing negative: of those that leave the ones
  // with most are kept, of equals the lower. What is added is a function of the ballot alone. Takes
  // no memory where every step votes.
  virtual void vote(const Ballot&, float* /*votes*/) const {}
  // How many are kept, in each KV head, of `rows` rows that become one segment, 1 at least, where a
  // prefill has `leave` leave together; and of those that steps leave.
  virtual std::uint32_t kept(std::uint32_t rows, std::uint32_t /*leave*/) const { return rows; }
  virtual std::uint32_t kept_of_steps(std::uint32_t rows) const { return rows; }
};

class KeepAll final : public Retainer {
 public:
  std::string_view name() const override { return "all"; }
  bool keeps() const override { return true; }
};

// StreamingLLM (arXiv 2309.17453, section 3.2): sinks and the recent window only. Keys keep the
// positions that they were rotated for; that paper's re-indexing of positions inside the cache is
// not done.
class KeepSteady final : public Retainer {
 public:
  std::string_view name() const override { return "steady"; }
  bool keeps() const override { return false; }
};

}  // namespace thermocline
