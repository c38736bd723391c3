// The manifest of a session file: everything that is not in the records of its segments.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "kernels/base/error.h"
#include "runtime/session.h"
#include "tiers/page_table.h"
#include "tiers/record.h"

namespace thermocline {

struct SessionManifest {
  struct Layer {
    std::uint32_t tail_first = 0;
    std::vector<std::byte> sinks, tail;  // raw rows: [heads][rows] records
    std::vector<PageTable::Record> runs;
  };
  std::vector<SessionFact> facts;
  NamedMethod method;
  SessionText text;
  std::uint32_t length = 0;  // positions of the timeline
  std::vector<Layer> layers;

  std::vector<std::byte> encode() const;
  // Of untrusted bytes; `name` begins messages. What fits no cache is found by who restores it.
  static Result<SessionManifest> decode(std::span<const std::byte> bytes, const std::string& name);
};

// The same of a timeline that is being saved, where it lies: what it refers to outlives it.
struct ManifestView {
  struct Layer {
    std::uint32_t tail_first = 0;
    RawRows sinks, tail;
    std::span<const Run> runs;
  };
  const PageTable* table;
  std::vector<SessionFact> facts;
  NamedMethod method;
  const SessionText& text;
  std::uint32_t length = 0;
  std::vector<Layer> layers;

  void write(RecordWriter* out) const;
};

}  // namespace thermocline
