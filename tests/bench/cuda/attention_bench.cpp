#include "tests/bench/cuda/attention_bench.h"

#include <cmath>
#include <cstdio>
#include <cstring>
#include <numeric>
#include <random>
#include <string>

#include "kernels/cuda/attend.h"
#include "kernels/cuda/choice.h"

namespace thermocline::cuda {
namespace {

// Llama-3.1-8B.
constexpr std::uint32_t kKvHeads = 8, kLayers = 32;
constexpr HeadShape kHead{4, 128, 128};
constexpr double kWeightBytes = 2 * 8.03e9;  // bf16

constexpr std::uint32_t kClusterRows = 24;  // as configs/methods/ladder2.conf
constexpr double kCacheSteps = 5;           // steps' rows that the cache holds

constexpr std::uint32_t kChunkRows = 8,
                        kOutliers = 48;  // as ShadowKV has them: of chunks, a list's

// As configs/methods/sketch.conf, ladder2.conf and shadowkv.conf: shares of the rows that are read,
// and that are attended at least by their codes, and how many those are at most. Where keys have a
// rank they are rebuilt, chunks are read by their landmarks, and values alone are kept as rows.
struct Choice {
  const char* name;
  double read, coded;
  std::uint32_t most_read, most_coded, rank;

  std::uint32_t read_of(std::uint32_t rows) const { return of(read, rows, most_read); }
  std::uint32_t coded_of(std::uint32_t rows) const { return of(coded, rows, most_coded); }

 private:
  static std::uint32_t of(double share, std::uint32_t rows, std::uint32_t most) {
    return std::min(static_cast<std::uint32_t>(share * rows), most);
  }
};
constexpr Choice kChoices[] = {{"sketch", 0.02, 0.0, 1024, 0, 0},
                               {"ladder2", 0.005, 0.1, 256, 5120, 0},
                               {"shadowkv", 0.02, 0.0, 4096, 0, 160}};
constexpr RowFormat kResidual = RowFormat::rotated2;

struct Setup {
  std::uint32_t rows = 0;  // a sequence
  std::uint32_t batch = 1;
  RowFormat format = RowFormat::f16;
  int sides = 2;  // that a row has: without keys, one

  std::uint32_t lists() const { return batch * kKvHeads; }
  std::uint32_t side_bytes() const { return row_bytes(format, kHead.key_dim); }
  std::uint32_t record_bytes() const { return sides * side_bytes(); }
};

// Bytes that look like rows: f16 between -2 and 2; or codes and a scale behind them.
std::vector<std::byte> random_rows(RowFormat format, std::size_t rows, std::mt19937* random) {
  const std::size_t bytes = row_bytes(format, kHead.key_dim);
  std::vector<std::byte> out(rows * bytes);
  std::vector<std::uint32_t> words((out.size() + 3) / 4);
  for (std::uint32_t& word : words) word = (*random)();
  std::memcpy(out.data(), words.data(), out.size());
  const f16 scale = to_f16(1.0f / 64);
  for (std::size_t r = 0; r < rows; ++r) {
    if (format != RowFormat::f16) {
      const std::size_t at = format == RowFormat::int8 ? kHead.key_dim : bytes - sizeof scale;
      std::memcpy(out.data() + r * bytes + at, &scale, sizeof scale);
      continue;
    }
    for (std::size_t i = 1; i < bytes; i += 2)  // exponents below that of 1
      out[r * bytes + i] = (out[r * bytes + i] & std::byte{0x83}) | std::byte{0x38};
  }
  return out;
}

// States of folds, and of lists.
struct Partials {
  Memory<float> max, sum, acc;
  States view() const { return {max.data(), sum.data(), acc.data()}; }
  static Result<Partials> create(std::size_t states) {
    Partials made;
    TL_TRY_ASSIGN(made.max, Memory<float>::create(Where::device, states * kHead.heads));
    TL_TRY_ASSIGN(made.sum, Memory<float>::create(Where::device, states * kHead.heads));
    TL_TRY_ASSIGN(made.acc,
                  Memory<float>::create(Where::device, states * kHead.heads * kHead.value_dim));
    return made;
  }
};

struct Answer {
  std::vector<float> sum, acc;
  bool operator==(const Answer&) const = default;
};

// Attends to folds that are given, and merges `a_list` of them for each list.
class Attention {
 public:
  static Result<Attention> create(std::uint32_t lists, std::uint32_t a_list) {
    Attention made;
    std::vector<std::uint32_t> first;
    for (std::uint32_t l = 0; l <= lists; ++l) first.push_back(l * a_list);
    TL_TRY_ASSIGN(made.first_, Memory<std::uint32_t>::of(Where::device, first));
    TL_TRY_ASSIGN(made.partial_, Partials::create(std::size_t{lists} * a_list));
    TL_TRY_ASSIGN(made.merged_, Partials::create(lists));
    return made;
  }
  Status queue(Stream& stream, std::span<const HeadFold> folds) const {
    TL_TRY(attend(stream, kHead, folds, partial_.view()));
    return merge(stream, kHead, partial_.view(), first_.span(), merged_.view());
  }
  Result<Answer> answer() const {
    TL_TRY_ASSIGN(auto sum, merged_.sum.copy());
    TL_TRY_ASSIGN(auto acc, merged_.acc.copy());
    return Answer{std::move(sum), std::move(acc)};
  }

 private:
  Memory<std::uint32_t> first_;
  Partials partial_, merged_;
};

// Rows and sketches of all lists, [lists][runs].
struct Kept {
  Memory<std::byte> rows;
  Memory<std::uint8_t> codes;
  Memory<f16> scales;
  Memory<std::byte> means, summaries, residuals;
  Memory<std::uint16_t> starts;  // of every run
  Memory<float> query;
  std::uint32_t run_clusters = 0;
};

// What keys at low rank are rebuilt from, of all KV heads of a sequence, and their landmarks.
struct LowRank {
  Memory<f16> basis, coefficients, landmarks, kept_keys;
  Memory<std::byte> always;
  Memory<std::uint16_t> kept_numbers;
  std::uint32_t run_chunks = kRunRows / kChunkRows, run_outliers = 0;  // chunks
  Rotation rotation;
};

// On the device, `count` times the same.
template <typename T>
Result<Memory<T>> repeated(const std::vector<T>& values, std::size_t count) {
  TL_TRY_ASSIGN(auto memory, Memory<T>::create(Where::device, values.size() * count));
  for (std::size_t i = 0; i < count; ++i)
    TL_TRY(check(cudaMemcpy(memory.data() + i * values.size(), values.data(),
                            values.size() * sizeof(T), cudaMemcpyDefault),
                 "filling memory"));
  return memory;
}

Result<Kept> make_kept(const Setup& setup, Where where) {
  std::mt19937 random(7);
  Kept kept;
  // A piece of rows over and over: their contents are of no matter to the time.
  constexpr std::uint32_t kPiece = 1024;
  std::vector<std::byte> piece;
  for (std::uint32_t r = 0; r < kPiece; ++r)
    for (int side = 0; side < setup.sides; ++side) {
      const auto row = random_rows(setup.format, 1, &random);
      piece.insert(piece.end(), row.begin(), row.end());
    }
  TL_TRY_ASSIGN(kept.rows, Memory<std::byte>::create(where, std::size_t{setup.lists()} *
                                                                setup.rows * setup.record_bytes()));
  for (std::size_t at = 0; at < kept.rows.bytes(); at += piece.size())
    TL_TRY(check(cudaMemcpy(kept.rows.data() + at, piece.data(),
                            std::min(piece.size(), kept.rows.bytes() - at), cudaMemcpyDefault),
                 "filling rows"));

  kept.run_clusters = (kRunRows + kClusterRows - 1) / kClusterRows;
  const std::uint32_t runs = setup.rows / kRunRows;
  std::vector<std::uint8_t> codes(std::size_t{runs} * sketch_bytes(2, kRunRows, kHead.key_dim));
  for (std::uint8_t& byte : codes) byte = static_cast<std::uint8_t>(random());
  std::vector<f16> scales(std::size_t{runs} * kRunRows);
  for (f16& scale : scales)
    scale = to_f16(0.02f + 0.01f * static_cast<float>(random() % 1000) / 1000.0f);
  std::vector<std::uint16_t> starts;
  for (std::uint32_t c = 0; c <= kept.run_clusters; ++c)
    starts.push_back(static_cast<std::uint16_t>(std::min(kRunRows, c * kClusterRows)));
  std::vector<float> query(std::size_t{setup.lists()} * kHead.heads * kHead.key_dim);
  for (float& x : query) x = std::normal_distribution<float>(0.0f, 0.3f)(random);
  const std::size_t clusters = std::size_t{runs} * kept.run_clusters;
  const std::vector<std::byte> means = random_rows(RowFormat::int8, clusters, &random);
  const std::vector<std::byte> residuals = random_rows(kResidual, setup.rows, &random);
  TL_TRY_ASSIGN(kept.residuals, repeated(residuals, setup.lists()));
  TL_TRY_ASSIGN(kept.codes, repeated(codes, setup.lists()));
  TL_TRY_ASSIGN(kept.scales, repeated(scales, setup.lists()));
  TL_TRY_ASSIGN(kept.means, repeated(means, setup.lists()));
  TL_TRY_ASSIGN(kept.summaries, repeated(means, setup.lists()));
  TL_TRY_ASSIGN(kept.starts, Memory<std::uint16_t>::of(Where::device, starts));
  TL_TRY_ASSIGN(kept.query, Memory<float>::of(Where::device, query));
  return kept;
}

Result<LowRank> make_low_rank(const Setup& setup, std::uint32_t rank) {
  std::mt19937 random(5);
  const auto halves = [&](std::size_t count, float scale) {
    std::vector<f16> made(count);
    std::normal_distribution<float> normal(0.0f, scale);
    for (f16& x : made) x = to_f16(normal(random));
    return made;
  };
  LowRank made;
  const std::uint32_t runs = setup.rows / kRunRows;
  made.run_outliers = kOutliers / runs;
  // A basis of all heads' channels; coefficients by which keys come to be about as long as others.
  const float width = std::sqrt(static_cast<float>(kKvHeads * kHead.key_dim));
  TL_TRY_ASSIGN(made.basis,
                Memory<f16>::of(Where::device, halves(std::size_t{kKvHeads} * rank * kHead.key_dim,
                                                      1.0f / width)));
  TL_TRY_ASSIGN(made.coefficients, repeated(halves(std::size_t{setup.rows} * rank,
                                                   width / std::sqrt(static_cast<float>(rank))),
                                            setup.batch));
  TL_TRY_ASSIGN(
      made.landmarks,
      repeated(halves(std::size_t{runs} * made.run_chunks * kHead.key_dim, 1.0f), setup.lists()));
  std::vector<std::byte> always(made.run_chunks);
  std::vector<std::uint16_t> numbers;
  for (std::uint32_t i = 0; i < made.run_outliers; ++i) {
    const std::uint32_t chunk = i * made.run_chunks / made.run_outliers;
    always[chunk] = std::byte{1};
    for (std::uint32_t r = 0; r < kChunkRows; ++r)
      numbers.push_back(static_cast<std::uint16_t>(chunk * kChunkRows + r));
  }
  TL_TRY_ASSIGN(made.always, Memory<std::byte>::of(Where::device, always));
  TL_TRY_ASSIGN(made.kept_numbers, Memory<std::uint16_t>::of(Where::device, numbers));
  TL_TRY_ASSIGN(made.kept_keys,
                Memory<f16>::of(Where::device, halves(numbers.size() * kHead.key_dim, 1.0f)));
  std::vector<float> frequency;
  for (std::uint32_t i = 0; i < kHead.key_dim / 2; ++i)
    frequency.push_back(std::pow(500000.0f, -2.0f * static_cast<float>(i) / kHead.key_dim));
  made.rotation = Rotation::of(frequency, RopePairs::neighbours, 1.0f);
  return made;
}

struct Measured {
  double us = 0;  // a layer
  double device_bytes = 0, link_bytes = 0;
};

// Every row of every list, in order.
Result<Measured> measure_dense(Stream& stream, const Setup& setup, int rounds) {
  TL_TRY_ASSIGN(const Kept kept, make_kept(setup, Where::device));
  const std::uint32_t a_list = setup.rows / kFoldRows, views_a_fold = kFoldRows / kBlockRows;
  std::vector<BlockView> views;
  for (std::size_t at = 0; at < kept.rows.bytes();
       at += std::size_t{kBlockRows} * setup.record_bytes()) {
    const std::byte* key = kept.rows.data() + at;
    views.push_back({key, key + setup.side_bytes(), kAllRows, nullptr});
  }
  TL_TRY_ASSIGN(const auto device_views, Memory<BlockView>::of(Where::device, views));
  std::vector<HeadFold> folds(std::size_t{setup.lists()} * a_list);
  for (std::size_t f = 0; f < folds.size(); ++f) {
    folds[f].query = kept.query.data() + f / a_list * kHead.heads * kHead.key_dim;
    folds[f].fold.key_format = folds[f].fold.value_format = setup.format;
    folds[f].fold.key_stride = folds[f].fold.value_stride = setup.record_bytes();
    folds[f].fold.blocks = {device_views.data() + f * views_a_fold, views_a_fold};
  }
  TL_TRY_ASSIGN(const auto device_folds, Memory<HeadFold>::of(Where::device, folds));
  TL_TRY_ASSIGN(const Attention attention, Attention::create(setup.lists(), a_list));
  TL_TRY_ASSIGN(const double us, time_us(
                                     stream, rounds, [] { return Status(); },
                                     [&] { return attention.queue(stream, device_folds.span()); }));
  return Measured{us, static_cast<double>(kept.rows.bytes()), 0};
}

// Rows chosen by their sketch, or by landmarks; in pinned memory behind a cache that holds `hits`
// of the chosen ones, or all on the device (hits < 0).
class Sparse {
 public:
  static Result<Sparse> create(const Setup& setup, const Choice& choice, bool pinned) {
    Sparse made;
    made.setup_ = setup;
    made.rank_ = choice.rank;
    TL_TRY_ASSIGN(made.kept_, make_kept(setup, pinned ? Where::pinned : Where::device));
    if (choice.rank > 0) {
      TL_TRY_ASSIGN(made.low_rank_, make_low_rank(setup, choice.rank));
    }
    const std::uint32_t runs = setup.rows / kRunRows;
    ChoiceShape& shape = made.shape_;
    shape.head = kHead;
    shape.lists = setup.lists();
    shape.most_runs = runs;
    shape.most_rows = setup.rows;
    shape.most_units = runs * blocks_of(made.run_units()) * kBlockRows;
    shape.most_budget = choice.read_of(setup.rows);
    shape.most_coded = choice.coded_of(setup.rows);
    shape.cached = pinned;
    shape.key_format = shape.value_format = setup.format;
    shape.key_bytes = setup.side_bytes();
    shape.row_bytes = setup.record_bytes();
    shape.summary_bytes = row_bytes(RowFormat::int8, kHead.value_dim);
    shape.residual_format = kResidual;
    shape.residual_bytes = row_bytes(kResidual, kHead.value_dim);
    if (choice.rank > 0) {
      shape.bits = 0;
      shape.unit = {UnitScore::landmarks, GroupRank::max, kChunkRows};
      shape.key_format = RowFormat::lowrank;
      shape.key_bytes = shape.summary_bytes = 0;
    }
    TL_TRY(made.make_lists(runs));
    TL_TRY_ASSIGN(made.board_memory_,
                  Memory<std::byte>::create(Where::device, ChoiceBoard::bytes(shape)));
    made.board_ = ChoiceBoard::cut(shape, made.board_memory_.data());
    TL_TRY_ASSIGN(made.attention_, Attention::create(setup.lists(), shape.folds()));
    return made;
  }

  Status queue(Stream& stream) {
    shape_.rotation = rank_ > 0 ? &low_rank_.rotation : nullptr;
    TL_TRY(choose(stream, shape_, lists_.span(), board_));
    const std::size_t folds = std::size_t{setup_.lists()} * shape_.folds();
    return attention_.queue(stream, {board_.folds, folds});
  }
  Result<Answer> answer() const { return attention_.answer(); }

  // The next step: and of the rows that the last one chose, all but `hits` of them leave the cache.
  Status next_step(double hits, std::mt19937* random) {
    for (ChoiceList& list : host_lists_) ++list.step;
    TL_TRY(check(cudaMemcpy(lists_.data(), host_lists_.data(), lists_.bytes(), cudaMemcpyDefault),
                 "updating lists"));
    if (!shape_.cached) return {};
    TL_TRY_ASSIGN(auto slot_of, slot_of_.copy());
    TL_TRY_ASSIGN(auto row_of, row_of_.copy());
    TL_TRY_ASSIGN(const auto used, used_.copy());
    const std::uint32_t last = host_lists_[0].step - 1;
    for (std::size_t list = 0; list < host_lists_.size(); ++list) {
      std::vector<std::size_t> chosen;
      for (std::size_t s = list * slots_; s < (list + 1) * slots_; ++s)
        if (row_of[s] != kNoRow && used[s] == last) chosen.push_back(s);
      std::shuffle(chosen.begin(), chosen.end(), *random);
      chosen.resize(static_cast<std::size_t>((1 - hits) * static_cast<double>(chosen.size())));
      for (const std::size_t s : chosen) {
        slot_of[list * setup_.rows + row_of[s]] = -1;
        row_of[s] = kNoRow;
      }
    }
    TL_TRY(check(cudaMemcpy(slot_of_.data(), slot_of.data(), slot_of_.bytes(), cudaMemcpyDefault),
                 "updating slots"));
    return check(cudaMemcpy(row_of_.data(), row_of.data(), row_of_.bytes(), cudaMemcpyDefault),
                 "updating slots");
  }
  Result<std::uint64_t> rows_fetched() const {
    if (!shape_.cached) return 0;
    std::vector<std::uint32_t> fetched(setup_.lists());
    TL_TRY(check(cudaMemcpy(fetched.data(), board_.fetched, fetched.size() * sizeof(fetched[0]),
                            cudaMemcpyDefault),
                 "counting fetched rows"));
    return std::accumulate(fetched.begin(), fetched.end(), std::uint64_t{0});
  }
  double rows_chosen() const { return static_cast<double>(setup_.lists()) * rows_of_list(); }
  // That a step has to read of device memory: codes, means and summaries, chosen rows; or
  // landmarks, coefficients and bases, chosen values.
  double device_bytes() const {
    const double rows = setup_.rows, lists = setup_.lists();
    if (rank_ > 0)
      return lists *
             (rows / kChunkRows * kHead.key_dim * sizeof(f16) +
              rows_of_list() * static_cast<double>(rank_ * sizeof(f16) + setup_.record_bytes()) +
              rows / kRunRows * rank_ * kHead.key_dim * sizeof(f16));
    return lists * (rows * (sketch_row_bytes(2, kHead.key_dim) + sizeof(f16)) +
                    rows / kClusterRows * 2 * row_bytes(RowFormat::int8, kHead.key_dim) +
                    shape_.most_coded * static_cast<double>(shape_.residual_bytes) +
                    shape_.most_budget * static_cast<double>(setup_.record_bytes()));
  }

 private:
  std::uint32_t run_units() const { return rank_ > 0 ? low_rank_.run_chunks : kept_.run_clusters; }
  // Whole chunks, or as many as it may.
  std::uint32_t rows_of_list() const {
    return rank_ > 0 ? shape_.most_budget / kChunkRows * kChunkRows : shape_.most_budget;
  }
  // What a run of a list is chosen by and rebuilt from.
  void locate(std::size_t list, std::uint32_t r, ChoiceRun* run) const {
    const std::size_t runs = setup_.rows / kRunRows, head = list % kKvHeads;
    const std::size_t dim = kHead.key_dim;
    run->unit_keys = reinterpret_cast<const std::byte*>(low_rank_.landmarks.data() +
                                                        (list * runs + r) * run->units * dim);
    run->unit_key_bytes = kHead.key_dim * sizeof(f16);
    run->always = low_rank_.always.data();
    run->starts = nullptr;
    const std::size_t first = list / kKvHeads * setup_.rows + run->first_row;  // of a sequence's
    run->low_rank = {.rank = rank_,
                     .first_position = run->first_row,
                     .basis = low_rank_.basis.data() + head * rank_ * dim,
                     .coefficients = low_rank_.coefficients.data() + first * rank_,
                     .kept = low_rank_.run_outliers * kChunkRows,
                     .kept_number = low_rank_.kept_numbers.data(),
                     .kept_key = low_rank_.kept_keys.data()};
  }

  Status make_lists(std::uint32_t runs) {
    slots_ = static_cast<std::uint32_t>(kCacheSteps * shape_.most_budget);
    const std::size_t lists = setup_.lists();
    if (shape_.cached) {
      using Words = std::vector<std::uint32_t>;
      TL_TRY_ASSIGN(records_, Memory<std::byte>::create(Where::device,
                                                        lists * slots_ * setup_.record_bytes()));
      TL_TRY_ASSIGN(slot_of_,
                    Memory<std::int32_t>::of(Where::device,
                                             std::vector<std::int32_t>(lists * setup_.rows, -1)));
      TL_TRY_ASSIGN(row_of_,
                    Memory<std::uint32_t>::of(Where::device, Words(lists * slots_, kNoRow)));
      TL_TRY_ASSIGN(used_, Memory<std::uint32_t>::of(Where::device, Words(lists * slots_, 0)));
      TL_TRY_ASSIGN(hand_, Memory<std::uint32_t>::of(Where::device, Words(lists, 0)));
    }
    std::vector<ChoiceRun> all;
    const std::uint32_t units = blocks_of(run_units()) * kBlockRows;
    const std::uint32_t mean_bytes = row_bytes(RowFormat::int8, kHead.key_dim);
    for (std::size_t l = 0; l < lists; ++l)
      for (std::uint32_t r = 0; r < runs; ++r) {
        ChoiceRun run;
        run.rows = kRunRows;
        run.units = run_units();
        run.first_row = r * kRunRows;
        run.first_unit = r * units;
        const std::size_t at = l * runs + r;
        const std::size_t means_at = at * kept_.run_clusters * mean_bytes;
        run.codes = kept_.codes.data() + at * sketch_bytes(2, kRunRows, kHead.key_dim);
        run.scales = kept_.scales.data() + at * kRunRows;
        run.unit_keys = kept_.means.data() + means_at;
        run.unit_key_bytes = mean_bytes;
        run.starts = kept_.starts.data();
        run.summary = kept_.summaries.data() + means_at;
        run.residual = kept_.residuals.data() + at * kRunRows * shape_.residual_bytes;
        if (rank_ > 0) locate(l, r, &run);
        run.row = kept_.rows.data() + shape_.key_bytes +
                  (l * setup_.rows + run.first_row) * setup_.record_bytes();
        all.push_back(run);
      }
    TL_TRY_ASSIGN(runs_, Memory<ChoiceRun>::of(Where::device, all));
    for (std::size_t l = 0; l < lists; ++l) {
      ChoiceList list;
      list.runs = {runs_.data() + l * runs, runs};
      list.rows = setup_.rows;
      list.units = runs * units;
      list.budget = shape_.most_budget;
      list.coded_budget = shape_.most_coded;
      list.query = kept_.query.data() + l * kHead.heads * kHead.key_dim;
      if (shape_.cached)
        list.cache = {slots_,
                      setup_.rows,
                      setup_.rows,  // of which there are no copies yet
                      records_.data() + l * slots_ * setup_.record_bytes(),
                      slot_of_.data() + l * setup_.rows,
                      row_of_.data() + l * slots_,
                      used_.data() + l * slots_,
                      hand_.data() + l};
      host_lists_.push_back(list);
    }
    TL_TRY_ASSIGN(lists_, Memory<ChoiceList>::of(Where::device, host_lists_));
    return {};
  }

  Setup setup_;
  ChoiceShape shape_;
  std::uint32_t slots_ = 0, rank_ = 0;
  Kept kept_;
  LowRank low_rank_;
  Memory<std::byte> records_, board_memory_;
  Memory<std::int32_t> slot_of_;
  Memory<std::uint32_t> row_of_, used_, hand_;
  Memory<ChoiceRun> runs_;
  std::vector<ChoiceList> host_lists_;
  Memory<ChoiceList> lists_;
  ChoiceBoard board_;
  Attention attention_;
};

Result<Measured> measure_sparse(Stream& stream, Sparse* sparse, double hits, int rounds) {
  std::mt19937 random(11);
  TL_TRY_ASSIGN(const double us,
                time_us(
                    stream, rounds, [&] { return sparse->next_step(hits, &random); },
                    [&] { return sparse->queue(stream); }));
  return Measured{us, sparse->device_bytes(), 0};
}

class Report {
 public:
  explicit Report(const Limits& limits) : limits_(limits) {
    std::printf(
        "| rows | batch | format | attention | hits | us a layer | HBM | link | tokens/s |\n"
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |\n");
  }
  // HBM and link: of what the copies reached. tokens/s: of all layers, and of weights that are read
  // once a step at the measured rate.
  void add(const Setup& setup, const std::string& name, const std::string& hits,
           const Measured& measured) const {
    const double seconds = measured.us * 1e-6;
    const double step = kLayers * seconds + kWeightBytes / limits_.device;
    std::printf("| %u | %u | %s | %s | %s | %.1f | %.0f %% | %.0f %% | %.1f |\n", setup.rows,
                setup.batch, setup.format == RowFormat::int8 ? "int8" : "f16", name.c_str(),
                hits.c_str(), measured.us, 100 * measured.device_bytes / seconds / limits_.device,
                100 * measured.link_bytes / seconds / limits_.link, setup.batch / step);
    std::fflush(stdout);
  }

 private:
  Limits limits_;
};

Status measure(Stream& stream, const Setup& setup, int rounds, const Report& report) {
  {
    TL_TRY_ASSIGN(const Measured dense, measure_dense(stream, setup, rounds));
    report.add(setup, "dense, resident", "", dense);
  }
  for (const Choice& choice : kChoices) {
    const std::string name = choice.name;
    Setup sparse = setup;
    if (choice.rank > 0) sparse.sides = 1;
    Answer wanted;
    {
      TL_TRY_ASSIGN(Sparse resident, Sparse::create(sparse, choice, false));
      TL_TRY_ASSIGN(const Measured measured, measure_sparse(stream, &resident, 1, rounds));
      report.add(setup, name + ", resident", "", measured);
      TL_TRY_ASSIGN(wanted, resident.answer());
    }
    TL_TRY_ASSIGN(Sparse fetched, Sparse::create(sparse, choice, true));
    for (const int percent : {0, 50, 80, 95}) {
      TL_TRY_ASSIGN(Measured measured, measure_sparse(stream, &fetched, percent / 100.0, rounds));
      TL_TRY_ASSIGN(const std::uint64_t rows, fetched.rows_fetched());
      measured.link_bytes = static_cast<double>(rows) * sparse.record_bytes();
      const double due = (100 - percent) / 100.0 * fetched.rows_chosen();
      if (std::abs(static_cast<double>(rows) - due) > setup.lists())
        return fail(ErrorCode::corrupt, rows, " rows were fetched in place of ", due);
      report.add(setup, name + ", fetched", std::to_string(percent) + " %", measured);
      TL_TRY_ASSIGN(const Answer answer, fetched.answer());
      if (answer != wanted)
        return fail(ErrorCode::corrupt,
                    "rows in pinned memory gave another answer than on the device");
    }
  }
  return {};
}

}  // namespace

Status bench_attention(Stream& stream, const Limits& limits, std::span<const std::uint32_t> rows,
                       std::span<const std::uint32_t> batches, int rounds) {
  const Report report(limits);
  for (const std::uint32_t count : rows)
    for (const std::uint32_t batch : batches)
      for (const RowFormat format : {RowFormat::f16, RowFormat::int8})
        TL_TRY(measure(stream, {count, batch, format}, rounds, report));
  return {};
}

}  // namespace thermocline::cuda
