#include "kernels/cuda/step_attention.h"

#include <algorithm>

#include "kernels/cuda/check.h"
#include "kernels/cuda/make_current.h"
#include "kernels/device.h"

namespace thermocline::cuda {
namespace {

// Folds of what one list attends always: each of its two parts begins one.
std::uint32_t steady_folds(std::uint32_t rows) { return 2 + rows / kFoldRows; }
std::uint32_t steady_views(std::uint32_t rows) {
  return steady_folds(rows) * (kFoldRows / kBlockRows);
}

// A step's budgets grow by a row now and then, and shapes by a fold.
ChoiceShape in_folds(ChoiceShape shape) {
  shape.most_budget = static_cast<std::uint32_t>(round_up(shape.most_budget, kFoldRows));
  shape.most_coded = static_cast<std::uint32_t>(round_up(shape.most_coded, kFoldRows));
  return shape;
}

// What choosing works in, in whichever layer.
std::size_t most_work(const StepBounds& bounds) {
  std::size_t most = 0;
  for (const ChoiceFormat& format : bounds.formats)
    for (const bool cached : {false, bounds.chosen.cached}) {
      ChoiceShape shape = shape_within(format, bounds.chosen, bounds.lists);
      shape.cached = cached;
      most = std::max(most, ChoiceWork(in_folds(shape), nullptr).bytes);
    }
  return most;
}

bool any_rebuilds(const StepBounds& bounds) {
  return std::ranges::any_of(
      bounds.formats, [](const ChoiceFormat& format) { return ChoiceShape{format}.rebuilds(); });
}

std::size_t lists_of(const StepBounds& bounds) {
  return std::size_t{bounds.rows} * bounds.kv_heads;
}

// What is in a layer's place, of either memory.
struct Piece {
  // What goes over.
  TurnedRow* row = nullptr;
  float *cosine = nullptr, *sine = nullptr, *key_by = nullptr, *query_by = nullptr;
  HeadFold* folds = nullptr;
  BlockView* views = nullptr;
  std::uint32_t *first = nullptr, *chosen = nullptr;
  ChoiceList* lists = nullptr;
  ChoiceRun* runs = nullptr;
  std::uint32_t* first_chosen = nullptr;
  std::size_t asked_end = 0;
  // What comes back.
  std::byte* records = nullptr;
  std::uint32_t *read = nullptr, *summaries = nullptr, *fetched = nullptr, *of_runs = nullptr;
  std::size_t bytes = 0;

  Piece(const StepBounds& bounds, std::byte* memory) {
    const std::size_t all = lists_of(bounds), choosing = bounds.formats.empty() ? 0 : all;
    Pieces pieces(memory);
    pieces.take(bounds.rows, &row);
    pieces.take(std::size_t{bounds.rows} * bounds.head.key_dim / 2, &cosine);
    pieces.take(std::size_t{bounds.rows} * bounds.head.key_dim / 2, &sine);
    pieces.take(bounds.head.key_dim, &key_by);
    pieces.take(bounds.head.key_dim, &query_by);
    pieces.take(all * steady_folds(bounds.steady), &folds);
    pieces.take(all * steady_views(bounds.steady), &views);
    pieces.take(all + 1, &first);
    pieces.take(all, &chosen);
    pieces.take(choosing, &lists);
    pieces.take(choosing * bounds.chosen.runs, &runs);
    pieces.take(2 * choosing, &first_chosen);
    asked_end = pieces.bytes();
    pieces.take(all * 2 * (bounds.head.key_dim + bounds.head.value_dim), &records);
    pieces.take(choosing, &read);
    pieces.take(choosing, &summaries);
    pieces.take(choosing, &fetched);
    pieces.take(any_rebuilds(bounds) ? choosing * bounds.chosen.runs : 0, &of_runs);
    bytes = pieces.bytes();
  }
};

// What the host sees of the layer in hand, and gives, where rows are out of the device's reach.
struct View {
  float* query = nullptr;
  States steady;
  std::size_t seen_end = 0;
  std::uint32_t* chosen = nullptr;
  States given;
  std::size_t bytes = 0;

  View(const StepBounds& bounds, std::byte* memory) {
    const std::size_t lists = lists_of(bounds);
    Pieces pieces(memory);
    pieces.take(lists * bounds.head.heads * bounds.head.key_dim, &query);
    cut_states(bounds.head, lists, &pieces, &steady);
    seen_end = pieces.bytes();
    pieces.take(lists, &chosen);
    cut_states(bounds.head, lists, &pieces, &given);
    bytes = pieces.bytes();
  }
};

// And what is on the device alone.
struct Work {
  States partial, merged;  // of what is attended always: of folds; of what is chosen: of questions
  std::byte* chosen = nullptr;  // ChoiceWork: most_work() behind these
  std::size_t bytes = 0;

  Work(const StepBounds& bounds, std::byte* memory) {
    const std::size_t lists = lists_of(bounds), choosing = bounds.formats.empty() ? 0 : lists;
    Pieces pieces(memory);
    cut_states(bounds.head, lists * steady_folds(bounds.steady), &pieces, &partial);
    cut_states(bounds.head, choosing, &pieces, &merged);
    if (memory != nullptr) chosen = memory + pieces.bytes();
    bytes = pieces.bytes();
  }
};

// The folds of some records, and their views behind those before; returns how many folds.
std::uint32_t add_folds(const RecordsThere& records, std::uint32_t head, HeadShape shape,
                        const float* query, HeadFold* folds, BlockView** here, BlockView** there) {
  const std::uint32_t key_bytes = 2 * shape.key_dim, stride = key_bytes + 2 * shape.value_dim;
  std::uint32_t made = 0;
  for (std::uint32_t first = 0; first < records.rows; first += kFoldRows, ++made) {
    const std::uint32_t last = std::min<std::uint32_t>(records.rows, first + kFoldRows);
    const BlockView* const begin = *there;
    for (std::uint32_t row = first; row < last; row += kBlockRows) {
      const std::byte* const key =
          records.first + head * records.head_apart + std::size_t{row} * stride;
      const int rows = static_cast<int>(std::min<std::uint32_t>(kBlockRows, last - row));
      *(*here)++ = {key, key + key_bytes, first_rows(rows), nullptr};
      ++*there;
    }
    HeadFold& fold = folds[made] = {};
    fold.query = query;
    fold.fold.key_stride = fold.fold.value_stride = stride;
    fold.fold.blocks = {begin, static_cast<std::size_t>(*there - begin)};
  }
  return made;
}

}  // namespace

StepAttention::StepAttention(std::uint32_t number, const StepBounds& bounds)
    : number_(number), bounds_(bounds) {
  piece_bytes_ = Piece(bounds, nullptr).bytes;
  view_bytes_ = View(bounds, nullptr).bytes;
  most_work_bytes_ = most_work(bounds);
  work_bytes_ = Work(bounds, nullptr).bytes + most_work_bytes_;
}

StepBytes StepAttention::bytes(const StepBounds& bounds) {
  const StepAttention sizes(0, bounds);
  const std::uint64_t both = bounds.layers * std::uint64_t{sizes.piece_bytes_} + sizes.view_bytes_;
  return {both + sizes.work_bytes_, both};
}

Result<std::unique_ptr<StepAttention>> StepAttention::create(std::uint32_t number,
                                                             const StepBounds& bounds) {
  TL_TRY(make_current(number));
  std::unique_ptr<StepAttention> made(new StepAttention(number, bounds));
  const StepBytes both = bytes(bounds);
  TL_TRY_ASSIGN(made->device_,
                take_device_bytes(both.device, "taking device memory to attend a step in"));
  TL_TRY_ASSIGN(made->pinned_, take_pinned_bytes(both.host));
  return made;
}

// What is queued reads and writes memory that goes now.
StepAttention::~StepAttention() {
  if (stream_ != nullptr) static_cast<void>(wait());
}

// What is gathered is launched here.
Status StepAttention::wait() {
  TL_TRY(make_current(number_));
  return stream_->wait();
}

Status StepAttention::start(DeviceQueue& queue) {
  if (stream_ != nullptr) TL_TRY(wait());
  stream_ = static_cast<Stream*>(&queue);
  order_ = next_shape_ = 0;
  answers_.clear();
  return {};
}

Status StepAttention::begin(const RowsThere& at, const StepLayer& layer) {
  TL_CHECK(order_ < bounds_.layers && layer.rows.size() <= bounds_.rows);
  const Piece here(bounds_, piece_here()), there(bounds_, piece_there());
  const View view(bounds_, view_there());
  const HeadShape head = layer.head;
  const auto rows = static_cast<std::uint32_t>(layer.rows.size());
  layer_ = {};
  layer_.lists = rows * layer.kv_heads;
  layer_.mixed = at.mixed;
  TurnedLayer& turned = layer_.turned;
  turned.head = head;
  turned.kv_heads = layer.kv_heads;
  turned.rows = rows;
  turned.pairs = layer.pairs;
  turned.halves = layer.layout == RopePairs::halves ? 1 : 0;
  turned.scale = layer.scale;
  turned.q = at.q;
  turned.k = at.k;
  turned.v = at.v;
  turned.row = there.row;
  turned.query = view.query;
  turned.records = there.records;
  std::ranges::copy(layer.key_by, here.key_by);
  std::ranges::copy(layer.query_by, here.query_by);
  if (!layer.key_by.empty()) turned.key_by = there.key_by;
  if (!layer.query_by.empty()) turned.query_by = there.query_by;

  for (const StepRow& row : layer.rows) {
    const auto number = static_cast<std::uint32_t>(&row - layer.rows.data());
    const std::size_t angles = std::size_t{number} * layer.pairs;
    std::copy_n(row.cosine, layer.pairs, here.cosine + angles);
    std::copy_n(row.sine, layer.pairs, here.sine + angles);
    here.row[number] = {there.cosine + angles, there.sine + angles, row.record, row.head_apart};
    std::uint32_t folds = 0;
    for (const RecordsThere& records : row.steady)
      folds += (records.rows + kFoldRows - 1) / kFoldRows;
    layer_.folds = std::max(layer_.folds, folds);
  }
  TL_CHECK(layer_.folds <= steady_folds(bounds_.steady));
  BlockView *views_here = here.views, *views_there = there.views;
  for (std::uint32_t list = 0; list < layer_.lists; ++list) {
    const StepRow& row = layer.rows[list / layer.kv_heads];
    const float* const query = view.query + std::size_t{list} * head.heads * head.key_dim;
    HeadFold* const folds = here.folds + std::size_t{list} * layer_.folds;
    std::uint32_t made = 0;
    for (const RecordsThere& records : row.steady)
      made += add_folds(records, list % layer.kv_heads, head, query, folds + made, &views_here,
                        &views_there);
    std::fill(folds + made, folds + layer_.folds, HeadFold{});  // of no rows
    here.first[list] = list * layer_.folds;
    here.chosen[list] = kNoState;
  }
  here.first[layer_.lists] = layer_.lists * layer_.folds;
  return {};
}

Status StepAttention::choose(const ChoiceFormat& format, std::span<const ChoiceQuestion> questions,
                             std::span<const std::uint32_t> of) {
  TL_CHECK(layer_.questions == 0 && questions.size() <= layer_.lists);
  const Piece here(bounds_, piece_here()), there(bounds_, piece_there());
  const HeadShape head = format.head;
  const View view(bounds_, view_there());
  ChoiceRun *run_here = here.runs, *run_there = there.runs;
  // Alike in all parts: what comes back of a list's runs is so many numbers.
  const auto runs_of = [](const ChoiceQuestion& one) { return one.runs.size(); };
  if (!questions.empty())
    layer_.runs =
        static_cast<std::uint32_t>(runs_of(*std::ranges::max_element(questions, {}, runs_of)));
  while (layer_.questions < questions.size()) {
    const auto left = questions.subspan(layer_.questions);
    const auto as_chosen = [&](ChoiceShape shape) {
      shape.most_runs = layer_.runs;
      return in_folds(shape);
    };
    TL_TRY_ASSIGN(ChoiceShape shape, shape_of(format, left, [&](const ChoiceShape& more) {
                    return layer_.runs <= bounds_.chosen.runs &&
                           ChoiceWork(as_chosen(more), nullptr).bytes <= most_work_bytes_;
                  }));
    shape = as_chosen(shape);
    ++step_;
    Part part;
    part.first = layer_.questions;
    part.first_fold = layer_.questions + layer_.parts.size();
    part.shape = next_shape_++;
    if (shapes_.size() < next_shape_) shapes_.resize(next_shape_);
    if (!(shapes_[part.shape] == shape)) shapes_[part.shape] = shape;
    for (std::uint32_t i = 0; i < shape.lists; ++i) {
      const std::size_t question = part.first + i;
      ChoiceList list = list_of(shape, left[i], step_, run_here, run_there);
      run_here += left[i].runs.size();
      run_there += left[i].runs.size();
      list.query = view.query + std::size_t{of[question]} * head.heads * head.key_dim;
      list.steady_max = view.steady.max + std::size_t{of[question]} * head.heads;
      list.steady_sum = view.steady.sum + std::size_t{of[question]} * head.heads;
      here.lists[question] = list;
      here.first_chosen[part.first_fold + i] = i * shape.folds();
      here.chosen[of[question]] = static_cast<std::uint32_t>(question);
    }
    here.first_chosen[part.first_fold + shape.lists] = shape.lists * shape.folds();
    layer_.questions += shape.lists;
    layer_.parts.push_back(part);
  }
  return {};
}

Status StepAttention::queue_begin() {
  if (layer_.begun) return {};
  layer_.begun = true;
  const Piece there(bounds_, piece_there());
  const Work work(bounds_, work_there());
  const View view(bounds_, view_there());
  const HeadShape head = layer_.turned.head;
  const std::size_t folds = std::size_t{layer_.lists} * layer_.folds;
  TL_TRY(make_current(number_));
  TL_TRY(stream_->copy(piece_there(), piece_here(), there.asked_end, cudaMemcpyHostToDevice,
                       "telling a device of a layer"));
  TL_TRY(turn(*stream_, layer_.turned));
  TL_TRY(attend(*stream_, head, {there.folds, folds}, work.partial));
  return merge(*stream_, head, work.partial, {there.first, layer_.lists + std::size_t{1}},
               view.steady);
}

Status StepAttention::queue_part(const Part& part) {
  const Piece there(bounds_, piece_there());
  const Work work(bounds_, work_there());
  const ChoiceShape& shape = shapes_[part.shape];
  ChoiceWork chosen(shape, work.chosen);
  chosen.board.read = there.read + part.first;
  chosen.board.summaries = there.summaries + part.first;
  chosen.board.fetched = there.fetched + part.first;
  if (shape.rebuilds()) chosen.board.of_runs = there.of_runs + part.first * layer_.runs;
  States merged = work.merged;
  merged.max += part.first * shape.head.heads;
  merged.sum += part.first * shape.head.heads;
  merged.acc += part.first * shape.head.heads * shape.head.value_dim;
  TL_TRY(cuda::choose(*stream_, shape, {there.lists + part.first, shape.lists}, chosen.board));
  TL_TRY(attend(*stream_, shape.head, {chosen.board.folds, shape.lists * shape.folds()},
                chosen.partial));
  return merge(*stream_, shape.head, chosen.partial,
               {there.first_chosen + part.first_fold, shape.lists + std::size_t{1}}, merged);
}

Result<DeviceStep::Steady> StepAttention::steady() {
  TL_CHECK(layer_.questions == 0);
  TL_TRY(queue_begin());
  const View view(bounds_, view_here());
  TL_TRY(stream_->copy(view_here(), view_there(), view.seen_end, cudaMemcpyDeviceToHost,
                       "copying a layer's queries from a device"));
  TL_TRY(wait());
  layer_.asked_elsewhere = true;
  std::fill_n(view.chosen, layer_.lists, kNoState);
  const HeadShape head = layer_.turned.head;
  states_.resize(std::size_t{layer_.lists} * head.heads);
  for (std::size_t i = 0; i < states_.size(); ++i)
    states_[i] = {view.steady.max[i], view.steady.sum[i], view.steady.acc + i * head.value_dim};
  return Steady{view.query, states_};
}

Status StepAttention::give(std::uint32_t list, std::span<const AttnState> states) {
  const HeadShape head = layer_.turned.head;
  TL_CHECK(layer_.asked_elsewhere && list < layer_.lists && states.size() == head.heads);
  const View view(bounds_, view_here());
  view.chosen[list] = list;
  for (std::uint32_t h = 0; h < head.heads; ++h) {
    const std::size_t at = std::size_t{list} * head.heads + h;
    view.given.max[at] = states[h].max;
    view.given.sum[at] = states[h].sum;
    std::copy_n(states[h].acc, head.value_dim, view.given.acc + at * head.value_dim);
  }
  return {};
}

Status StepAttention::end() {
  TL_TRY(queue_begin());
  for (const Part& part : layer_.parts) TL_TRY(queue_part(part));
  const Piece here(bounds_, piece_here()), there(bounds_, piece_there());
  const Work work(bounds_, work_there());
  const View view(bounds_, view_there());
  TL_TRY(make_current(number_));
  std::uint64_t crossed = there.bytes;
  if (layer_.asked_elsewhere) {
    TL_TRY(stream_->copy(view_there() + view.seen_end, view_here() + view.seen_end,
                         view.bytes - view.seen_end, cudaMemcpyHostToDevice,
                         "copying states to a device"));
    crossed += view.bytes;
  }
  TL_TRY(mix(*stream_, layer_.turned.head, layer_.lists, view.steady,
             layer_.asked_elsewhere ? view.given : work.merged,
             layer_.asked_elsewhere ? view.chosen : there.chosen, layer_.mixed));
  TL_TRY(stream_->copy(piece_here() + there.asked_end, piece_there() + there.asked_end,
                       there.bytes - there.asked_end, cudaMemcpyDeviceToHost,
                       "copying a layer's records from a device"));
  const std::size_t questions = layer_.questions;
  const ChoiceShape shape = questions > 0 ? shapes_[layer_.parts.front().shape] : ChoiceShape();
  const bool fetched = shape.cached;
  const std::size_t of_runs = shape.rebuilds() ? questions * layer_.runs : 0;
  answers_.push_back({here.records,
                      {here.read, questions},
                      {here.fetched, fetched ? questions : 0},
                      {here.summaries, questions},
                      {here.of_runs, of_runs},
                      layer_.runs,
                      crossed});
  ++order_;
  return {};
}

Result<std::span<const DeviceStep::Answer>> StepAttention::finish() {
  TL_TRY(wait());
  return std::span<const Answer>(answers_);
}

}  // namespace thermocline::cuda
