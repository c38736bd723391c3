// select: which kept rows a step reads, and in what order rows are stored, since a selector knows
// what is read together. It sees K and V once, at sealing; in a step only queries and what it keeps
// itself in the fastest tier.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/error.h"
#include "kernels/base/view.h"
#include "kernels/base/workers.h"
#include "kernels/cpu/table.h"
#include "retrieval/select/kept_selection.h"
#include "tiers/block.h"
#include "tiers/record.h"

namespace thermocline {

class DeviceRule;

// In which order a selector stores rows.
enum class RowOrder : std::uint8_t { position, own };
constexpr std::string_view name_of(RowOrder order) {
  return order == RowOrder::position ? "position" : "own";
}

// What a selector must see of attention.
enum class Watched : std::uint8_t { nothing, queries };

// Facts about a selector that decide how it composes with the other choices.
struct SelectorFacts {
  RowOrder order = RowOrder::position;
  Watched watches = Watched::nothing;
  bool keys_in_memory = false;  // it keeps every key, uncoded, in its index beside the rows
  bool in_files = true;         // whether what it forms can be kept in one, as a session is
  bool everything = false;      // it reads every row, so what it will read is known before
  bool remembers = false;       // what it reads depends on what steps before chose
  bool shares = false;          // or on what layers before chose, in the same step
};

// The rows of one layer that leave the tail, all heads: the one time that a method sees them whole.
struct Sealing {
  LayerId layer{};
  HeadShape shape;  // heads: query heads a KV head
  RawRows rows;     // keys rotated
  // [KV head][row]: position of a row less that of the first, ascending, where a retainer has
  // dropped some. Empty: they follow each other.
  std::span<const std::uint32_t> which = {};
  // A sample of the queries that a prefill asked: [KV head][queries][heads][key_dim], rotated and
  // scaled, of rows all over the text that is read. None in decode, and unless facts().watches says
  // that they are wanted.
  std::uint32_t queries = 0;
  const float* query = nullptr;
  // With those: query i is at position first_query + i * query_stride, and beside the rows it saw
  // these, and read the last `recent` positions before it as every step does.
  std::uint32_t first_query = 0, query_stride = 1, recent = 0;
  RawRows sinks = {};
};

// How a segment is to be formed from a Sealing.
struct Formation {
  // [head][row]: which row of the sealing is stored there. Empty: as they are.
  std::vector<std::uint32_t> order;
  // Summary rows as they are kept, the same number for each head: [head][summaries] records.
  std::uint32_t summaries = 0;
  RowLayout summary_layout;  // key_bytes 0: no keys, so every Read of them is `scored`
  std::vector<std::byte> summary_rows;
  // Every row once more, coded: [head][row] records in the order of the rows. Empty: none.
  RowLayout code_layout;  // as summary_layout
  std::vector<std::byte> code_rows;
  std::shared_ptr<const SegmentIndex> index;  // null: none
  // [head] of the sealing's rows, ascending: those that every step reads, which a codec that loses
  // much keeps as they are. Empty: none.
  std::vector<std::vector<std::uint32_t>> always;
};

// One read list to be chosen: the query heads of one KV head, for one row of a step.
struct ListQuery {
  std::uint32_t head = 0;             // KV head
  std::uint32_t length = 0;           // positions of the timeline, this row included
  const float* query = nullptr;       // [heads][key_dim], rotated and scaled
  std::span<const AttnState> steady;  // [heads]: sinks and tail, exact
  std::uint32_t steady_rows = 0;      // how many those are
  std::span<const Run> runs;
  // Of a selector that remembers: what the step before left in this layer and head, in these runs
  // (null: nothing), and where to leave what the next step is to find (null: it is not asked to).
  const KeptSelection* kept = nullptr;
  KeptSelection* keep = nullptr;
  // Of one that shares: what an earlier layer of this step left for this row and head, or where to
  // leave it. Null: this is not a step.
  KeptSelection* shared = nullptr;
};

// What a step asks of one layer: lists of its rows and KV heads.
struct LayerQuery {
  LayerId layer{};
  HeadShape shape;  // heads: query heads a KV head
  std::span<const ListQuery> lists;
};

// A layer that a selector's settings name.
struct NamedLayer {
  std::string_view setting;
  LayerId layer{};
};

// What choosing cost.
struct Chosen {
  std::uint64_t index_bytes = 0;  // of codes and summaries that were scanned
};

// One for all layers and timelines of a cache.
class Selector {
 public:
  virtual ~Selector() = default;
  virtual std::string_view name() const = 0;
  virtual SelectorFacts facts() const = 0;
  // Of what its choices depend on beside the parameters that a method's file gives it: a file of
  // its own. Empty: nothing.
  virtual std::string fingerprint() const { return {}; }
  // Those that its settings give a part of their own, if they seal rows: a model may lack them.
  virtual std::vector<NamedLayer> named_layers() const { return {}; }
  // How a device chooses in its place; null: none can.
  virtual const DeviceRule* device_rule() const { return nullptr; }

  // Called with at most kSegmentRows rows. Work is spread over `workers`; its cut is fixed, so the
  // formation does not depend on the number of threads.
  virtual Result<Formation> form(const Sealing& sealing, const Workers& workers) const = 0;

  // For a file that outlives the process: what of a formation is kept beside its rows, summaries
  // and index; and the same again, without the order, of `rows` rows in each of `heads` KV heads.
  // `in` is untrusted: corrupt, where form() could not have made that.
  virtual void save(const Formation&, RecordWriter* /*out*/) const {}
  virtual Result<Formation> load(HeadShape, std::uint32_t /*heads*/, std::uint32_t /*rows*/,
                                 RecordReader* /*in*/) const {
    return Formation();
  }

  // Fills out[i] for query.lists[i], whatever other lists there are. Threads of `workers` may call
  // it at the same time, each for lists of its own. Allocates nothing once scratch has grown to the
  // longest timeline. Equal scores go to the lower row. An error ends the step.
  virtual Result<Chosen> choose(const LayerQuery& query, const Workers& workers,
                                std::span<ReadList> out) = 0;

  // Bytes of index, of summary rows and of codes that `rows` sealed rows of one KV head take, in
  // any layer of that shape: form() makes no more. A plan counts blocks, since it cannot know how
  // rows will be cut into segments: so the law is that no segment takes more than its blocks would,
  // each alone, bytes(rows) <= blocks of them * bytes(kBlockRows); and there are no more summaries
  // than rows.
  virtual std::uint64_t index_bytes(HeadShape, std::uint64_t /*rows*/) const { return 0; }
  virtual std::uint64_t summary_bytes(HeadShape, std::uint64_t /*rows*/) const { return 0; }
  virtual std::uint64_t code_bytes(HeadShape, std::uint64_t /*rows*/) const { return 0; }
  // How many of so many sealed rows of one KV head are in Formation::always, at most, by the same
  // law.
  virtual std::uint64_t always_rows(std::uint64_t /*rows*/) const { return 0; }
};

}  // namespace thermocline
