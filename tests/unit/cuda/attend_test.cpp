// The device's attention against plain loops in double, with a bound that is computed from the
// number of roundings, not chosen.
#include "kernels/cuda/attend.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "kernels/hadamard.h"
#include "tests/unit/cuda/on_device.h"
#include "tests/unit/cuda/random_row.h"
#include "tests/unit/cuda/stream_test.h"

namespace thermocline::cuda {
namespace {

constexpr float kNone = -std::numeric_limits<float>::infinity();

// How a fold's rows are kept, and whether their scores are given.
struct Kind {
  RowFormat key = RowFormat::f16, value = RowFormat::f16;
  bool scored = false, residual = false;
};

// What a fold reads, on the host: blocks of 64 records, key and value side by side, of which some
// rows are picked; one log weight a picked row where `weighted`, or its scores.
struct Blocks {
  Kind kind;
  std::uint32_t key_bytes = 0, row_bytes = 0;
  std::vector<std::byte> records;  // [blocks][64][row_bytes]
  std::vector<RowSet> picked;
  std::vector<float> log_weight;  // of all picked rows; empty: none; scored: [row][heads]

  const std::byte* row(std::size_t block, int r) const {
    return records.data() + (block * kBlockRows + static_cast<std::size_t>(r)) * row_bytes;
  }
};

struct State {
  double max = kNone, sum = 0;
  std::vector<double> acc;
  // How far a float computation may be off: the largest sum over channels of |q k|, and the sum
  // over rows of p |v| for each channel.
  double largest_terms = 0;
  std::vector<double> acc_terms;
};

// What the roundings of a sum of such values are in proportion to. What is summed as codes of the
// rotated row and rotated back has in each channel those of all channels.
std::vector<float> magnitudes_of(RowFormat format, std::vector<float> value) {
  const bool rotated = format == RowFormat::rotated2 || format == RowFormat::rotated4;
  if (rotated) hadamard(value.data(), value.size());
  for (float& x : value) x = std::abs(x);
  const std::size_t block = value.size() & (~value.size() + 1);
  for (std::size_t first = 0; rotated && first < value.size(); first += block) {
    const auto of_block = std::span(value).subspan(first, block);
    const float all = std::accumulate(of_block.begin(), of_block.end(), 0.0f);
    std::fill(of_block.begin(), of_block.end(), all / std::sqrt(static_cast<float>(block)));
  }
  return value;
}

// Attention of query head `head` over the picked rows of several folds' blocks.
State oracle(const float* query, std::uint32_t head, HeadShape shape,
             const std::vector<const Blocks*>& folds) {
  State state;
  state.acc.assign(shape.value_dim, 0.0);
  state.acc_terms.assign(shape.value_dim, 0.0);
  std::vector<double> scores;
  std::vector<std::vector<float>> values, magnitudes;
  std::vector<float> key(shape.key_dim), value(shape.value_dim);
  query += head * shape.key_dim;
  for (const Blocks* blocks : folds) {
    const Kind kind = blocks->kind;
    std::size_t rank = 0;
    for (std::size_t b = 0; b < blocks->picked.size(); ++b) {
      for (int r = 0; r < kBlockRows; ++r) {
        if ((blocks->picked[b] >> r & 1) == 0) continue;
        double score = 0, terms = 0;
        if (kind.scored) {
          score = double{blocks->log_weight[rank * shape.heads + head]};
        } else {
          read_row(kind.key, blocks->row(b, r), shape.key_dim, key.data());
          for (std::uint32_t i = 0; i < shape.key_dim; ++i) {
            const double term = double{query[i]} * double{key[i]};
            score += term;
            terms += std::abs(term);
          }
          if (!blocks->log_weight.empty()) score += double{blocks->log_weight[rank]};
        }
        ++rank;
        scores.push_back(score);
        read_row(kind.value, blocks->row(b, r) + blocks->key_bytes, shape.value_dim, value.data());
        values.push_back(value);
        magnitudes.push_back(magnitudes_of(kind.value, value));
        state.max = std::max(state.max, score);
        if (std::isfinite(score))
          state.largest_terms = std::max(state.largest_terms, terms + std::abs(score));
      }
    }
  }
  for (std::size_t r = 0; r < scores.size(); ++r) {
    if (std::isinf(scores[r])) continue;
    const double p = std::exp(scores[r] - state.max);
    state.sum += p;
    for (std::uint32_t i = 0; i < shape.value_dim; ++i) {
      state.acc[i] += p * double{values[r][i]};
      state.acc_terms[i] += p * double{magnitudes[r][i]};
    }
  }
  return state;
}

// `merges`: how often the state was merged, each at most 3 roundings and 2 exponentials more.
void expect_near(const State& wanted, float max, float sum, const float* acc, int merges) {
  if (wanted.sum == 0) {
    EXPECT_EQ(max, kNone);
    EXPECT_EQ(sum, 0.0f);
    for (std::size_t i = 0; i < wanted.acc.size(); ++i) EXPECT_EQ(acc[i], 0.0f) << "channel " << i;
    return;
  }
  constexpr double kUnit = 0x1p-24;
  // A score is 8 products in a chain, 5 sums across lanes and a log weight; it and the maximum are
  // both off by that, and their difference is rounded. Then at most 32 rows in a chain, 5 sums
  // across lanes, 8 across warps, 10 of a rotation, and 2 for e^x; a merge's e^x sees the maxima's
  // error once more.
  const double score_error = 14 * kUnit * wanted.largest_terms;
  const double relative = (3 + 2 * merges) * score_error + (60 + 8 * merges) * kUnit;
  EXPECT_NEAR(max, wanted.max, score_error);
  const double scale = std::exp(double{max} - wanted.max);
  EXPECT_NEAR(sum * scale, wanted.sum, relative * wanted.sum);
  for (std::size_t i = 0; i < wanted.acc.size(); ++i)
    ASSERT_NEAR(acc[i] * scale, wanted.acc[i], relative * wanted.acc_terms[i]) << "channel " << i;
}

class AttendTest : public StreamTest {
 protected:
  float normal() { return std::normal_distribution<float>()(random_); }

  std::vector<float> query(HeadShape shape) {
    std::vector<float> rows(std::size_t{shape.heads} * shape.key_dim);
    for (float& x : rows) x = normal() / std::sqrt(static_cast<float>(shape.key_dim));
    return rows;
  }

  // A row of `dim` channels: one in 16 is an outlier that takes most of the attention if it is a
  // key.
  void add_row(RowFormat format, std::uint32_t dim, bool outliers, std::vector<std::byte>* out) {
    const float scale = outliers && random_() % 16 == 0 ? 8.0f : 1.0f;
    add_random_row(format, dim, scale, &random_, out);
  }

  // One log weight, or score, in 8 is -inf.
  Blocks blocks(HeadShape shape, std::vector<RowSet> picked, float log_weight_scale,
                Kind kind = {}) {
    Blocks made;
    made.kind = kind;
    made.picked = std::move(picked);
    int rows = 0;
    for (const RowSet set : made.picked) rows += count(set);
    made.key_bytes = kind.scored ? 0 : row_bytes(kind.key, shape.key_dim);
    made.row_bytes = made.key_bytes + row_bytes(kind.value, shape.value_dim);
    for (std::size_t r = 0; r < made.picked.size() * kBlockRows; ++r) {
      if (!kind.scored) add_row(kind.key, shape.key_dim, true, &made.records);
      add_row(kind.value, shape.value_dim, false, &made.records);
    }
    const std::size_t weights = static_cast<std::size_t>(rows) * (kind.scored ? shape.heads : 1);
    if (log_weight_scale > 0 || kind.scored)
      for (std::size_t r = 0; r < weights; ++r)
        made.log_weight.push_back(random_() % 8 == 0 ? kNone : normal() * log_weight_scale);
    return made;
  }

  std::mt19937 random_{20240607};
};

// Folds on the device, each with its own query rows.
struct DeviceFolds {
  std::vector<std::unique_ptr<OnDevice<std::byte>>> records;
  std::vector<std::unique_ptr<OnDevice<float>>> floats;
  std::vector<std::unique_ptr<OnDevice<BlockView>>> views;
  std::vector<HeadFold> folds;

  void add(HeadShape shape, const Blocks& blocks, const std::vector<float>& query) {
    records.push_back(std::make_unique<OnDevice<std::byte>>(blocks.records));
    floats.push_back(std::make_unique<OnDevice<float>>(blocks.log_weight));
    const float* weights = blocks.log_weight.empty() ? nullptr : floats.back()->data();
    const std::size_t weights_a_row = blocks.kind.scored ? shape.heads : 1;
    std::vector<BlockView> block_views;
    for (std::size_t b = 0; b < blocks.picked.size(); ++b) {
      const std::byte* key = records.back()->data() + b * kBlockRows * blocks.row_bytes;
      block_views.push_back({key, key + blocks.key_bytes, blocks.picked[b], weights});
      if (weights != nullptr)
        weights += static_cast<std::size_t>(count(blocks.picked[b])) * weights_a_row;
    }
    views.push_back(std::make_unique<OnDevice<BlockView>>(block_views));
    floats.push_back(std::make_unique<OnDevice<float>>(query));
    folds.push_back({{.key_format = blocks.kind.key,
                      .value_format = blocks.kind.value,
                      .key_stride = blocks.row_bytes,
                      .value_stride = blocks.row_bytes,
                      .blocks = views.back()->span(),
                      .scored = blocks.kind.scored,
                      .residual = blocks.kind.residual},
                     floats.back()->data()});
  }
};

// States on the device, filled with NaN so that what is not written shows.
struct DeviceStates {
  DeviceStates(std::size_t states, HeadShape shape)
      : max(std::vector<float>(states * shape.heads, NAN)),
        sum(std::vector<float>(states * shape.heads, NAN)),
        acc(std::vector<float>(states * shape.heads * shape.value_dim, NAN)) {}
  States view() const { return {max.data(), sum.data(), acc.data()}; }

  OnDevice<float> max, sum, acc;
};

struct HostStates {
  HostStates() = default;
  explicit HostStates(const DeviceStates& states)
      : max(states.max.copy()), sum(states.sum.copy()), acc(states.acc.copy()) {}
  bool operator==(const HostStates&) const = default;
  std::vector<float> max, sum, acc;
};

HostStates attend_all(Stream& stream, HeadShape shape, const DeviceFolds& folds) {
  const OnDevice<HeadFold> tasks(folds.folds);
  const DeviceStates states(folds.folds.size(), shape);
  const Status status = attend(stream, shape, tasks.span(), states.view());
  EXPECT_TRUE(status.has_value()) << status.error().message;
  const Status waited = stream.wait();
  EXPECT_TRUE(waited.has_value()) << waited.error().message;
  return HostStates(states);
}

// Row sets that a fold may have: whole blocks, one row in each of many blocks, masks with gaps and
// empty blocks between, one row, none.
std::vector<std::vector<RowSet>> picks(std::mt19937& random) {
  std::vector<std::vector<RowSet>> all;
  all.push_back({kAllRows, kAllRows, kAllRows, kAllRows});
  all.push_back({kAllRows, first_rows(37)});
  std::vector<RowSet> scattered;
  for (int b = 0; b < 75; ++b) scattered.push_back(RowSet{1} << (random() % 64));
  all.push_back(scattered);
  std::vector<RowSet> gaps;
  for (int b = 0; b < 11; ++b) {
    const RowSet set = (RowSet{random()} << 32 | random()) & (RowSet{random()} << 32 | random());
    gaps.push_back(b % 3 == 1 ? 0 : set);
  }
  all.push_back(gaps);
  all.push_back({RowSet{1} << 63});
  all.push_back({0, 0});
  all.push_back({});
  return all;
}

TEST_F(AttendTest, MatchesTheOracle) {
  const HeadShape shapes[] = {{1, 64, 64},   {2, 16, 48},  {3, 64, 64},   {4, 80, 96},
                              {5, 128, 128}, {8, 112, 16}, {9, 256, 256}, {17, 64, 240}};
  for (const HeadShape shape : shapes) {
    for (const float log_weight_scale : {0.0f, 3.0f}) {
      SCOPED_TRACE("heads " + std::to_string(shape.heads) + " keys " +
                   std::to_string(shape.key_dim) + " values " + std::to_string(shape.value_dim) +
                   " log weights " + std::to_string(log_weight_scale));
      DeviceFolds device;
      std::vector<Blocks> host;
      std::vector<std::vector<float>> queries;
      for (const auto& picked : picks(random_)) {
        host.push_back(blocks(shape, picked, log_weight_scale));
        queries.push_back(query(shape));
        device.add(shape, host.back(), queries.back());
      }
      const HostStates got = attend_all(*stream_, shape, device);
      for (std::size_t f = 0; f < host.size(); ++f) {
        for (std::uint32_t h = 0; h < shape.heads; ++h) {
          SCOPED_TRACE("fold " + std::to_string(f) + " head " + std::to_string(h));
          const std::size_t at = f * shape.heads + h;
          expect_near(oracle(queries[f].data(), h, shape, {&host[f]}), got.max[at], got.sum[at],
                      got.acc.data() + at * shape.value_dim, 0);
        }
      }
    }
  }
}

// Coded rows, and rows whose scores are given: summaries and, as residuals, codes.
TEST_F(AttendTest, CodedRowsMatchTheOracle) {
  using enum RowFormat;
  const Kind kinds[] = {{int8, int8},
                        {int8, f16},
                        {f16, int8},
                        {q8_0, q8_0},
                        {q8_0, f16},
                        {q8_0, int8},
                        {f16, q8_0},
                        {f16, f16, true},
                        {f16, int8, true},
                        {f16, q8_0, true},
                        {f16, rotated2, true, true},
                        {f16, rotated4, true, true}};
  const HeadShape shapes[] = {{1, 64, 64}, {3, 16, 96}, {4, 128, 128}, {9, 256, 256}};
  for (const Kind& kind : kinds)
    for (const HeadShape shape : shapes) {
      SCOPED_TRACE("key format " + std::to_string(static_cast<int>(kind.key)) + " value format " +
                   std::to_string(static_cast<int>(kind.value)) + (kind.scored ? " scored" : "") +
                   " heads " + std::to_string(shape.heads));
      DeviceFolds device;
      std::vector<Blocks> host;
      std::vector<std::vector<float>> queries;
      for (const auto& picked : picks(random_)) {
        host.push_back(blocks(shape, picked, 2.0f, kind));
        queries.push_back(query(shape));
        device.add(shape, host.back(), queries.back());
      }
      const HostStates got = attend_all(*stream_, shape, device);
      for (std::size_t f = 0; f < host.size(); ++f)
        for (std::uint32_t h = 0; h < shape.heads; ++h) {
          SCOPED_TRACE("fold " + std::to_string(f) + " head " + std::to_string(h));
          const std::size_t at = f * shape.heads + h;
          State wanted = oracle(queries[f].data(), h, shape, {&host[f]});
          if (kind.residual) {
            EXPECT_EQ(got.sum[at], 0.0f);
            wanted.sum = wanted.sum > 0 ? 1 : 0;  // of max and acc alone, then
          }
          expect_near(wanted, got.max[at], kind.residual && wanted.sum > 0 ? 1.0f : got.sum[at],
                      got.acc.data() + at * shape.value_dim, 0);
        }
    }
}

// A fold's bits are its rows' by rank: masked in place or gathered, alone or among others.
TEST_F(AttendTest, BitsDependOnTheRowsAlone) {
  const HeadShape shape{3, 80, 48};
  for (const auto& picked : picks(random_)) {
    const Blocks masked = blocks(shape, picked, 2.0f);
    const std::vector<float> heads = query(shape);
    Blocks gathered = masked;
    gathered.records.clear();
    gathered.picked.clear();
    for (std::size_t b = 0; b < picked.size(); ++b)
      for (int r = 0; r < kBlockRows; ++r)
        if (picked[b] >> r & 1) {
          const std::byte* from = masked.row(b, r);
          gathered.records.insert(gathered.records.end(), from, from + masked.row_bytes);
        }
    const std::size_t rows = gathered.records.size() / masked.row_bytes;
    for (std::size_t first = 0; first < rows; first += kBlockRows)
      gathered.picked.push_back(
          first_rows(static_cast<int>(std::min<std::size_t>(rows - first, 64))));

    DeviceFolds alone, among;
    alone.add(shape, masked, heads);
    among.add(shape, blocks(shape, {kAllRows}, 0.0f), query(shape));
    among.add(shape, gathered, heads);
    const HostStates a = attend_all(*stream_, shape, alone);
    const HostStates b = attend_all(*stream_, shape, among);
    const std::size_t n = shape.heads, channels = n * shape.value_dim;
    EXPECT_EQ(a.max, std::vector<float>(b.max.begin() + n, b.max.end()));
    EXPECT_EQ(a.sum, std::vector<float>(b.sum.begin() + n, b.sum.end()));
    EXPECT_EQ(a.acc, std::vector<float>(b.acc.begin() + channels, b.acc.end()));
  }
}

TEST_F(AttendTest, ListsMergeInOrder) {
  const HeadShape shape{5, 64, 96};
  const std::vector<std::uint32_t> first = {0, 3, 3, 4, 7};  // the second list is empty
  DeviceFolds device;
  std::vector<Blocks> host;
  std::vector<std::vector<float>> queries;
  for (std::size_t list = 0; list + 1 < first.size(); ++list) {
    queries.push_back(query(shape));
    for (std::uint32_t f = first[list]; f < first[list + 1]; ++f) {
      host.push_back(blocks(shape, picks(random_)[f], 1.0f));
      device.add(shape, host.back(), queries[list]);
    }
  }
  const OnDevice<HeadFold> tasks(device.folds);
  const OnDevice<std::uint32_t> lists(first);
  const DeviceStates partial(host.size(), shape), merged(first.size() - 1, shape);
  ASSERT_TRUE(attend(*stream_, shape, tasks.span(), partial.view()).has_value());
  ASSERT_TRUE(merge(*stream_, shape, partial.view(), lists.span(), merged.view()).has_value());
  ASSERT_TRUE(stream_->wait().has_value());
  const HostStates got(merged);
  for (std::size_t list = 0; list + 1 < first.size(); ++list) {
    std::vector<const Blocks*> folds;
    for (std::uint32_t f = first[list]; f < first[list + 1]; ++f) folds.push_back(&host[f]);
    for (std::uint32_t h = 0; h < shape.heads; ++h) {
      SCOPED_TRACE("list " + std::to_string(list) + " head " + std::to_string(h));
      const std::size_t at = list * shape.heads + h;
      expect_near(oracle(queries[list].data(), h, shape, folds), got.max[at], got.sum[at],
                  got.acc.data() + at * shape.value_dim, static_cast<int>(folds.size()));
    }
  }
}

// The order is part of the answer: (a + b) + c, with the roundings that kernels/attend.h names.
TEST_F(AttendTest, MergeIsLeftToRight) {
  const HeadShape shape{1, 16, 16};
  const std::vector<float> max(3, 0.0f), sum = {1.0f, 0x1p-24f, 0x1p-24f};
  std::vector<float> acc;
  for (const float s : sum) acc.insert(acc.end(), shape.value_dim, s);
  const OnDevice<float> d_max(max), d_sum(sum), d_acc(acc);
  const OnDevice<std::uint32_t> first({0, 3});
  const DeviceStates merged(1, shape);
  ASSERT_TRUE(merge(*stream_, shape, {d_max.data(), d_sum.data(), d_acc.data()}, first.span(),
                    merged.view())
                  .has_value());
  ASSERT_TRUE(stream_->wait().has_value());
  // Right to left it would be 1 + 2^-23.
  EXPECT_EQ(HostStates(merged).sum, std::vector<float>{1.0f});
  EXPECT_EQ(HostStates(merged).acc, std::vector<float>(16, 1.0f));
}

// Hundreds of states, as of a long list that is read whole: against double, and to the bit the same
// wherever empty ones lie between them.
TEST_F(AttendTest, ManyStatesMergeAlikeWhateverIsEmptyBetweenThem) {
  for (const std::uint32_t dim : {16u, 96u, 128u, 256u}) {
    const HeadShape shape{3, 16, dim};
    constexpr std::size_t kStates = 611;
    std::normal_distribution<float> normal;
    std::uniform_real_distribution<float> weight(1.0f, 200.0f);
    std::vector<float> max, sum, acc;
    for (std::size_t i = 0; i < kStates * shape.heads; ++i) {
      max.push_back(4 * normal(random_));
      sum.push_back(weight(random_));
      for (std::uint32_t d = 0; d < dim; ++d) acc.push_back(sum.back() * normal(random_));
    }
    HostStates seen[2];
    for (const bool spread : {false, true}) {
      std::vector<float> all_max, all_sum, all_acc;
      const auto add = [&](std::size_t from, std::size_t states) {
        const std::size_t at = from * shape.heads, n = states * shape.heads;
        const auto take = [](const std::vector<float>& of, std::size_t first, std::size_t count,
                             std::vector<float>* to) {
          const auto begin = of.begin() + static_cast<std::ptrdiff_t>(first);
          to->insert(to->end(), begin, begin + static_cast<std::ptrdiff_t>(count));
        };
        take(max, at, n, &all_max);
        take(sum, at, n, &all_sum);
        take(acc, at * dim, n * dim, &all_acc);
      };
      const auto add_empty = [&](std::size_t states) {
        all_max.insert(all_max.end(), states * shape.heads,
                       -std::numeric_limits<float>::infinity());
        all_sum.insert(all_sum.end(), states * shape.heads, 0.0f);
        all_acc.insert(all_acc.end(), states * shape.heads * dim, 0.0f);
      };
      for (std::size_t i = 0; i < kStates; ++i) {
        if (spread && i % 7 == 3) add_empty(i % 90);
        add(i, 1);
      }
      const auto states = static_cast<std::uint32_t>(all_max.size() / shape.heads);
      const OnDevice<float> d_max(all_max), d_sum(all_sum), d_acc(all_acc);
      const OnDevice<std::uint32_t> first({0, states});
      const DeviceStates merged(1, shape);
      ASSERT_TRUE(merge(*stream_, shape, {d_max.data(), d_sum.data(), d_acc.data()}, first.span(),
                        merged.view()));
      ASSERT_TRUE(stream_->wait());
      seen[spread] = HostStates(merged);
    }
    EXPECT_EQ(seen[0].max, seen[1].max);
    EXPECT_EQ(seen[0].sum, seen[1].sum);
    EXPECT_EQ(seen[0].acc, seen[1].acc);
    for (std::uint32_t h = 0; h < shape.heads; ++h) {
      double top = -1e30, total = 0;
      for (std::size_t i = h; i < max.size(); i += shape.heads) top = std::max(top, double{max[i]});
      for (std::size_t i = h; i < max.size(); i += shape.heads)
        total += sum[i] * std::exp(max[i] - top);
      EXPECT_EQ(seen[0].max[h], top);
      // Each weight has two roundings of its power and is multiplied again with each larger
      // maximum, of which there are some ten; sums are in parts of 80 and fewer.
      EXPECT_NEAR(seen[0].sum[h], total, 120 * 0x1p-24 * total);
      for (std::uint32_t d = 0; d < dim; ++d) {
        double want = 0, size = 0;
        for (std::size_t i = h; i < max.size(); i += shape.heads) {
          const double one = acc[i * dim + d] * std::exp(max[i] - top);
          want += one;
          size += std::abs(one);
        }
        ASSERT_NEAR(seen[0].acc[h * dim + d], want, 120 * 0x1p-24 * size) << "channel " << d;
      }
    }
  }
}

TEST_F(AttendTest, NothingToDoIsOk) {
  const HeadShape shape{1, 16, 16};
  EXPECT_TRUE(attend(*stream_, shape, {}, {}).has_value());
  EXPECT_TRUE(merge(*stream_, shape, {}, {}, {}).has_value());
  EXPECT_TRUE(stream_->wait().has_value());
}

TEST_F(AttendTest, ShapesAreRefusedBeforeALaunch) {
  EXPECT_FALSE(attend(*stream_, {1, 24, 16}, {}, {}).has_value());
  EXPECT_FALSE(merge(*stream_, {1, 16, 0}, {}, {}, {}).has_value());
}

TEST(CanAttend, NamesTheLimit) {
  EXPECT_TRUE(can_attend({1, 16, 256}, {}).has_value());
  EXPECT_TRUE(can_attend({1024, 256, 16}, {}).has_value());
  for (const HeadShape shape :
       {HeadShape{0, 64, 64}, HeadShape{1025, 64, 64}, HeadShape{1, 0, 64}, HeadShape{1, 72, 64},
        HeadShape{1, 64, 8}, HeadShape{1, 64, 272}, HeadShape{1, 0xfffffff0u, 64}}) {
    const Status status = can_attend(shape, {});
    ASSERT_FALSE(status.has_value());
    EXPECT_EQ(status.error().code, ErrorCode::unsupported);
  }
  EXPECT_NE(can_attend({1, 72, 64}, {}).error().message.find("not 72 (keys)"), std::string::npos);
  Fold codes_of_keys, codes_of_values;
  codes_of_keys.key_format = codes_of_values.value_format = RowFormat::rotated2;
  for (const Fold& fold : {codes_of_keys, codes_of_values})
    EXPECT_EQ(can_attend({1, 64, 64}, fold).error().code, ErrorCode::unsupported);
  codes_of_values.scored = true;
  EXPECT_TRUE(can_attend({1, 64, 64}, codes_of_values).has_value());
}

}  // namespace
}  // namespace thermocline::cuda
