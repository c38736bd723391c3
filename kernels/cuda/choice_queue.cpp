#include "kernels/cuda/choice_queue.h"

#include <algorithm>

#include "kernels/cuda/check.h"
#include "kernels/cuda/choice_work.h"
#include "kernels/cuda/fetch.h"
#include "kernels/cuda/make_current.h"
#include "kernels/cuda/pieces.h"
#include "kernels/device.h"

namespace thermocline::cuda {
namespace {

// What goes over. Of either memory, as the next two.
struct Asked {
  float* query = nullptr;                              // [list][heads][key_dim]
  float *steady_max = nullptr, *steady_sum = nullptr;  // [list][heads]
  ChoiceList* lists = nullptr;
  ChoiceRun* runs = nullptr;       // of a list after the other
  std::uint32_t* first = nullptr;  // [lists + 1]: which fold is the first of each

  void cut(const ChoiceShape& shape, Pieces* from) {
    const std::size_t heads = std::size_t{shape.lists} * shape.head.heads;
    from->take(heads * shape.head.key_dim, &query);
    from->take(heads, &steady_max);
    from->take(heads, &steady_sum);
    from->take(shape.lists, &lists);
    from->take(std::size_t{shape.lists} * shape.most_runs, &runs);
    from->take(shape.lists + std::size_t{1}, &first);
  }
};

// What comes back, where rows come packed before they do.
struct Missed {
  std::uint32_t* count = nullptr;  // [list]
  std::uint32_t* rows = nullptr;   // [list][most_budget]; only of those that come packed

  void cut(const ChoiceShape& shape, Pieces* from) {
    from->take(shape.cached ? shape.lists : 0, &count);
    from->take(shape.packed ? std::size_t{shape.lists} * shape.most_budget : 0, &rows);
  }
};

// And what comes back last.
struct Answered {
  States states;                                        // of lists
  std::uint32_t *read = nullptr, *summaries = nullptr;  // [list]
  std::uint32_t* of_runs = nullptr;                     // [list][most_runs]

  void cut(const ChoiceShape& shape, Pieces* from) {
    cut_states(shape.head, shape.lists, from, &states);
    from->take(shape.lists, &read);
    from->take(shape.lists, &summaries);
    from->take(shape.rebuilds() ? std::size_t{shape.lists} * shape.most_runs : 0, &of_runs);
  }
};

// What is in either memory, where each part ends, or how much that is.
struct Crossing {
  Asked asked;
  Missed missed;
  Answered answered;
  std::size_t asked_end = 0, missed_end = 0, bytes = 0;

  Crossing(const ChoiceShape& shape, std::byte* memory) {
    Pieces pieces(memory);
    asked.cut(shape, &pieces);
    asked_end = pieces.bytes();
    missed.cut(shape, &pieces);
    missed_end = pieces.bytes();
    answered.cut(shape, &pieces);
    bytes = pieces.bytes();
  }
};

bool holds(const ChoiceBytes& has, const ChoiceBytes& needed) {
  return needed.device <= has.device && needed.host <= has.host;
}

}  // namespace

ChoiceBytes ChoiceQueue::bytes(const ChoiceShape& shape) {
  const std::size_t crossing = Crossing(shape, nullptr).bytes;
  const std::uint64_t rows = std::uint64_t{shape.lists} * shape.most_budget * shape.row_bytes;
  return {crossing + ChoiceWork(shape, nullptr).bytes, crossing, shape.packed ? rows : 0};
}

Result<std::unique_ptr<ChoiceQueue>> ChoiceQueue::create(std::uint32_t number,
                                                         const ChoiceBytes& bytes) {
  TL_TRY(make_current(number));
  TL_TRY_ASSIGN(Stream stream, Stream::create());
  std::unique_ptr<ChoiceQueue> made(new ChoiceQueue(number, bytes, std::move(stream)));
  TL_TRY_ASSIGN(made->device_,
                take_device_bytes(bytes.device, "taking device memory to choose in"));
  TL_TRY_ASSIGN(made->pinned_, take_pinned_bytes(bytes.host + bytes.outbox));
  return made;
}

// What is queued reads and writes memory that goes now.
ChoiceQueue::~ChoiceQueue() {
  if (queued_) static_cast<void>(stream_.wait());
}

void ChoiceQueue::pack(std::span<const ChoiceQuestion> lists) {
  const HeadShape head = shape_.head;
  const Crossing here(shape_, pinned_.get()), there(shape_, device_.get());
  ChoiceRun* run = here.asked.runs;
  rows_.clear();
  for (std::size_t i = 0; i < lists.size(); ++i) {
    const ChoiceQuestion& asked = lists[i];
    TL_CHECK(asked.read > 0 && asked.steady.size() == head.heads);
    const std::size_t at = i * head.heads;
    std::copy_n(asked.query, std::size_t{head.heads} * head.key_dim,
                here.asked.query + at * head.key_dim);
    for (std::uint32_t h = 0; h < head.heads; ++h) {
      here.asked.steady_max[at + h] = asked.steady[h].max;
      here.asked.steady_sum[at + h] = asked.steady[h].sum;
    }
    ChoiceList list =
        list_of(shape_, asked, step_, run, there.asked.runs + (run - here.asked.runs));
    run += asked.runs.size();
    list.query = there.asked.query + at * head.key_dim;
    list.steady_max = there.asked.steady_max + at;
    list.steady_sum = there.asked.steady_sum + at;
    here.asked.lists[i] = list;
    here.asked.first[i] = static_cast<std::uint32_t>(i * shape_.folds());
    rows_.push_back(list.rows);
  }
  here.asked.first[lists.size()] = shape_.lists * shape_.folds();
}

Status ChoiceQueue::queue_choice() {
  const Crossing there(shape_, device_.get());
  board_ = ChoiceWork(shape_, device_.get() + there.bytes).board;
  board_.read = there.answered.read;
  board_.summaries = there.answered.summaries;
  board_.of_runs = there.answered.of_runs;
  board_.fetched = there.missed.count;
  if (shape_.packed) board_.missed = there.missed.rows;
  TL_TRY(stream_.copy(device_.get(), pinned_.get(), there.asked_end, cudaMemcpyHostToDevice,
                      "copying queries to a device"));
  TL_TRY(choose(stream_, shape_, {there.asked.lists, shape_.lists}, board_));
  if (!shape_.packed) return queue_attention();
  return copy_back(there.asked_end, there.missed_end, "copying a list of rows from a device");
}

Status ChoiceQueue::queue_attention() {
  const Crossing there(shape_, device_.get());
  const ChoiceWork work(shape_, device_.get() + there.bytes);
  const std::size_t lists = shape_.lists;
  TL_TRY(attend(stream_, shape_.head, {board_.folds, lists * shape_.folds()}, work.partial));
  TL_TRY(merge(stream_, shape_.head, work.partial, {there.asked.first, lists + 1},
               there.answered.states));
  return copy_back(shape_.packed ? there.missed_end : there.asked_end, there.bytes,
                   "copying states from a device");
}

Status ChoiceQueue::copy_back(std::size_t first, std::size_t last, const char* call) {
  return stream_.copy(pinned_.get() + first, device_.get() + first, last - first,
                      cudaMemcpyDeviceToHost, call);
}

Status ChoiceQueue::wait() {
  TL_TRY(stream_.wait());
  packed_bytes_ = 0;
  return {};
}

void ChoiceQueue::name_states() {
  const Crossing here(shape_, pinned_.get());
  const States& of = here.answered.states;
  states_.resize(std::size_t{shape_.lists} * shape_.head.heads);
  for (std::size_t i = 0; i < states_.size(); ++i)
    states_[i] = {of.max[i], of.sum[i], of.acc + i * shape_.head.value_dim};
}

void ChoiceQueue::name_missed() {
  const Crossing here(shape_, pinned_.get());
  missed_.clear();
  due_ = 0;
  for (std::uint32_t i = 0; i < shape_.lists; ++i) {
    missed_.emplace_back(here.missed.rows + i * std::size_t{shape_.most_budget},
                         here.missed.count[i]);
    due_ += here.missed.count[i];
  }
}

Result<std::size_t> ChoiceQueue::begin(const ChoiceFormat& format,
                                       std::span<const ChoiceQuestion> lists) {
  TL_CHECK(!lists.empty());
  if (queued_) TL_TRY(wait());
  TL_TRY_ASSIGN(const ChoiceShape shape, shape_of(format, lists, [&](const ChoiceShape& more) {
                  return holds(bytes_, bytes(more));
                }));
  shape_ = shape;
  missed_.clear();
  ++step_;
  pack(lists.first(shape.lists));
  TL_TRY(make_current(number_));
  queued_ = true;  // also where only a part of it comes to be
  TL_TRY(queue_choice());
  return shape.lists;
}

Result<std::span<const std::span<const std::uint32_t>>> ChoiceQueue::missed() {
  TL_CHECK(queued_ && shape_.packed);
  TL_TRY(wait());
  name_missed();
  return std::span<const std::span<const std::uint32_t>>(missed_);
}

Result<std::span<std::byte>> ChoiceQueue::room(std::size_t bytes) {
  TL_CHECK(bytes <= bytes_.outbox);
  if (bytes > bytes_.outbox - packed_bytes_) TL_TRY(wait());
  return std::span(pinned_.get() + bytes_.host, bytes_.outbox).subspan(packed_bytes_);
}

Status ChoiceQueue::send(std::span<const PackedRows> packed) {
  const Crossing there(shape_, device_.get());
  const std::byte* const outbox = pinned_.get() + bytes_.host;
  for (const PackedRows& rows : packed) {
    TL_CHECK(rows.list < missed_.size() &&
             std::uint64_t{rows.first} + rows.rows <= missed_[rows.list].size());
    const std::size_t end =
        static_cast<std::size_t>(rows.at - outbox) + std::size_t{rows.rows} * shape_.row_bytes;
    TL_CHECK(rows.at >= outbox && end <= bytes_.outbox && rows.rows <= due_);
    packed_bytes_ = std::max(packed_bytes_, end);
    due_ -= rows.rows;
  }
  TL_TRY(make_current(number_));
  return fetch_packed(stream_, shape_, {there.asked.lists, shape_.lists}, board_, packed);
}

Result<DeviceChoice::Answer> ChoiceQueue::finish() {
  if (shape_.packed) {
    TL_CHECK(missed_.size() == shape_.lists && due_ == 0);
    TL_TRY(make_current(number_));
    TL_TRY(queue_attention());
  }
  TL_TRY(wait());
  queued_ = false;
  name_states();
  const Crossing here(shape_, pinned_.get());
  const std::size_t lists = shape_.lists;
  return Answer{states_,
                {here.answered.read, lists},
                {here.missed.count, shape_.cached ? lists : 0},
                {here.answered.summaries, lists},
                {here.answered.of_runs, shape_.rebuilds() ? lists * shape_.most_runs : 0},
                shape_.most_runs,
                here.bytes};
}

Result<std::vector<RowSet>> ChoiceQueue::chosen(std::size_t i, bool by_codes) {
  TL_CHECK(!queued_ && i < rows_.size());
  if (by_codes && shape_.most_coded == 0) return std::vector<RowSet>{};
  std::vector<RowSet> sets(blocks_of(rows_[i]));
  const RowSet* const there = by_codes ? board_.coded : board_.sets;
  TL_TRY(make_current(number_));
  TL_TRY(
      check(cudaMemcpyAsync(sets.data(), there + i * blocks_of(shape_.most_rows),
                            sets.size() * sizeof(RowSet), cudaMemcpyDeviceToHost, stream_.handle()),
            "copying a selection from a device"));
  TL_TRY(stream_.wait());
  return sets;
}

}  // namespace thermocline::cuda
