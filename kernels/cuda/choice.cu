#include "kernels/cuda/choice.h"

#include "kernels/cuda/board.h"
#include "kernels/cuda/fetch.h"
#include "kernels/cuda/pieces.h"
#include "kernels/cuda/ranked.h"
#include "kernels/cuda/rebuild.h"
#include "kernels/cuda/row_part.h"
#include "kernels/cuda/sketch.h"
#include "kernels/cuda/stage.h"
#include "kernels/cuda/warp.h"

namespace thermocline::cuda {
namespace {

// What a list's sets are cut to: views of blocks, and folds of them, cut at kFoldRows in each run.
struct Cut {
  const RowSet* sets;
  std::uint32_t blocks;  // of all runs
  BlockView* views;      // from here on
  HeadFold* folds;
  std::uint32_t most_folds;
};

// By all threads of a block. first_block(run) is where a run's blocks begin. kByRow: view(run, row
// of the run, rank in the list) is the view of one row; otherwise view(run, block of the run, rank
// in the list) that of a block's rows, which are still to be said. `fold` is a fold without its
// blocks. Returns how many views there are now.
template <bool kByRow, typename FirstBlock, typename View>
__device__ std::uint32_t cut_folds(const Cut& cut, std::uint32_t runs,
                                   const FirstBlock& first_block, const View& view,
                                   const HeadFold& fold) {
  for (std::uint32_t f = threadIdx.x; f < cut.most_folds; f += kListThreads) {
    cut.folds[f] = fold;
    cut.folds[f].fold.blocks = {};
  }
  __syncthreads();
  // Run by run: a run has at most kListThreads blocks.
  std::uint32_t views = 0, folds = 0, rank = 0;  // before the run
  for (std::uint32_t run = 0; run < runs; ++run) {
    const std::uint32_t begin = first_block(run);
    const std::uint32_t end = run + 1 < runs ? first_block(run + 1) : cut.blocks;
    const std::uint32_t b = begin + threadIdx.x;
    RowSet left = b < end ? cut.sets[b] : 0;
    const auto n = static_cast<std::uint32_t>(__popcll(left));
    std::uint32_t rows = 0, made = 0;
    std::uint32_t before = sum_before<kListThreads>(n, &rows);  // rows of the run
    const std::uint32_t room = kFoldRows - before % kFoldRows;  // in the fold at hand
    const std::uint32_t mine = kByRow ? n : n == 0 ? 0 : n > room ? 2 : 1;
    std::uint32_t at = views + sum_before<kListThreads>(mine, &made);
    for (; left != 0; ++at) {
      RowSet part = left & (~left + 1);  // its lowest row
      BlockView made_view;
      if constexpr (kByRow) {
        const int row = __ffsll(static_cast<long long>(part)) - 1;
        made_view = view(run, (b - begin) * kBlockRows + row, rank + before);
        made_view.rows = 1;
      } else {
        part = left;
        const std::uint32_t fits = kFoldRows - before % kFoldRows;
        for (auto drop = static_cast<std::uint32_t>(__popcll(part)); drop > fits; --drop)
          part &= ~(RowSet{1} << (63 - __clzll(static_cast<long long>(part))));  // its highest
        made_view = view(run, b - begin, rank + before);
        made_view.rows = part;
      }
      cut.views[at] = made_view;
      // A fold is told where it begins by the view that does.
      if (before % kFoldRows == 0)
        cut.folds[folds + before / kFoldRows].fold.blocks = {cut.views + at, 1};
      before += static_cast<std::uint32_t>(__popcll(part));
      left &= ~part;
    }
    const std::uint32_t run_folds = (rows + kFoldRows - 1) / kFoldRows;
    views += made;
    folds += run_folds;
    rank += rows;
    __syncthreads();
  }
  // And where it ends by the one after it.
  for (std::uint32_t first = 0; first < folds; first += kListThreads) {
    const std::uint32_t f = first + threadIdx.x;
    const BlockView *begin = nullptr, *end = cut.views + views;
    if (f < folds) begin = cut.folds[f].fold.blocks.data();
    if (f + 1 < folds) end = cut.folds[f + 1].fold.blocks.data();
    __syncthreads();
    if (f < folds) cut.folds[f].fold.blocks = {begin, static_cast<std::size_t>(end - begin)};
  }
  __syncthreads();
  return views;
}

// body(row, its rank) for all rows of `sets`; every thread of the block comes along. Returns how
// many those are.
template <typename Body>
__device__ std::uint32_t for_ranks(const RowSet* sets, std::uint32_t blocks, const Body& body) {
  std::uint32_t before = 0;
  for (std::uint32_t first = 0; first < blocks; first += kListThreads) {
    const std::uint32_t b = first + threadIdx.x;
    RowSet set = b < blocks ? sets[b] : 0;
    std::uint32_t total = 0;
    std::uint32_t rank = before + sum_before<kListThreads>(__popcll(set), &total);
    before += total;
    for (; set != 0; set &= set - 1, ++rank)
      body(b * kBlockRows + __ffsll(static_cast<long long>(set)) - 1, rank);
  }
  return before;
}

// Of rows that have values alone, and scores that are given.
__device__ HeadFold scored_fold(const float* query, RowFormat format, std::uint32_t row_bytes) {
  HeadFold made;
  made.query = query;
  made.fold.value_format = format;
  made.fold.key_stride = made.fold.value_stride = row_bytes;
  made.fold.scored = true;
  return made;
}
__device__ BlockView scored_view(const std::byte* rows, std::uint32_t block,
                                 std::uint32_t row_bytes, const float* scores) {
  const std::byte* value = rows + std::size_t(block) * kBlockRows * row_bytes;
  return {value, value, 0, scores};
}

// Of the estimated units. Returns how many those are.
__device__ std::uint32_t write_summary_folds(const ChoiceShape& shape, const ChoiceList& list,
                                             const ChoiceBoard& board, BlockView* views,
                                             HeadFold* folds) {
  const std::uint32_t heads = shape.head.heads, blocks = blocks_of(list.units);
  const ChoiceRun* const run = list.runs.data();
  cut_folds<false>(
      {board.estimated, blocks, views, folds, shape.summary_folds()},
      static_cast<std::uint32_t>(list.runs.size()),
      [&](std::uint32_t r) { return run[r].first_unit / kBlockRows; },
      [&](std::uint32_t r, std::uint32_t block, std::uint32_t rank) {
        return scored_view(run[r].summary, block, shape.summary_bytes,
                           board.log_weight + std::size_t(rank) * heads);
      },
      scored_fold(list.query, shape.summary_format, shape.summary_bytes));
  // Their scores: the unit's, and the log of how many rows it stands for; where rows are coded, the
  // log of all weight that it has.
  return for_ranks(board.estimated, blocks, [&](std::uint32_t u, std::uint32_t rank) {
    const float unread = shape.bits > 0 ? board.unread[u] : board.unit_rows[u];
    for (std::uint32_t h = 0; h < heads; ++h) {
      const std::size_t at = std::size_t(h) * shape.most_units + u;
      const float score = board.unit_score[at];
      const float coded = shape.most_coded > 0 ? board.unit_coded[at] : 0.0f;
      board.log_weight[std::size_t(rank) * heads + h] =
          coded > 0.0f ? board.shift[h] + logf(coded + unread * expf(score - board.shift[h]))
                       : score + logf(unread);
    }
  });
}

// Block (chunk of blocks, list): all rows that there are.
__global__ void __launch_bounds__(kChunkThreads)
    take_everything(ChoiceShape shape, const ChoiceList* lists, ChoiceBoard boards) {
  const ChoiceList& list = lists[blockIdx.y];
  const std::uint32_t b = blockIdx.x * kChunk + threadIdx.x;
  if (b >= blocks_of(list.rows)) return;
  const ChoiceRun& run = list.runs.data()[run_of(list, &ChoiceRun::first_row, b * kBlockRows)];
  const std::uint32_t before = b * kBlockRows - run.first_row;
  board_of(shape, boards, blockIdx.y).sets[b] =
      first_rows(static_cast<int>(min(run.rows - before, std::uint32_t{kBlockRows})));
}

// Block (list): the folds of what is chosen.
__global__ void __launch_bounds__(kListThreads)
    write_folds(ChoiceShape shape, const ChoiceList* lists, ChoiceBoard boards) {
  const ChoiceList& list = lists[blockIdx.x];
  const ChoiceBoard board = board_of(shape, boards, blockIdx.x);
  const std::uint32_t heads = shape.head.heads;
  const auto runs = static_cast<std::uint32_t>(list.runs.size());
  const ChoiceRun* const run = list.runs.data();

  HeadFold rows;
  rows.query = list.query;
  rows.fold.key_format = shape.key_format;
  rows.fold.value_format = shape.value_format;
  rows.fold.key_stride = rows.fold.value_stride = shape.row_bytes;
  const Cut of_rows{board.sets, blocks_of(list.rows), board.views, board.folds, shape.row_folds()};
  const auto first_row_block = [&](std::uint32_t r) { return run[r].first_row / kBlockRows; };
  const auto view_at = [&](const std::byte* key) {
    return BlockView{key, key + shape.key_bytes, 0, nullptr};
  };
  const std::uint32_t key_bytes = shape.head.key_dim * sizeof(float);  // of one that is rebuilt
  if (shape.rebuilds()) rows.fold.key_stride = key_bytes;
  std::uint32_t views = 0;
  if (shape.views_by_row())
    views = cut_folds<true>(
        of_rows, runs, first_row_block,
        [&](std::uint32_t r, std::uint32_t row, std::uint32_t rank) {
          const std::uint32_t at = run[r].first_row + row;
          const std::int32_t slot = shape.cached ? list.cache.slot_of[at] : -1;
          BlockView view =
              view_at(slot < 0 ? run[r].row - shape.key_bytes + std::size_t(row) * shape.row_bytes
                               : list.cache.records + std::size_t(slot) * shape.row_bytes);
          if (shape.rebuilds()) {
            board.rebuilt[rank] = at;
            view.key =
                reinterpret_cast<const std::byte*>(board.keys) + std::size_t(rank) * key_bytes;
          }
          return view;
        },
        rows);
  else
    views = cut_folds<false>(
        of_rows, runs, first_row_block,
        [&](std::uint32_t r, std::uint32_t block, std::uint32_t) {
          return view_at(run[r].row - shape.key_bytes +
                         std::size_t(block) * kBlockRows * shape.row_bytes);
        },
        rows);

  // A row that is read is not attended by its code too.
  if (shape.most_coded > 0) {
    for (std::uint32_t b = threadIdx.x; b < blocks_of(list.rows); b += kListThreads)
      board.coded[b] &= ~board.sets[b];
    __syncthreads();
    HeadFold codes = scored_fold(list.query, shape.residual_format, shape.residual_bytes);
    codes.fold.residual = true;
    views += cut_folds<false>(
        {board.coded, blocks_of(list.rows), board.views + views, board.folds + shape.row_folds(),
         shape.coded_folds()},
        runs, first_row_block,
        [&](std::uint32_t r, std::uint32_t block, std::uint32_t rank) {
          return scored_view(run[r].residual, block, shape.residual_bytes,
                             board.coded_weight + std::size_t(rank) * heads);
        },
        codes);
    for_ranks(board.coded, blocks_of(list.rows), [&](std::uint32_t row, std::uint32_t rank) {
      for (std::uint32_t h = 0; h < heads; ++h)
        board.coded_weight[std::size_t(rank) * heads + h] =
            board.shift[h] + logf(board.weight[std::size_t(h) * shape.most_rows + row]);
    });
  }

  std::uint32_t read = 0;
  for (std::uint32_t b = threadIdx.x; b < blocks_of(list.rows); b += kListThreads)
    read += static_cast<std::uint32_t>(__popcll(board.sets[b]));
  read = reduce<kListThreads>(read, Add());
  const std::uint32_t summaries =
      shape.summary_bytes > 0
          ? write_summary_folds(shape, list, board, board.views + views,
                                board.folds + shape.row_folds() + shape.coded_folds())
          : 0;
  if (threadIdx.x == 0) {
    *board.read = read;
    *board.summaries = summaries;
  }
  for (std::uint32_t r = threadIdx.x; shape.rebuilds() && r < runs; r += kListThreads) {
    const std::uint32_t begin = run[r].first_row / kBlockRows;
    std::uint32_t of_run = 0;
    for (std::uint32_t b = begin; b < begin + blocks_of(run[r].rows); ++b)
      of_run += static_cast<std::uint32_t>(__popcll(board.sets[b]));
    board.of_runs[r] = of_run;
  }
}

std::size_t cut_board(const ChoiceShape& shape, std::byte* memory, ChoiceBoard* board) {
  const std::size_t lists = shape.lists, heads = lists * shape.head.heads;
  const std::size_t with_codes = shape.bits > 0 ? 1 : 0, with_units = 1 - with_codes;
  const std::size_t coded = shape.most_coded > 0 ? 1 : 0, summed = shape.summary_bytes > 0 ? 1 : 0;
  const std::size_t rebuilds = shape.rebuilds() ? 1 : 0;
  Pieces pieces(memory);
  pieces.take(with_codes * heads, &board->query_scale);
  pieces.take(with_codes * heads, &board->query_sum);
  pieces.take(with_codes * heads * shape.head.key_dim / 4, &board->query_code);
  pieces.take(heads * shape.most_units, &board->unit_score);
  pieces.take(heads, &board->shift);
  pieces.take(heads, &board->beside);
  pieces.take(heads, &board->unit_share);
  pieces.take(with_units * lists * shape.most_units, &board->rank);
  pieces.take(with_units * lists * shape.most_units, &board->unit_rows);
  pieces.take(with_units * lists * blocks_of(shape.most_units), &board->taken);
  pieces.take(with_codes * heads * shape.most_rows, &board->weight);
  pieces.take(with_codes * heads * chunks_of(shape.most_rows), &board->part_sum);
  pieces.take(with_codes * lists * shape.most_rows, &board->mass);
  pieces.take(coded * lists * shape.most_rows, &board->loss);
  pieces.take(lists * blocks_of(shape.most_rows), &board->sets);
  pieces.take(coded * lists * blocks_of(shape.most_rows), &board->coded);
  pieces.take(with_codes * lists * blocks_of(shape.most_rows), &board->ties);
  pieces.take(summed * lists * blocks_of(shape.most_units), &board->estimated);
  pieces.take(lists, &board->read);
  pieces.take(lists, &board->summaries);
  pieces.take(shape.cached ? lists * shape.most_budget : 0, &board->missed);
  pieces.take(shape.cached ? lists : 0, &board->fetched);
  pieces.take(rebuilds * lists * shape.most_budget, &board->rebuilt);
  pieces.take(rebuilds * lists * shape.most_budget * shape.head.key_dim, &board->keys);
  pieces.take(rebuilds * lists * shape.most_runs, &board->of_runs);
  pieces.take(with_codes * lists * shape.most_units, &board->unread);
  pieces.take(summed * heads * shape.most_units, &board->log_weight);
  pieces.take(coded * heads * shape.most_units, &board->unit_coded);
  pieces.take(heads * shape.most_coded, &board->coded_weight);
  pieces.take(lists * shape.views(), &board->views);
  pieces.take(lists * shape.folds(), &board->folds);
  return pieces.bytes();
}

}  // namespace

std::size_t ChoiceBoard::bytes(const ChoiceShape& shape) {
  ChoiceBoard nowhere;
  return cut_board(shape, nullptr, &nowhere);
}

ChoiceBoard ChoiceBoard::cut(const ChoiceShape& shape, std::byte* memory) {
  ChoiceBoard board;
  cut_board(shape, memory, &board);
  return board;
}

Status can_choose(const ChoiceShape& shape) {
  const HeadShape head = shape.head;
  if (head.heads < 1 || head.heads > kMostHeads)
    return fail(ErrorCode::unsupported, "choosing on the device takes 1 to ", kMostHeads,
                " query heads a KV head, not ", head.heads);
  if (head.key_dim > kMaxHeadDim || head.key_dim % kPart != 0)
    return fail(ErrorCode::unsupported, "choosing on the device takes heads of up to ", kMaxHeadDim,
                " channels, in steps of ", kPart, ", not ", head.key_dim);
  if (shape.bits != 0 && !sketch_takes(shape.bits, head.key_dim))
    return fail(ErrorCode::unsupported,
                "choosing on the device takes codes of 1, 2 or 4 bits, not ", shape.bits, " of ",
                head.key_dim, " channels");
  Fold rows, summaries;
  if (!shape.rebuilds()) rows.key_format = shape.key_format;
  rows.value_format = shape.value_format;
  TL_TRY(can_attend(head, rows));
  summaries.value_format = shape.summary_format;
  summaries.scored = true;
  if (shape.summary_bytes > 0) TL_TRY(can_attend(head, summaries));
  summaries.value_format = shape.residual_format;
  return shape.most_coded > 0 ? can_attend(head, summaries) : Status();
}

Status choose(Stream& stream, const ChoiceShape& shape, std::span<const ChoiceList> lists,
              const ChoiceBoard& board) {
  TL_TRY(can_choose(shape));
  TL_CHECK(lists.size() == shape.lists && shape.lists <= 65535);
  if (lists.empty()) return {};
  const Stages stages{stream, shape, lists, board};
  if (shape.everything)
    TL_TRY(stages.queue("take everything", dim3(chunks_of(blocks_of(shape.most_rows)), shape.lists),
                        kChunkThreads, take_everything));
  else
    TL_TRY(shape.bits > 0 ? take_by_codes(stream, shape, lists, board)
                          : take_by_units(stream, shape, lists, board));
  if (shape.cached) TL_TRY(fetch(stream, shape, lists, board));
  TL_TRY(stages.queue("write folds", dim3(shape.lists), kListThreads, write_folds));
  return shape.rebuilds() ? rebuild(stream, shape, lists, board) : Status();
}

}  // namespace thermocline::cuda
