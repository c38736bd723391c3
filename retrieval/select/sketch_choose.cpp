#include <atomic>

#include "retrieval/select/sketch.h"
#include "retrieval/select/sketch_reads.h"

namespace thermocline {

// A thread's, on lines of its own.
struct alignas(64) SketchSelector::Board {
  Board(const SketchOptions& options, const CpuTable& cpu) : list(options, cpu) {}

  // Returns the bytes of means, codes or keys, and summaries that were looked at.
  std::uint64_t choose(HeadShape shape, const ListQuery& query, const Workers& workers,
                       ReadList* out) {
    list.begin(shape, query, workers);
    if (list.everything) {
      out->take_all(query.runs.size());
      return 0;
    }
    list.prepare_queries();
    means.score(list);
    if (!list.looks_at_all()) means.rate(list);
    rows.look(list, &means);
    const std::size_t code_bytes =
        sketch_row_bytes(static_cast<int>(list.options.bits), shape.key_dim) +
        (list.options.keeps_keys() ? 0 : sizeof(f16));
    return means.units().count * row_bytes(SketchIndex::kMeanFormat, shape.key_dim) +
           rows.rows() * code_bytes + reads.write(list, means, &rows, out);
  }

  SketchList list;
  SketchMeans means;
  SketchRows rows;
  SketchReads reads;
};

SketchSelector::SketchSelector(const SketchOptions& options, const CpuTable& cpu)
    : options_(options), rule_(options), cpu_(cpu) {
  const int threads = Workers::usable(0);
  boards_.reserve(static_cast<std::size_t>(threads));
  for (int t = 0; t < threads; ++t) boards_.emplace_back(options_, cpu_);
}

SketchSelector::~SketchSelector() = default;

Result<Chosen> SketchSelector::choose(const LayerQuery& query, const Workers& workers,
                                      std::span<ReadList> out) {
  const std::span<const ListQuery> lists = query.lists;
  TL_CHECK(lists.size() == out.size());
  std::atomic<std::uint64_t> index_bytes{0};
  workers.parallel(lists.size(), 1, [&](std::size_t first, std::size_t last) {
    Board& board = boards_[Workers::slot()];
    for (std::size_t l = first; l < last; ++l)
      index_bytes.fetch_add(board.choose(query.shape, lists[l], workers, &out[l]),
                            std::memory_order_relaxed);
  });
  return Chosen{index_bytes.load()};
}

}  // namespace thermocline
