// Choosing on the device, stage by stage: scores, weights and shares against plain loops in double;
// what is taken by them, and how it is cut, exactly.
#include "kernels/cuda/choice.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "kernels/cuda/check.h"
#include "kernels/cuda/fetch.h"
#include "kernels/hadamard.h"
#include "tests/unit/cuda/on_device.h"
#include "tests/unit/cuda/stream_test.h"

namespace thermocline::cuda {
namespace {

constexpr float kNone = -std::numeric_limits<float>::infinity();

std::uint32_t whole_blocks(std::uint32_t rows) {
  return (rows + kBlockRows - 1) / kBlockRows * kBlockRows;
}

// One run's sketch on the host.
struct Sealed {
  std::uint32_t rows = 0, clusters = 0;
  std::vector<std::uint8_t> codes;
  std::vector<f16> scales;
  std::vector<std::byte> means;
  std::vector<std::uint16_t> starts;
};

class SketchTest : public StreamTest {
 protected:
  float normal() { return std::normal_distribution<float>()(random_); }

  // Every eighth row is a copy of the one before it, so that there are ties; some clusters are
  // empty.
  Sealed sealed(std::uint32_t rows, int bits, std::uint32_t dim) {
    Sealed made;
    made.rows = rows;
    made.starts.push_back(0);
    while (made.starts.back() < rows)
      made.starts.push_back(static_cast<std::uint16_t>(
          std::min<std::uint32_t>(rows, made.starts.back() + random_() % 40)));
    made.clusters = static_cast<std::uint32_t>(made.starts.size()) - 1;
    made.codes.resize(sketch_bytes(bits, rows, dim));
    for (std::uint8_t& byte : made.codes) byte = static_cast<std::uint8_t>(random_());
    made.scales.resize((rows + kSketchGroup - 1) / kSketchGroup * kSketchGroup);
    for (f16& scale : made.scales) scale = to_f16(std::abs(normal()) * 0.2f);
    const std::size_t words = sketch_row_bytes(bits, dim) / 4;
    const auto word = [&](std::uint32_t r, std::size_t t) {
      return made.codes.data() + (std::size_t{r / kSketchGroup} * words + t) * 4 * kSketchGroup +
             4 * (r % kSketchGroup);
    };
    for (std::uint32_t r = 1; r < rows; r += 8) {
      made.scales[r] = made.scales[r - 1];
      for (std::size_t t = 0; t < words; ++t) std::memcpy(word(r, t), word(r - 1, t), 4);
    }
    const std::size_t mean_bytes = row_bytes(RowFormat::int8, dim);
    made.means.resize(made.clusters * mean_bytes);
    for (std::byte& byte : made.means) byte = static_cast<std::byte>(random_());
    for (std::uint32_t c = 0; c < made.clusters; ++c) {
      const f16 scale = to_f16(std::abs(normal()) * 0.02f);
      std::memcpy(made.means.data() + c * mean_bytes + dim, &scale, sizeof scale);
    }
    return made;
  }

  std::mt19937 random_{20240611};
};

// Code of channel i of row r.
int code_of(const Sealed& run, int bits, std::uint32_t dim, std::uint32_t r, std::uint32_t i) {
  const std::uint32_t n = 32 / static_cast<std::uint32_t>(bits), words = dim / n;
  const std::size_t word = std::size_t{r / kSketchGroup} * words + i / n;
  const std::uint8_t byte = run.codes[word * 4 * kSketchGroup + 4 * (r % kSketchGroup) + i % 4];
  return byte >> (i % n / 4 * static_cast<std::uint32_t>(bits)) & ((1 << bits) - 1);
}

// A list on the host and on the device.
struct List {
  std::vector<Sealed> runs;
  std::vector<float> query, steady_max, steady_sum;
  std::uint32_t rows = 0, clusters = 0, budget = 0, coded_budget = 0;

  std::vector<std::unique_ptr<OnDevice<std::uint8_t>>> codes;
  std::vector<std::unique_ptr<OnDevice<f16>>> scales;
  std::vector<std::unique_ptr<OnDevice<std::byte>>> bytes;
  std::vector<std::unique_ptr<OnDevice<std::uint16_t>>> starts;
  std::vector<std::unique_ptr<OnDevice<float>>> floats;
  std::unique_ptr<OnDevice<ChoiceRun>> device_runs;
  std::vector<ChoiceRun> host_runs;

  ChoiceList upload(const ChoiceShape& shape) {
    host_runs.clear();
    rows = clusters = 0;
    for (const Sealed& run : runs) {
      codes.push_back(std::make_unique<OnDevice<std::uint8_t>>(run.codes));
      scales.push_back(std::make_unique<OnDevice<f16>>(run.scales));
      starts.push_back(std::make_unique<OnDevice<std::uint16_t>>(run.starts));
      const auto put = [&](std::vector<std::byte> values) {
        bytes.push_back(std::make_unique<OnDevice<std::byte>>(values));
        return bytes.back()->data();
      };
      ChoiceRun on;
      on.rows = run.rows;
      on.units = run.clusters;
      on.first_row = rows;
      on.first_unit = clusters;
      on.codes = codes.back()->data();
      on.scales = scales.back()->data();
      on.unit_keys = put(run.means);
      on.unit_key_bytes = row_bytes(RowFormat::int8, shape.head.key_dim);
      on.starts = starts.back()->data();
      on.row =
          put(std::vector<std::byte>(std::size_t{run.rows} * shape.row_bytes)) + shape.key_bytes;
      on.summary = put(std::vector<std::byte>(std::size_t{run.clusters} * shape.summary_bytes));
      on.residual = put(std::vector<std::byte>(std::size_t{run.rows} * shape.residual_bytes));
      host_runs.push_back(on);
      rows += whole_blocks(run.rows);
      clusters += whole_blocks(run.clusters);
    }
    device_runs = std::make_unique<OnDevice<ChoiceRun>>(host_runs);
    ChoiceList list;
    list.runs = device_runs->span();
    list.rows = rows;
    list.units = clusters;
    list.budget = budget;
    list.coded_budget = coded_budget;
    const auto put = [&](const std::vector<float>& values) {
      floats.push_back(std::make_unique<OnDevice<float>>(values));
      return floats.back()->data();
    };
    list.query = put(query);
    if (!steady_sum.empty()) {
      list.steady_max = put(steady_max);
      list.steady_sum = put(steady_sum);
    }
    return list;
  }
};

// A board's contents for one list.
struct Seen {
  std::vector<float> unit_score, shift, weight, mass, loss, log_weight, coded_weight;
  std::vector<RowSet> sets, coded, estimated;
  std::vector<std::uint16_t> unread;
  std::vector<BlockView> views;
  std::vector<HeadFold> folds;
  // Where the last of these lie on the device.
  const float *first_log_weight = nullptr, *first_coded_weight = nullptr;
  const BlockView* first_view = nullptr;
};

struct Board {
  ChoiceShape shape;
  OnDevice<std::byte> memory;
  ChoiceBoard board;

  explicit Board(const ChoiceShape& of)
      : shape(of),
        memory(std::vector<std::byte>(ChoiceBoard::bytes(of), std::byte{0xff})),
        board(ChoiceBoard::cut(of, memory.data())) {}

  Seen seen(std::size_t list) const {
    const std::size_t heads = shape.head.heads;
    const auto copy = [&](const auto* from, std::size_t of_list) {
      using T = std::remove_cvref_t<decltype(*from)>;
      return OnDevice<T>::copy_of(from + list * of_list, of_list);
    };
    return {copy(board.unit_score, heads * shape.most_units),
            copy(board.shift, heads),
            copy(board.weight, heads * shape.most_rows),
            copy(board.mass, shape.most_rows),
            copy(board.loss, shape.most_coded > 0 ? shape.most_rows : 0),
            copy(board.log_weight, heads * shape.most_units),
            copy(board.coded_weight, heads * shape.most_coded),
            copy(board.sets, shape.most_rows / kBlockRows),
            copy(board.coded, shape.most_coded > 0 ? shape.most_rows / kBlockRows : 0),
            copy(board.estimated, shape.most_units / kBlockRows),
            copy(board.unread, shape.most_units),
            copy(board.views, shape.views()),
            copy(board.folds, shape.folds()),
            board.log_weight + list * heads * shape.most_units,
            board.coded_weight + list * heads * shape.most_coded,
            board.views + list * shape.views()};
  }
};

ChoiceShape shape_for(const std::vector<List>& lists, HeadShape head, int bits) {
  ChoiceShape shape;
  shape.head = head;
  shape.bits = bits;
  shape.lists = static_cast<std::uint32_t>(lists.size());
  for (const List& list : lists) {
    std::uint32_t rows = 0, clusters = 0;
    for (const Sealed& run : list.runs) {
      rows += whole_blocks(run.rows);
      clusters += whole_blocks(run.clusters);
    }
    shape.most_runs = std::max(shape.most_runs, static_cast<std::uint32_t>(list.runs.size()));
    shape.most_rows = std::max(shape.most_rows, rows);
    shape.most_units = std::max(shape.most_units, clusters);
    shape.most_budget = std::max(shape.most_budget, list.budget);
    shape.most_coded = std::max(shape.most_coded, list.coded_budget);
  }
  shape.key_bytes = row_bytes(shape.key_format, head.key_dim);
  shape.row_bytes = shape.key_bytes + row_bytes(shape.value_format, head.value_dim);
  shape.summary_bytes = row_bytes(shape.summary_format, head.value_dim);
  shape.residual_format = bits == 4 ? RowFormat::rotated4 : RowFormat::rotated2;
  shape.residual_bytes = row_bytes(shape.residual_format, head.value_dim);
  return shape;
}

std::vector<Seen> choose_all(Stream& stream, std::vector<List>* lists, const ChoiceShape& shape) {
  std::vector<ChoiceList> given;
  for (List& list : *lists) given.push_back(list.upload(shape));
  const OnDevice<ChoiceList> on_device(given);
  const Board board(shape);
  const Status status = choose(stream, shape, on_device.span(), board.board);
  EXPECT_TRUE(status.has_value()) << status.error().message;
  const Status waited = stream.wait();
  EXPECT_TRUE(waited.has_value()) << waited.error().message;
  std::vector<Seen> seen;
  for (std::size_t l = 0; l < lists->size(); ++l) seen.push_back(board.seen(l));
  return seen;
}

void expect_scores(const List& list, const Seen& seen, const ChoiceShape& shape) {
  const std::uint32_t dim = shape.head.key_dim;
  std::vector<float> mean(dim), rotated(dim);
  std::vector<int> code(dim);
  std::vector<double> mass(list.rows, -1.0);
  for (std::uint32_t h = 0; h < shape.head.heads; ++h) {
    const float* query = list.query.data() + h * dim;
    std::copy_n(query, dim, rotated.data());
    hadamard(rotated.data(), dim);
    float largest = 0;
    for (const float x : rotated) largest = std::max(largest, std::abs(x));
    for (std::uint32_t i = 0; i < dim; ++i)
      code[i] = static_cast<int>(std::nearbyint(127.0f / largest * rotated[i]));
    std::vector<double> weight(list.rows, -1.0);
    double all = list.steady_sum.empty() ? 0.0
                                         : double{list.steady_sum[h]} *
                                               std::exp(double{list.steady_max[h]} - seen.shift[h]);
    for (std::size_t r = 0; r < list.runs.size(); ++r) {
      const Sealed& run = list.runs[r];
      const ChoiceRun& at = list.host_runs[r];
      for (std::uint32_t c = 0; c < run.clusters; ++c) {
        const float got = seen.unit_score[std::size_t{h} * shape.most_units + at.first_unit + c];
        if (run.starts[c] == run.starts[c + 1]) {
          ASSERT_EQ(got, kNone);
          continue;
        }
        read_row(RowFormat::int8, run.means.data() + c * row_bytes(RowFormat::int8, dim), dim,
                 mean.data());
        double score = 0, terms = 0;
        for (std::uint32_t i = 0; i < dim; ++i) {
          score += double{query[i]} * double{mean[i]};
          terms += std::abs(double{query[i]} * double{mean[i]});
        }
        ASSERT_NEAR(got, score, 14 * 0x1p-24 * terms) << "cluster " << c;
        for (std::uint32_t row = run.starts[c]; row < run.starts[c + 1]; ++row) {
          double dot = 0;
          for (std::uint32_t i = 0; i < dim; ++i)
            dot += (code_of(run, shape.bits, dim, row, i) - double{sketch_middle(shape.bits)}) *
                   code[i];
          const double of_row =
              score + dot * double{largest / 127.0f} * double{to_float(run.scales[row])};
          const double wanted = std::exp(of_row - double{seen.shift[h]});
          weight[at.first_row + row] = wanted;
          all += wanted;
          ASSERT_NEAR(seen.weight[std::size_t{h} * shape.most_rows + at.first_row + row], wanted,
                      1e-4 * wanted)
              << "row " << row;
        }
      }
    }
    for (std::uint32_t row = 0; row < list.rows; ++row)
      if (weight[row] >= 0) mass[row] = std::max(mass[row], 0.0) + weight[row] / all;
  }
  for (std::uint32_t row = 0; row < list.rows; ++row)
    ASSERT_NEAR(seen.mass[row], mass[row], 2e-4 * std::abs(mass[row])) << "row " << row;
}

bool holds(const std::vector<RowSet>& sets, std::uint32_t row) {
  return (sets[row / kBlockRows] >> row % kBlockRows & 1) != 0;
}

// The `most` rows with most of `worth`, equal ones from the lowest row on.
std::vector<RowSet> best_rows(const std::vector<float>& worth, std::uint32_t all,
                              std::uint32_t most) {
  std::vector<std::uint32_t> rows;
  for (std::uint32_t r = 0; r < all; ++r)
    if (worth[r] >= 0) rows.push_back(r);
  std::stable_sort(rows.begin(), rows.end(), [&](auto a, auto b) { return worth[a] > worth[b]; });
  rows.resize(std::min<std::size_t>(rows.size(), most));
  std::vector<RowSet> sets(all / kBlockRows);
  for (const std::uint32_t r : rows) sets[r / kBlockRows] |= RowSet{1} << r % kBlockRows;
  return sets;
}

// By the device's own masses. What codes lose is the mass times the square of their scale; of coded
// rows those that lose most are read in place.
void expect_taken(const List& list, const Seen& seen) {
  for (std::size_t r = 0; r < list.runs.size() && !seen.loss.empty(); ++r)
    for (std::uint32_t row = 0; row < list.runs[r].rows; ++row) {
      const std::uint32_t at = list.host_runs[r].first_row + row;
      const double scale = to_float(list.runs[r].scales[row]);
      const double loss = std::max(scale * scale, 1e-9) * double{seen.mass[at]};
      ASSERT_NEAR(seen.loss[at], loss, 1e-6 * std::abs(loss) + 1e-37);
    }
  std::vector<RowSet> coded = best_rows(seen.mass, list.rows, list.coded_budget);
  std::vector<float> worth = seen.loss.empty() ? seen.mass : seen.loss;
  for (std::uint32_t r = 0; r < list.rows && !seen.loss.empty(); ++r)
    if ((coded[r / kBlockRows] >> r % kBlockRows & 1) == 0) worth[r] = -1;
  const std::vector<RowSet> read = best_rows(worth, list.rows, list.budget);
  for (std::size_t b = 0; b < coded.size(); ++b) coded[b] &= ~read[b];
  EXPECT_EQ(std::vector<RowSet>(seen.sets.begin(), seen.sets.begin() + read.size()), read);
  if (list.coded_budget > 0) {
    EXPECT_EQ(std::vector<RowSet>(seen.coded.begin(), seen.coded.begin() + coded.size()), coded);
  }
}

void expect_estimated(const List& list, const Seen& seen, const ChoiceShape& shape) {
  for (std::size_t r = 0; r < list.runs.size(); ++r) {
    const Sealed& run = list.runs[r];
    const ChoiceRun& at = list.host_runs[r];
    for (std::uint32_t c = 0; c < run.clusters; ++c) {
      std::uint32_t unread = 0, coded = 0;
      for (std::uint32_t row = run.starts[c]; row < run.starts[c + 1]; ++row) {
        const bool by_code = list.coded_budget > 0 && holds(seen.coded, at.first_row + row);
        coded += by_code;
        unread += !by_code && !holds(seen.sets, at.first_row + row);
      }
      ASSERT_EQ(seen.unread[at.first_unit + c], unread);
      const std::uint32_t of_list = at.first_unit + c;
      const bool estimated = holds(seen.estimated, of_list);
      double mass = 0;
      for (std::uint32_t h = 0; h < shape.head.heads && unread > 0; ++h) {
        const float* score = seen.unit_score.data() + std::size_t{h} * shape.most_units;
        double all =
            list.steady_sum.empty()
                ? 0.0
                : double{list.steady_sum[h]} * std::exp(double{list.steady_max[h]} - seen.shift[h]);
        for (std::size_t q = 0; q < list.runs.size(); ++q)
          for (std::uint32_t d = 0; d < list.runs[q].clusters; ++d)
            all += (list.runs[q].starts[d + 1] - list.runs[q].starts[d]) *
                   std::exp(double{score[list.host_runs[q].first_unit + d]} - seen.shift[h]);
        mass += std::exp(double{score[of_list]} - seen.shift[h]) / all;
      }
      if (coded == 0 && std::abs(mass * unread - 5e-5) < 1e-3 * 5e-5) continue;  // either will do
      ASSERT_EQ(estimated, coded > 0 || (unread > 0 && mass * unread > 5e-5)) << "cluster " << c;
    }
  }
}

// What a row of a scored fold is to score.
double summary_score(const List& list, const Seen& seen, const ChoiceShape& shape, std::size_t r,
                     std::uint32_t cluster, std::uint32_t h) {
  const ChoiceRun& run = list.host_runs[r];
  const double score =
      seen.unit_score[std::size_t{h} * shape.most_units + run.first_unit + cluster];
  const double shift = seen.shift[h];
  double weight = seen.unread[run.first_unit + cluster] * std::exp(score - shift);
  for (std::uint32_t row = list.runs[r].starts[cluster]; row < list.runs[r].starts[cluster + 1];
       ++row)
    if (list.coded_budget > 0 && holds(seen.coded, run.first_row + row))
      weight += double{seen.weight[std::size_t{h} * shape.most_rows + run.first_row + row]};
  return shift + std::log(weight);
}

enum class Form : std::uint8_t { rows, codes, summaries };

// A kind of folds: which they are of a list's, and what they are cut from.
struct Expected {
  Form form;
  std::size_t first_fold, last_fold;
  const std::vector<RowSet>& sets;
  const float* first_weight;
};

// The folds read each run's rows in order, kFoldRows at a time; then its codes and its summaries
// likewise.
void expect_folds(const List& list, const Seen& seen, const ChoiceShape& shape) {
  const std::size_t coded_from = shape.row_folds(), end = shape.folds();
  const std::size_t summaries_from = coded_from + shape.coded_folds();
  const std::uint32_t heads = shape.head.heads;
  for (const Expected& of :
       {Expected{Form::rows, 0, coded_from, seen.sets, nullptr},
        Expected{Form::codes, coded_from, summaries_from, seen.coded, seen.first_coded_weight},
        Expected{Form::summaries, summaries_from, end, seen.estimated, seen.first_log_weight}}) {
    std::size_t fold = of.first_fold, rank = 0;
    for (std::size_t r = 0; r < list.runs.size() && of.first_fold < of.last_fold; ++r) {
      const ChoiceRun& run = list.host_runs[r];
      const bool summaries = of.form == Form::summaries;
      const std::byte* begin = summaries               ? run.summary
                               : of.form == Form::rows ? run.row
                                                       : run.residual;
      const std::uint32_t first = summaries ? run.first_unit : run.first_row;
      std::vector<std::uint32_t> wanted;
      for (std::uint32_t i = 0; i < (summaries ? run.units : run.rows); ++i)
        if (holds(of.sets, first + i)) wanted.push_back(i);
      for (std::size_t from = 0; from < wanted.size(); from += kFoldRows, ++fold) {
        const Fold& cut = seen.folds[fold].fold;
        ASSERT_EQ(cut.scored, of.form != Form::rows);
        ASSERT_EQ(cut.residual, of.form == Form::codes);
        std::size_t at = from;
        for (std::size_t v = 0; v < cut.blocks.size(); ++v) {
          const BlockView& view =
              seen.views[static_cast<std::size_t>(cut.blocks.data() - seen.first_view) + v];
          ASSERT_EQ(view.log_weight, cut.scored ? of.first_weight + rank * heads : nullptr);
          if (!cut.scored) {
            ASSERT_EQ(view.key, view.value - shape.key_bytes);
          }
          for (RowSet left = view.rows; left != 0; left &= left - 1, ++at, ++rank) {
            ASSERT_LT(at, wanted.size());
            const auto row = static_cast<std::size_t>(std::countr_zero(left));
            ASSERT_EQ(view.value + row * cut.value_stride,
                      begin + std::size_t{wanted[at]} * cut.value_stride);
            for (std::uint32_t h = 0; h < heads && cut.scored; ++h) {
              const std::size_t weight_at = rank * heads + h;
              const double due =
                  summaries ? summary_score(list, seen, shape, r, wanted[at], h)
                            : double{seen.shift[h]} +
                                  std::log(double{seen.weight[std::size_t{h} * shape.most_rows +
                                                              first + wanted[at]]});
              const float got =
                  summaries ? seen.log_weight[weight_at] : seen.coded_weight[weight_at];
              ASSERT_NEAR(got, due, 1e-5 * std::abs(due) + 1e-5);
            }
          }
        }
        ASSERT_EQ(at, std::min(from + kFoldRows, wanted.size()));
      }
    }
    ASSERT_LE(fold, of.last_fold);
    for (; fold < of.last_fold; ++fold) ASSERT_TRUE(seen.folds[fold].fold.blocks.empty());
  }
}

List list_of(std::vector<Sealed> runs, std::uint32_t budget, std::vector<float> query) {
  List list;
  list.runs = std::move(runs);
  list.budget = budget;
  list.query = std::move(query);
  return list;
}

TEST_F(SketchTest, EveryStageMatchesTheOracle) {
  struct Case {
    HeadShape head;
    int bits;
  };
  for (const auto& [head, bits] : {Case{{3, 64, 64}, 2}, Case{{1, 128, 80}, 1},
                                   Case{{4, 256, 256}, 4}, Case{{8, 32, 16}, 2}}) {
    SCOPED_TRACE("heads " + std::to_string(head.heads) + " keys " + std::to_string(head.key_dim) +
                 " bits " + std::to_string(bits));
    const auto query = [&] {
      std::vector<float> values(std::size_t{head.heads} * head.key_dim);
      for (float& x : values) x = normal() / std::sqrt(static_cast<float>(head.key_dim));
      return values;
    };
    std::vector<List> lists;
    lists.push_back(list_of({sealed(700, bits, head.key_dim), sealed(64, bits, head.key_dim),
                             sealed(1501, bits, head.key_dim)},
                            400, query()));
    lists.back().steady_max.assign(head.heads, 1.5f);
    lists.back().steady_sum.assign(head.heads, 20.0f);
    lists.push_back(list_of({sealed(300, bits, head.key_dim)}, 1, query()));
    lists.push_back(list_of({sealed(100, bits, head.key_dim), sealed(130, bits, head.key_dim)},
                            5000,
                            query()));  // more than there are
    for (const bool coded : {false, true}) {
      SCOPED_TRACE(coded ? "with codes" : "without codes");
      for (List& list : lists) list.coded_budget = coded ? list.budget + 700 : 0;
      const ChoiceShape shape = shape_for(lists, head, bits);
      const std::vector<Seen> seen = choose_all(*stream_, &lists, shape);
      for (std::size_t l = 0; l < lists.size(); ++l) {
        SCOPED_TRACE("list " + std::to_string(l));
        expect_scores(lists[l], seen[l], shape);
        expect_taken(lists[l], seen[l]);
        expect_estimated(lists[l], seen[l], shape);
        expect_folds(lists[l], seen[l], shape);
      }
    }
  }
}

// All rows alike: the lowest are taken, over whole blocks and across runs.
TEST_F(SketchTest, EqualMassesGoToTheLowerRow) {
  const HeadShape head{2, 64, 64};
  std::vector<Sealed> runs = {sealed(200, 2, 64), sealed(500, 2, 64)};
  for (Sealed& all : runs) {
    std::fill(all.scales.begin(), all.scales.end(), f16{});
    std::fill(all.means.begin(), all.means.end(), std::byte{});
  }
  std::vector<List> lists;
  lists.push_back(list_of(runs, 333, std::vector<float>(128, 0.5f)));
  const ChoiceShape shape = shape_for(lists, head, 2);
  const std::vector<Seen> seen = choose_all(*stream_, &lists, shape);
  expect_taken(lists[0], seen[0]);
  EXPECT_EQ(seen[0].sets[0], kAllRows);
  EXPECT_EQ(seen[0].sets[3], first_rows(8));      // the first run's 200
  EXPECT_EQ(seen[0].sets[4 + 2], first_rows(5));  // and 133 of the second
  EXPECT_EQ(seen[0].sets[4 + 3], RowSet{0});
}

// What a list chooses does not depend on the lists beside it.
TEST_F(SketchTest, BitsDependOnTheListAlone) {
  const HeadShape head{3, 64, 64};
  std::vector<float> query(192);
  for (float& x : query) x = normal() / 8;
  const std::vector<Sealed> runs = {sealed(900, 2, 64), sealed(70, 2, 64)};
  std::vector<List> alone, among;
  alone.push_back(list_of(runs, 100, query));
  among.push_back(list_of({sealed(3000, 2, 64)}, 50, query));
  among.push_back(list_of(runs, 100, query));
  const Seen a = choose_all(*stream_, &alone, shape_for(alone, head, 2))[0];
  const Seen b = choose_all(*stream_, &among, shape_for(among, head, 2))[1];
  const std::size_t rows = alone[0].rows, blocks = rows / kBlockRows;
  EXPECT_EQ(std::vector(a.mass.begin(), a.mass.begin() + rows),
            std::vector(b.mass.begin(), b.mass.begin() + rows));
  EXPECT_EQ(std::vector(a.sets.begin(), a.sets.begin() + blocks),
            std::vector(b.sets.begin(), b.sets.begin() + blocks));
}

// A cache in front of the rows: each step reads the chosen rows, from their slots as far as those
// reach, and fetches those alone that it has not; or names them, and has them come packed.
TEST_F(SketchTest, ChosenRowsAreFetchedOnce) {
  const HeadShape head{2, 64, 64};
  const std::vector<Sealed> runs = {sealed(700, 2, 64), sealed(300, 2, 64)};
  constexpr std::uint32_t kChosen = 150;  // more than a launch copies parts of
  const std::pair<std::uint32_t, bool> cases[] = {{90, false}, {200, false}, {200, true}};
  for (const auto& [slots, packed] : cases) {  // fewer than are chosen, and more
    SCOPED_TRACE("slots " + std::to_string(slots) + (packed ? ", packed" : ""));
    std::vector<List> lists;
    lists.push_back(list_of(runs, kChosen, {}));
    ChoiceShape shape = shape_for(lists, head, 2);
    shape.cached = true;
    shape.packed = packed;
    List& list = lists[0];
    list.query.assign(128, 0.0f);
    const ChoiceList on = list.upload(shape);
    // Every record says which row it is.
    std::vector<std::vector<std::byte>> homes;
    for (std::size_t r = 0; r < runs.size(); ++r) {
      homes.emplace_back(std::size_t{runs[r].rows} * shape.row_bytes);
      for (std::uint32_t row = 0; row < runs[r].rows; ++row) {
        const std::uint32_t name = list.host_runs[r].first_row + row;
        for (std::uint32_t at = 0; at < shape.row_bytes; at += 4)
          std::memcpy(homes.back().data() + std::size_t{row} * shape.row_bytes + at, &name, 4);
      }
      ASSERT_EQ(cudaMemcpy(const_cast<std::byte*>(list.host_runs[r].row - shape.key_bytes),
                           homes.back().data(), homes.back().size(), cudaMemcpyHostToDevice),
                cudaSuccess);
    }
    std::vector<ChoiceRun> away = list.host_runs;
    for (ChoiceRun& run : away) run.row = nullptr;
    const OnDevice<ChoiceRun> runs_away(away);
    const OnDevice<std::byte> records(std::vector<std::byte>(slots * shape.row_bytes));
    // Whatever is there at first: it may look like copies, of this step, too.
    const OnDevice<std::int32_t> slot_of(std::vector<std::int32_t>(list.rows, 1));
    const OnDevice<std::uint32_t> row_of(std::vector<std::uint32_t>(slots, 3));
    const OnDevice<std::uint32_t> used(std::vector<std::uint32_t>(slots, 1)), hand({~0u});
    const Board board(shape);
    std::vector<float> query(128);
    for (float& x : query) x = normal() / 8;
    std::map<std::uint32_t, std::uint32_t> held;  // by row: the step that last asked for it
    for (std::uint32_t step = 1; step <= 6; ++step) {
      if (step != 3)  // one step asks again what the one before did
        for (float& x : query) x += normal() / 32;
      ChoiceList now = on;
      const OnDevice<float> device_query(query);
      now.query = device_query.data();
      if (packed) now.runs = runs_away.span();
      // In one step the second run is another than before.
      const std::uint32_t kept = step == 1   ? 0
                                 : step == 5 ? list.host_runs[1].first_row
                                             : list.rows;
      now.cache = {slots,          list.rows,     kept,        records.data(),
                   slot_of.data(), row_of.data(), used.data(), hand.data()};
      now.step = step;
      const OnDevice<ChoiceList> given(std::vector<ChoiceList>{now});
      ASSERT_TRUE(choose(*stream_, shape, given.span(), board.board).has_value());
      ASSERT_TRUE(stream_->wait().has_value());
      const Seen seen = board.seen(0);

      std::vector<std::uint32_t> chosen;
      for (std::uint32_t row = 0; row < list.rows; ++row)
        if (seen.sets[row / kBlockRows] >> row % kBlockRows & 1) chosen.push_back(row);
      ASSERT_EQ(chosen.size(), kChosen);
      std::vector<std::uint32_t> absent;
      held.erase(held.lower_bound(kept), held.end());
      for (const std::uint32_t row : chosen)
        if (held.count(row) == 0) absent.push_back(row);
      const std::vector<std::uint32_t> fetched =
          OnDevice<std::uint32_t>::copy_of(board.board.fetched, 1);
      const std::size_t room = slots - (chosen.size() - absent.size());
      EXPECT_EQ(fetched[0], std::min(absent.size(), room));
      if (step == 3 && slots > kChosen) {
        EXPECT_EQ(fetched[0], 0u);
      }
      if (packed && !absent.empty()) {  // each a part of its own, the last one first
        ASSERT_EQ(OnDevice<std::uint32_t>::copy_of(board.board.missed, absent.size()), absent);
        std::vector<std::byte> rows;
        for (auto row = absent.rbegin(); row != absent.rend(); ++row) {
          const std::size_t r = *row >= list.host_runs[1].first_row ? 1 : 0;
          const std::byte* const home =
              homes[r].data() + (*row - list.host_runs[r].first_row) * shape.row_bytes;
          rows.insert(rows.end(), home, home + shape.row_bytes);
        }
        const OnDevice<std::byte> sent(rows);
        std::vector<PackedRows> parts;
        for (std::uint32_t i = 0; i < absent.size(); ++i)
          parts.push_back({0, static_cast<std::uint32_t>(absent.size()) - 1 - i, 1,
                           sent.data() + i * shape.row_bytes});
        ASSERT_TRUE(fetch_packed(*stream_, shape, given.span(), board.board, parts).has_value());
        ASSERT_TRUE(stream_->wait().has_value());
      }

      const std::vector<std::int32_t> where = slot_of.copy();
      held.clear();
      for (std::uint32_t row = 0; row < list.rows; ++row)
        if (where[row] >= 0) held[row] = step;
      EXPECT_LE(held.size(), slots);
      std::vector<std::uint32_t> attended;
      for (std::size_t f = 0; f < shape.row_folds(); ++f) {
        const Fold& fold = seen.folds[f].fold;
        std::size_t rows = 0;
        for (std::size_t v = 0; v < fold.blocks.size(); ++v, ++rows) {
          const BlockView& view =
              seen.views[static_cast<std::size_t>(fold.blocks.data() - seen.first_view) + v];
          ASSERT_EQ(view.rows, RowSet{1});
          const std::uint32_t row = OnDevice<std::uint32_t>::copy_of(
              reinterpret_cast<const std::uint32_t*>(view.value), 1)[0];
          attended.push_back(row);
          const bool in_cache =
              view.key >= records.data() && view.key < records.data() + slots * shape.row_bytes;
          EXPECT_EQ(in_cache, where[row] >= 0) << "row " << row;
        }
        EXPECT_LE(rows, static_cast<std::size_t>(kFoldRows));
      }
      EXPECT_EQ(attended, chosen);
    }
  }
}

TEST(CanChoose, NamesTheLimit) {
  ChoiceShape shape;
  shape.head = {4, 128, 128};
  EXPECT_TRUE(can_choose(shape).has_value());
  shape.head.heads = 9;
  EXPECT_NE(can_choose(shape).error().message.find("not 9"), std::string::npos);
  shape.head.heads = 4;
  shape.bits = 3;
  EXPECT_NE(can_choose(shape).error().message.find("not 3 of 128"), std::string::npos);
}

}  // namespace
}  // namespace thermocline::cuda
