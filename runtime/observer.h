// For studies: who is told what each step of a decode attends. Nothing is computed for it unless
// somebody is (KvCache::observe).
#pragma once

#include <cstdint>
#include <span>

#include "kernels/base/ids.h"

namespace thermocline {

// What one row of a step attended in one KV head of a layer.
struct AttendedList {
  LayerId layer{};
  Token row;
  std::uint32_t head = 0;          // KV head
  std::span<const float> queries;  // [query heads of the group][key_dim], rotated and scaled
  // Whose exact rows were attended, or what their codec kept of them: sinks, tail and picks,
  // ascending. Estimates are not among them.
  std::span<const std::uint32_t> positions;
  std::span<const std::uint32_t> coded;  // attended by what codes say of them; ascending
};

class AttendObserver {
 public:
  virtual ~AttendObserver() = default;
  // On the thread that drives the cache, which waits. What it is given lives as long as the call.
  virtual void attended(const AttendedList& list) = 0;
};

}  // namespace thermocline
