#include "retrieval/select/ranked.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <limits>

#include "retrieval/scratch.h"

namespace thermocline {
namespace {

constexpr float kNone = -std::numeric_limits<float>::infinity();
constexpr float kAlways = std::numeric_limits<float>::infinity();
constexpr float kFirst = std::numeric_limits<float>::max();  // the rank of what is always read

// Collects rows that ascend to picks of one run.
class PickWriter {
 public:
  explicit PickWriter(std::vector<Pick>* picks) : picks_(picks) {}
  ~PickWriter() { close(); }
  PickWriter(const PickWriter&) = delete;
  PickWriter& operator=(const PickWriter&) = delete;

  void add(std::uint32_t first, std::uint32_t end) {
    while (first < end) {
      if (first / kBlockRows != open_.block) {
        close();
        open_ = {first / kBlockRows, 0};
      }
      const std::uint32_t at = first % kBlockRows;
      const std::uint32_t count = std::min<std::uint32_t>(end - first, kBlockRows - at);
      open_.rows |= first_rows(static_cast<int>(count)) << at;
      first += count;
    }
  }

 private:
  void close() {
    if (open_.rows != 0) picks_->push_back(open_);
    open_.rows = 0;
  }

  std::vector<Pick>* picks_;
  Pick open_;
};

}  // namespace

std::uint32_t RankedOptions::budget(std::uint32_t length, std::uint32_t steady_rows) const {
  const double wanted = rows > 0 ? rows : share * length;
  return std::max(min_rows, static_cast<std::uint32_t>(std::max(0.0, wanted - steady_rows)));
}

std::uint32_t RankedOptions::estimated(std::uint64_t sealed) const {
  return static_cast<std::uint32_t>(estimate * static_cast<double>(sealed));
}

std::span<const Parameter<RankedOptions>> RankedSelector::parameters() {
  static constexpr std::string_view kGroups[] = {"sum", "max", "vote"};
  static constexpr Parameter<RankedOptions> kParameters[] = {
      {"share", &RankedOptions::share, 0, 1, {}, {}, {}, "rows"},
      {"rows", &RankedOptions::rows, 0, 1 << 24},
      {"min_rows", &RankedOptions::min_rows, 1, 1 << 20},
      {"mass", &RankedOptions::mass, 0, 1},
      {"group", &RankedOptions::group, 0, 2, kGroups},
      {"dense_layers", &RankedOptions::dense_layers, 0, 1 << 16},
      {"estimate", &RankedOptions::estimate, 0, 1}};
  return kParameters;
}

Result<std::unique_ptr<RankedSelector>> RankedSelector::create(std::unique_ptr<KeyIndex> index,
                                                               const RankedOptions& options,
                                                               const CpuTable& cpu) {
  TL_TRY(check(index->name(), parameters(), options));
  if (options.estimate > 0 && index->summary_bytes({1, 16, 16}, 1) == 0)
    return fail(ErrorCode::invalid_argument, index->name(), ": estimate = ", options.estimate,
                " needs an index with summary rows, as clusters is");
  if (options.mass > 0 && !index->scores_all())
    return fail(ErrorCode::unsupported, index->name(), ": mass = ", options.mass,
                " is a share of all attention, and this index leaves rows without a score: it goes "
                "with mass = 0");
  return std::unique_ptr<RankedSelector>(new RankedSelector(std::move(index), options, cpu));
}

RankedSelector::RankedSelector(std::unique_ptr<KeyIndex> index, const RankedOptions& options,
                               const CpuTable& cpu)
    : index_(std::move(index)),
      options_(options),
      cpu_(cpu),
      boards_(static_cast<std::size_t>(Workers::usable(0))) {
  for (Board& board : boards_) board.scratch = index_->scratch();
  if (RankedRule::holds(*index_, options_)) rule_ = std::make_unique<RankedRule>(*index_, options_);
}

// Which runs are asked, and what may be read of them.
void RankedSelector::lay_out(const ListQuery& list, Board* board) const {
  board->asked.clear();
  board->sealed_rows = 0;
  for (const Run& run : list.runs) {
    if (!run.index || !index_->formed(*run.index)) continue;
    board->asked.push_back(run.index.get());
    board->sealed_rows += run.rows->rows;
  }
  board->budget = options_.budget(list.length, list.steady_rows);
}

// The index's scores of all units.
std::uint64_t RankedSelector::ask(HeadShape shape, const ListQuery& list, Board* board) const {
  board->first_unit.assign(1, 0);
  for (const SegmentIndex* segment : board->asked)
    board->first_unit.push_back(board->first_unit.back() + index_->units(*segment, list.head));
  grow(&board->score, board->units() * shape.heads);
  const auto wanted = static_cast<std::uint32_t>(board->budget);  // below the number of rows
  return index_->score({list.head, shape, list.query, board->asked, wanted}, board->scratch.get(),
                       board->score.data(), board->units());
}

// The units with rows that were looked at for any head, and how many rows they have.
void RankedSelector::find_candidates(HeadShape shape, const ListQuery& list, Board* board) const {
  board->best.assign(board->units(), kNone);
  for (std::size_t h = 0; h < shape.heads; ++h) {
    const float* score = board->scores(h);
    for (std::size_t u = 0; u < board->best.size(); ++u)
      board->best[u] = score[u] > board->best[u] ? score[u] : board->best[u];
  }
  board->unit.clear();
  board->size.clear();
  for (std::size_t s = 0; s < board->asked.size(); ++s) {
    const std::uint32_t begin = board->first_unit[s], end = board->first_unit[s + 1];
    std::uint32_t known = begin, row = 0;  // the first row of a unit
    for (std::uint32_t u = begin; u < end; ++u) {
      if (!(board->best[u] > kNone)) continue;
      if (known != u) row = index_->first_row(*board->asked[s], list.head, u - begin);
      const std::uint32_t next = index_->first_row(*board->asked[s], list.head, u + 1 - begin);
      if (next > row) {
        board->unit.push_back(u);
        board->size.push_back(static_cast<float>(next - row));
      }
      known = u + 1;
      row = next;
    }
  }
}

// A unit that is read anyhow has no part in the softmax: its score is not known.
void RankedSelector::gather_scores(HeadShape shape, Board* board) const {
  const std::size_t candidates = board->unit.size();
  board->rank.resize(candidates);
  for (std::size_t c = 0; c < candidates; ++c)
    board->rank[c] = board->best[board->unit[c]] == kAlways ? kFirst : 0;
  for (std::size_t h = 0; h < shape.heads; ++h) {
    float* score = board->score.data() + h * board->units();
    for (std::size_t c = 0; c < candidates; ++c) {
      const float of_unit = score[board->unit[c]];
      score[c] = of_unit < kAlways ? of_unit : kNone;
    }
  }
}

// For each query head: weights e^(score - the best one), and what makes a share of one.
void RankedSelector::weigh(HeadShape shape, const ListQuery& list, Board* board) const {
  const std::size_t candidates = board->unit.size();
  grow(&board->weight, candidates * shape.heads);
  grow(&board->share, shape.heads);
  grow(&board->covered, shape.heads);
  for (std::size_t h = 0; h < shape.heads; ++h) {
    float* weight = board->weight.data() + h * candidates;
    std::copy_n(board->scores(h), candidates, weight);
    float max = 0, ignored = 0;
    cpu_.sketch.weigh(weight, candidates, &max, &ignored);
    double sum = 0;
    for (std::size_t c = 0; c < candidates; ++c) sum += double{weight[c]} * board->size[c];
    const AttnState steady = h < list.steady.size() ? list.steady[h] : AttnState{};
    double beside = 0;
    if (steady.sum > 0.0f && max > kNone)
      beside = steady.sum * std::exp(std::min(steady.max - max, kSketchMostAbove));
    const double all = sum + beside;
    board->share[h] = all > 0 ? static_cast<float>(1 / all) : 0.0f;
    board->covered[h] = all > 0 ? beside / all : 1.0;
  }
}

// One rank of all query heads for a row of each candidate.
void RankedSelector::rank(HeadShape shape, Board* board) const {
  const std::size_t candidates = board->unit.size();
  const auto say = [&](std::size_t h) {  // how much a head has to say
    const double selectable = 1.0 - board->covered[h];
    return options_.group != kGroupVote ? board->share[h]
           : selectable > 0             ? static_cast<float>(board->share[h] / selectable)
                                        : 0.0f;
  };
  float* rank = board->rank.data();
  for (std::size_t h = 0; h < shape.heads; ++h) {
    const float* weight = board->weight.data() + h * candidates;
    const float share = say(h);
    for (std::size_t c = 0; c < candidates; ++c) {
      if (rank[c] == kFirst) continue;
      const float said = weight[c] * share;
      rank[c] = options_.group == kGroupMax ? std::max(rank[c], said) : rank[c] + said;
    }
  }
}

// Those that may be read or estimated, best first: no more than rows are wanted.
void RankedSelector::order(Board* board) const {
  const std::size_t candidates = board->unit.size();
  const std::uint64_t estimated = options_.estimated(board->sealed_rows);
  board->taken.resize(set_words(candidates));
  top_rows(cpu_.topk, {board->rank.data(), candidates}, board->budget + estimated, &board->top,
           board->taken);
  board->order.clear();
  for (std::size_t word = 0; word < board->taken.size(); ++word)
    for (RowSet left = board->taken[word]; left != 0; left &= left - 1)
      board->order.push_back(static_cast<std::uint32_t>(
          word * kBlockRows + static_cast<std::size_t>(std::countr_zero(left))));
  const float* rank = board->rank.data();
  std::sort(board->order.begin(), board->order.end(), [&](std::uint32_t a, std::uint32_t b) {
    return rank[a] != rank[b] ? rank[a] > rank[b] : a < b;
  });
  board->estimated = estimated;
}

// From the best one on: what is read, then what is estimated of the rest.
void RankedSelector::take(HeadShape shape, Board* board) const {
  const std::size_t candidates = board->unit.size();
  std::uint64_t read = 0, estimated = 0;
  board->read.clear();
  board->summed.clear();
  const auto covered = [&] {
    return options_.mass > 0 && read >= options_.min_rows &&
           std::all_of(board->covered.begin(), board->covered.begin() + shape.heads,
                       [&](double share) { return share >= options_.mass; });
  };
  const auto scored_by_all = [&](std::uint32_t c) {  // else a head has no weight for its summary
    for (std::size_t h = 0; h < shape.heads; ++h)
      if (board->scores(h)[c] == kNone) return false;
    return true;
  };
  bool enough = false;
  for (const std::uint32_t c : board->order) {
    const auto rows = static_cast<std::uint64_t>(board->size[c]);
    enough = enough || (board->rank[c] != kFirst && covered());
    if (!enough && read + rows <= board->budget) {
      read += rows;
      board->read.push_back(c);
      for (std::size_t h = 0; h < shape.heads; ++h)
        board->covered[h] +=
            double{board->weight[h * candidates + c]} * board->size[c] * board->share[h];
    } else if (estimated + rows <= board->estimated && scored_by_all(c)) {
      estimated += rows;
      board->summed.push_back(c);
    }
  }
  std::sort(board->read.begin(), board->read.end());
  std::sort(board->summed.begin(), board->summed.end());
}

void RankedSelector::write_rows(const ListQuery& list, const Board& board, ReadList* out) const {
  std::size_t asked = 0, next = 0;
  for (std::uint32_t r = 0; r < list.runs.size(); ++r) {
    if (asked == board.asked.size() || board.asked[asked] != list.runs[r].index.get()) {
      out->reads.push_back({.run = r, .everything = true});
      continue;
    }
    const SegmentIndex& segment = *board.asked[asked];
    const std::uint32_t first_unit = board.first_unit[asked], end = board.first_unit[++asked];
    Read read{.run = r, .first = static_cast<std::uint32_t>(out->picks.size())};
    {
      PickWriter picks(&out->picks);
      for (; next < board.read.size() && board.unit[board.read[next]] < end; ++next) {
        const std::uint32_t u = board.unit[board.read[next]] - first_unit;
        picks.add(index_->first_row(segment, list.head, u),
                  index_->first_row(segment, list.head, u + 1));
      }
    }
    read.last = static_cast<std::uint32_t>(out->picks.size());
    if (read.first != read.last) out->reads.push_back(read);
  }
}

// A unit's summary stands for its rows: its score is the unit's, and the log of their number.
// Returns the bytes of those that are read.
std::uint64_t RankedSelector::write_summaries(HeadShape shape, const ListQuery& list,
                                              const Board& board, ReadList* out) const {
  std::size_t asked = 0, next = 0;
  std::uint64_t bytes = 0;
  for (std::uint32_t r = 0; r < list.runs.size() && next < board.summed.size(); ++r) {
    const Run& run = list.runs[r];
    if (asked == board.asked.size() || board.asked[asked] != run.index.get()) continue;
    const std::uint32_t first_unit = board.first_unit[asked], end = board.first_unit[++asked];
    TL_CHECK(run.summaries && run.summaries->rows == end - first_unit);
    Read read{.run = r,
              .form = Form::summaries,
              .first = static_cast<std::uint32_t>(out->picks.size()),
              .weights_a_row = shape.heads,
              .scored = true,
              .first_weight = static_cast<std::uint32_t>(out->log_weight.size())};
    {
      PickWriter picks(&out->picks);
      for (; next < board.summed.size() && board.unit[board.summed[next]] < end; ++next) {
        const std::uint32_t c = board.summed[next], u = board.unit[c] - first_unit;
        picks.add(u, u + 1);
        for (std::size_t h = 0; h < shape.heads; ++h)
          out->log_weight.push_back(board.scores(h)[c] + std::log(board.size[c]));
        bytes += run.summaries->layout.bytes();
      }
    }
    read.last = static_cast<std::uint32_t>(out->picks.size());
    if (read.first != read.last) out->reads.push_back(read);
  }
  return bytes;
}

std::uint64_t RankedSelector::choose_list(const LayerQuery& layer, const ListQuery& list,
                                          Board* board, ReadList* out) const {
  out->clear();
  lay_out(list, board);
  if (index(layer.layer) < options_.dense_layers || board->budget >= board->sealed_rows) {
    out->take_all(list.runs.size());
    return 0;
  }
  const HeadShape shape = layer.shape;
  const std::uint64_t scored = ask(shape, list, board);
  find_candidates(shape, list, board);
  gather_scores(shape, board);
  weigh(shape, list, board);
  rank(shape, board);
  order(board);
  take(shape, board);
  write_rows(list, *board, out);
  return scored + write_summaries(shape, list, *board, out);
}

Result<Chosen> RankedSelector::choose(const LayerQuery& query, const Workers& workers,
                                      std::span<ReadList> out) {
  TL_CHECK(query.lists.size() == out.size());
  std::atomic<std::uint64_t> index_bytes{0};
  workers.parallel(out.size(), 1, [&](std::size_t first, std::size_t last) {
    Board& board = boards_[Workers::slot()];
    for (std::size_t l = first; l < last; ++l)
      index_bytes.fetch_add(choose_list(query, query.lists[l], &board, &out[l]),
                            std::memory_order_relaxed);
  });
  return Chosen{index_bytes.load()};
}

}  // namespace thermocline
