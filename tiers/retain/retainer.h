// retain: which of the rows that leave the tail are kept at all. What is dropped never comes back.
#pragma once

#include <cstdint>
#include <string_view>

#include "kernels/attend.h"
#include "tiers/block.h"

namespace thermocline {

// Which of a prefill's queries a retainer is shown of: none, the last ones, or some of all of them.
enum class Voters : std::uint8_t { none, last, all };

// One KV head of one layer, as a prefill leaves it: `seen` begins with the rows that are to leave.
struct Ballot {
  HeadShape shape;          // heads: query heads a KV head
  std::uint32_t head = 0;   // KV head
  RawRows sinks, seen;      // keys rotated; what the queries attended, of this prefill and the tail
  std::uint32_t leave = 0;  // so many of `seen`
  std::uint32_t queries = 0, first_query = 0, stride = 1;  // how many, and at which positions
  const float* query = nullptr;  // [queries][heads][key_dim], rotated and scaled
};

// Any thread may use it.
class Retainer {
 public:
  virtual ~Retainer() = default;
  virtual std::string_view name() const = 0;
  // Whether rows that leave the tail are sealed (true) or dropped (false).
  virtual bool keeps() const = 0;

  // Who votes on which of a prefill's rows are sealed. What a decode leaves is sealed whole.
  virtual Voters voters() const { return Voters::none; }
  // Of the last queries, so many at most.
  virtual std::uint32_t last() const { return 0; }
  // votes[r] of each row that leaves, none negative: those with most are kept, of equals the lower.
  // A function of the ballot alone.
  virtual void vote(const Ballot&, float* /*votes*/) const {}
  // How many are kept, in each KV head, of `rows` rows that become one segment, 1 at least, where
  // `leave` leave together.
  virtual std::uint32_t kept(std::uint32_t rows, std::uint32_t /*leave*/) const { return rows; }
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
