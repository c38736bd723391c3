// The attention of a decode step by a device, in layers whose queries, keys and values are on it:
// rows are turned and kept, what is always attended is, what is chosen is
// (kernels/device_choice.h), and the layer goes on. All of it is queued where the layer's dense
// work is, so that the host waits for nothing before the step ends; of rows that are out of the
// device's reach it has to, once a layer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kernels/attend.h"
#include "kernels/base/error.h"
#include "kernels/base/rope_pairs.h"
#include "kernels/device_choice.h"
#include "kernels/device_queue.h"

namespace thermocline {

// What a layer's attention takes and gives, of rows that are on a device: matrices there, without
// gaps. What is queued by `queue` finds them.
struct RowsThere {
  DeviceQueue* queue = nullptr;
  const float *q = nullptr, *k = nullptr, *v = nullptr;  // [rows][heads * dim], not rotated
  float* mixed = nullptr;                                // [rows][q heads * value_dim]
};

// Records of some rows in position order, in the device's memory: f16 keys, rotated, then values.
struct RecordsThere {
  const std::byte* first = nullptr;  // of KV head 0
  std::uint64_t head_apart = 0;      // bytes to the next head's
  std::uint32_t rows = 0;
};

// A row of the step.
struct StepRow {
  const float *cosine = nullptr, *sine = nullptr;  // [pairs], on the host
  std::byte* record = nullptr;                     // where it is kept there: of KV head 0
  std::uint64_t head_apart = 0;
  RecordsThere steady[2];  // what it attends always, in this order: its own is in one of them
};

struct StepLayer {
  HeadShape head;
  std::uint32_t kv_heads = 0;
  RopePairs layout = RopePairs::halves;
  std::uint32_t pairs = 0;
  float scale = 1.0f;                       // of queries
  std::span<const float> key_by, query_by;  // [key_dim], by channel; empty: ones
  std::span<const StepRow> rows;            // list i is of row i / kv_heads
};

// Of a step at most.
struct StepBounds {
  std::uint32_t layers = 0, rows = 0;  // of which rows a layer has `steady` at most
  std::uint32_t steady = 0;
  HeadShape head;  // the largest of any layer, each of its parts
  std::uint32_t kv_heads = 0;
  std::vector<ChoiceFormat> formats;  // of layers that choose, of `chosen` at most each,
  ChoiceBounds chosen;
  std::uint32_t lists = 0;  // so many lists at a time
};

// What it works in: memory of the device, and of the host, pinned.
struct StepBytes {
  std::uint64_t device = 0, host = 0;
};

// One thread at a time. Layers go from begin() to end(), one after the other, all on one queue.
class DeviceStep {
 public:
  virtual ~DeviceStep() = default;

  // A step begins: whatever was queued for the one before is waited for.
  virtual Status start(DeviceQueue& queue) = 0;

  // The next four only queue, but for steady().
  //
  // Turns the rows of a layer, keeps them and attends what each attends always.
  virtual Status begin(const RowsThere& at, const StepLayer& layer) = 0;
  // What these lists choose, and what it attends of that; `of`: which list each question is of.
  // Their queries and what is attended already are there, and need not be said. Their rows are
  // within reach. Once, after begin(). exhausted: as DeviceChoice::begin().
  virtual Status choose(const ChoiceFormat& format, std::span<const ChoiceQuestion> questions,
                        std::span<const std::uint32_t> of) = 0;
  // In place of choose(), of rows out of reach: list by list the rotated queries
  // [heads][key_dim] and the states of what is attended already, on the host, until end(); to
  // be asked elsewhere, what comes of it being given.
  struct Steady {
    const float* query = nullptr;
    std::span<const AttnState> states;
  };
  virtual Result<Steady> steady() = 0;
  virtual Status give(std::uint32_t list, std::span<const AttnState> states) = 0;
  // Leaves in `mixed` what was attended in all.
  virtual Status end() = 0;

  // Of the layers in the order in which they began. Valid until start().
  struct Answer {
    const std::byte* records = nullptr;  // [rows][kv_heads], one after the other
    // Of the questions, in their order, as DeviceChoice::Answer has them; empty where none were.
    std::span<const std::uint32_t> read, fetched, summaries;
    std::span<const std::uint32_t> of_runs;  // [questions][runs]
    std::size_t runs = 0;
    std::uint64_t crossed_bytes = 0;
  };
  // Waits for all of it.
  virtual Result<std::span<const Answer>> finish() = 0;
};

}  // namespace thermocline
