// retain: which of the rows that leave the tail are kept at all. What is dropped never comes back.
#pragma once

#include <string_view>

namespace thermocline {

// Any thread may use it.
class Retainer {
 public:
  virtual ~Retainer() = default;
  virtual std::string_view name() const = 0;
  // Whether rows that leave the tail are sealed (true) or dropped (false).
  virtual bool keeps() const = 0;
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
