// A prefill's attention by a device against plain loops in double, with a bound that is computed
// from the number of roundings, not chosen; and what its bits depend on.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "kernels/cuda/prefill_queue.h"
#include "tests/unit/cuda/on_device.h"
#include "tests/unit/cuda/random_row.h"
#include "tests/unit/cuda/stream_test.h"

namespace thermocline::cuda {
namespace {

struct Formats {
  RowFormat key = RowFormat::f16, value = RowFormat::f16;
};

// Rows of all KV heads, one head's after the other: sealed ones, which every query sees, or raw
// ones at consecutive positions.
struct Rows {
  Formats formats;
  bool masked = false;
  std::uint32_t count = 0, first_slot = 0, first_position = 0;
  std::uint32_t key_bytes = 0, row_bytes = 0;
  std::vector<std::byte> records;  // [KV head][count]

  const std::byte* at(std::uint32_t head, std::uint32_t row) const {
    return records.data() + (std::size_t{head} * count + row) * row_bytes;
  }
  StretchFormat format() const {
    return {formats.key, formats.value, key_bytes, row_bytes, masked};
  }
};

// What a text's queries are to see, and from where.
struct Text {
  PrefillShape shape;
  std::vector<float> queries;  // [row][query head][key_dim]
  std::vector<Rows> rows;      // in the order in which they are read
};

class PrefillTest : public StreamTest {
 protected:
  float normal() { return std::normal_distribution<float>()(random_); }

  // One key in 16 is an outlier that takes most of the attention.
  Rows rows_of(const PrefillShape& shape, std::uint32_t count, Formats formats) {
    Rows made;
    made.formats = formats;
    made.count = count;
    made.key_bytes = row_bytes(formats.key, shape.head.key_dim);
    made.row_bytes = made.key_bytes + row_bytes(formats.value, shape.head.value_dim);
    for (std::uint32_t r = 0; r < shape.kv_heads * count; ++r) {
      add_random_row(formats.key, shape.head.key_dim, random_() % 16 == 0 ? 8.0f : 1.0f, &random_,
                     &made.records);
      add_random_row(formats.value, shape.head.value_dim, 1.0f, &random_, &made.records);
    }
    return made;
  }
  Rows raw_rows(const PrefillShape& shape, std::uint32_t count, std::uint32_t first_slot,
                std::uint32_t first_position) {
    Rows made = rows_of(shape, count, {});
    made.masked = true;
    made.first_slot = first_slot;
    made.first_position = first_position;
    return made;
  }
  // One query in 8 is far larger than f16 has numbers for, or far smaller.
  std::vector<float> queries_of(const PrefillShape& shape) {
    std::vector<float> queries(std::size_t{shape.rows} * shape.q_heads() * shape.head.key_dim);
    for (std::size_t at = 0; at < queries.size(); at += shape.head.key_dim) {
      const std::uint32_t kind = random_() % 16;
      const float scale = (kind == 0   ? 1e6f
                           : kind == 1 ? 1e-9f
                                       : 1.0f) /
                          std::sqrt(static_cast<float>(shape.head.key_dim));
      for (std::uint32_t i = 0; i < shape.head.key_dim; ++i) queries[at + i] = normal() * scale;
    }
    return queries;
  }
  // Sinks, segments of so many rows each, then raw rows up to the last query's own.
  Text text_of(PrefillShape shape, std::uint32_t sinks, std::vector<std::uint32_t> segments,
               std::uint32_t tail, Formats formats) {
    Text text;
    if (sinks > 0) text.rows.push_back(raw_rows(shape, sinks, 0, 0));
    std::uint32_t position = sinks;
    for (const std::uint32_t count : segments) {
      text.rows.push_back(rows_of(shape, count, formats));
      position += count;
    }
    shape.first_position = position + tail;
    text.rows.push_back(
        raw_rows(shape, tail + shape.rows, (position - sinks) % kBlockRows, position));
    text.shape = shape;
    text.queries = queries_of(shape);
    return text;
  }

  // How a text is attended: where its rows are, and how many are sent at a time.
  struct Way {
    bool sent = false;
    std::uint32_t rows = 0;  // of a head in a launch, in whole blocks; 0: all
    std::uint64_t piece = 0;
  };
  std::vector<float> attend(const Text& text, const Way& way) {
    std::uint32_t widest = 0;
    for (const Rows& rows : text.rows) widest = std::max(widest, rows.row_bytes);
    const auto made = PrefillQueue::create(0, PrefillQueue::bytes(text.shape, widest, way.piece));
    EXPECT_TRUE(made.has_value()) << made.error().message;
    PrefillQueue& queue = **made;
    expect(queue.begin(text.shape));
    send_queries(text, &queue);
    std::vector<std::unique_ptr<OnDevice<std::byte>>> there;
    for (const Rows& rows : text.rows) attend(text.shape, rows, way, &queue, &there);
    return results_of(text.shape, &queue);
  }
  static void expect(const Status& status) {
    ASSERT_TRUE(status.has_value()) << status.error().message;
  }

  static void send_queries(const Text& text, PrefillQueue* queue) {
    const PrefillShape& shape = text.shape;
    const std::uint32_t dim = shape.head.key_dim;
    for (std::uint32_t first = 0; first < shape.rows;) {
      const std::span<std::byte> outbox = *queue->outbox();
      const auto rows = static_cast<std::uint32_t>(
          std::min<std::uint64_t>(outbox.size() / shape.query_row_bytes(), shape.rows - first));
      for (std::uint32_t q = 0; q < rows * shape.q_heads(); ++q) {
        const float* query = text.queries.data() + (std::size_t{first} * shape.q_heads() + q) * dim;
        const float power = query_power({query, dim});
        std::byte* to = outbox.data() + std::size_t{q} * shape.query_bytes();
        for (std::uint32_t i = 0; i < dim; ++i) {
          const f16 half = to_f16(query[i] / power);
          std::memcpy(to + 2 * i, &half, sizeof half);
        }
        std::memcpy(to + 2 * dim, &power, sizeof power);
      }
      expect(queue->send_queries(first, rows));
      first += rows;
    }
  }

  static void attend(const PrefillShape& shape, const Rows& rows, const Way& way,
                     PrefillQueue* queue,
                     std::vector<std::unique_ptr<OnDevice<std::byte>>>* there) {
    if (!way.sent) there->push_back(std::make_unique<OnDevice<std::byte>>(rows.records));
    for (std::uint32_t first = 0; first < rows.count;) {
      const std::uint32_t end =
          way.rows == 0 ? rows.count
                        : std::min(rows.count, (rows.first_slot + first) / kBlockRows * kBlockRows +
                                                   way.rows - rows.first_slot);
      std::span<std::byte> outbox;
      if (way.sent) outbox = *queue->outbox();
      std::size_t sent = 0;
      std::vector<RowStretch> stretches;
      for (std::uint32_t h = 0; h < shape.kv_heads; ++h) {
        RowStretch stretch;
        stretch.head = h;
        stretch.count = end - first;
        stretch.first_slot = (rows.first_slot + first) % kBlockRows;
        stretch.first_position = rows.first_position + first;
        const std::size_t bytes = std::size_t{stretch.count} * rows.row_bytes;
        if (way.sent) {
          ASSERT_LE(sent + bytes, outbox.size());
          std::memcpy(outbox.data() + sent, rows.at(h, first), bytes);
          stretch.rows = outbox.data() + sent;
          sent += bytes;
        } else {
          stretch.rows = there->back()->data() + (rows.at(h, first) - rows.records.data());
        }
        stretches.push_back(stretch);
      }
      expect(queue->attend(rows.format(), stretches, sent));
      first = end;
    }
  }

  static std::vector<float> results_of(const PrefillShape& shape, PrefillQueue* queue) {
    std::vector<float> all;
    for (std::uint32_t first = 0; first < shape.rows;) {
      const auto some = queue->results(first);
      EXPECT_TRUE(some.has_value()) << some.error().message;
      if (!some) break;
      for (std::size_t r = 0; r < some->rows(); ++r)
        all.insert(all.end(), some->row(r), some->row(r) + some->cols());
      first += static_cast<std::uint32_t>(some->rows());
    }
    return all;
  }

  // The oracle's operands are rounded as the device rounds them, to the 11 bits of f16. What is
  // left are sums, of which each term is counted as two roundings of floats, since tensor cores may
  // cut off what others round; that a weight is off by what its score is; and its own rounding.
  static void expect_near(const Text& text, const std::vector<float>& got) {
    const PrefillShape& shape = text.shape;
    const std::uint32_t key_dim = shape.head.key_dim, value_dim = shape.head.value_dim;
    ASSERT_EQ(got.size(), std::size_t{shape.rows} * shape.q_heads() * value_dim);
    constexpr double kHalf = 0x1p-11, kUnit = 0x1p-24;
    std::vector<float> key(key_dim), value(value_dim);
    for (std::uint32_t h = 0; h < shape.kv_heads; ++h) {
      std::vector<std::vector<float>> keys, values;
      std::vector<std::int64_t> positions;  // -1: everyone's
      std::vector<double> largest(value_dim);
      for (const Rows& rows : text.rows) {
        for (std::uint32_t r = 0; r < rows.count; ++r) {
          read_row(rows.formats.key, rows.at(h, r), key_dim, key.data());
          read_row(rows.formats.value, rows.at(h, r) + rows.key_bytes, value_dim, value.data());
          for (float& x : key) x = to_float(to_f16(x));
          for (float& x : value) x = to_float(to_f16(x));
          for (std::uint32_t i = 0; i < value_dim; ++i)
            largest[i] = std::max(largest[i], std::abs(double{value[i]}));
          keys.push_back(key);
          values.push_back(value);
          positions.push_back(rows.masked ? std::int64_t{rows.first_position} + r : -1);
        }
      }
      for (std::uint32_t t = 0; t < shape.rows; ++t)
        for (std::uint32_t g = 0; g < shape.head.heads; ++g) {
          const std::size_t q = std::size_t{t} * shape.q_heads() + h * shape.head.heads + g;
          std::vector<float> query(text.queries.data() + q * key_dim,
                                   text.queries.data() + (q + 1) * key_dim);
          const float power = query_power(query);
          for (float& x : query) x = to_float(to_f16(x / power)) * power;
          const std::int64_t at = std::int64_t{shape.first_position} + t;
          std::vector<double> scores(keys.size(), -INFINITY);
          double max = -INFINITY, terms = 0, sum = 0;
          for (std::size_t r = 0; r < keys.size(); ++r) {
            if (positions[r] > at) continue;
            if (positions[r] >= 0 && shape.window > 0 && positions[r] + shape.window <= at)
              continue;
            double score = 0, of_row = 0;
            for (std::uint32_t i = 0; i < key_dim; ++i) {
              const double term = double{query[i]} * double{keys[r][i]};
              score += term;
              of_row += std::abs(term);
            }
            scores[r] = score;
            max = std::max(max, score);
            terms = std::max(terms, of_row);
          }
          std::vector<double> wanted(value_dim), magnitude(value_dim);
          for (std::size_t r = 0; r < keys.size(); ++r) {
            const double weight = std::isinf(scores[r]) ? 0 : std::exp(scores[r] - max);
            sum += weight;
            for (std::uint32_t i = 0; i < value_dim; ++i) {
              wanted[i] += weight * double{values[r][i]};
              magnitude[i] += weight * std::abs(double{values[r][i]});
            }
          }
          const double score_error = terms * 2 * (key_dim + 4) * kUnit;
          const double rows = static_cast<double>(keys.size());
          const double relative =
              2 * std::expm1(2 * score_error) + 2 * kHalf + 2 * (rows + 16) * kUnit;
          for (std::uint32_t i = 0; i < value_dim; ++i) {
            // Where scores are so large that their rounding decides, it is some mean of values.
            // A weight that f16 has no bits for is less than 2^-40 of the largest.
            double bound = relative * (magnitude[i] / sum) + rows * 0x1p-40 * largest[i];
            if (!(bound < 2 * largest[i])) bound = 2 * largest[i];
            ASSERT_NEAR(got[q * value_dim + i], sum > 0 ? wanted[i] / sum : 0, sum > 0 ? bound : 0)
                << "head " << h << " row " << t << " of group " << g << " channel " << i;
          }
        }
    }
  }

  std::mt19937 random_{20240612};
};

PrefillShape shape_of(std::uint32_t kv_heads, HeadShape head, std::uint32_t rows,
                      std::uint32_t window = 0) {
  PrefillShape shape;
  shape.head = head;
  shape.kv_heads = kv_heads;
  shape.rows = rows;
  shape.window = window;
  return shape;
}

std::string name_of(const PrefillShape& shape) {
  return std::to_string(shape.kv_heads) + " x " + std::to_string(shape.head.heads) + " heads, " +
         std::to_string(shape.head.key_dim) + " and " + std::to_string(shape.head.value_dim) +
         " channels, " + std::to_string(shape.rows) + " rows, window " +
         std::to_string(shape.window);
}

TEST_F(PrefillTest, MatchesTheOracle) {
  const PrefillShape shapes[] = {shape_of(2, {3, 64, 64}, 50),   shape_of(1, {1, 128, 128}, 130),
                                 shape_of(3, {4, 80, 96}, 17),   shape_of(1, {5, 112, 16}, 1),
                                 shape_of(1, {2, 256, 256}, 40), shape_of(1, {70, 16, 48}, 3),
                                 shape_of(1, {2, 64, 240}, 33),  shape_of(1, {8, 192, 64}, 9)};
  for (const PrefillShape& shape : shapes) {
    SCOPED_TRACE(name_of(shape));
    const Text text = text_of(shape, 5, {192, 70}, 37, {});
    expect_near(text, attend(text, {}));
  }
}

TEST_F(PrefillTest, CodedRowsMatchTheOracle) {
  using enum RowFormat;
  const Formats formats[] = {{int8, int8}, {int8, f16},  {f16, int8}, {q8_0, q8_0},
                             {q8_0, f16},  {q8_0, int8}, {f16, q8_0}, {int8, q8_0}};
  for (const Formats& of : formats) {
    SCOPED_TRACE(std::to_string(static_cast<int>(of.key)) + ", " +
                 std::to_string(static_cast<int>(of.value)));
    for (const std::uint32_t dim : {32u, 160u}) {
      const Text text = text_of(shape_of(2, {2, dim, dim}, 20), 4, {130}, 3, of);
      expect_near(text, attend(text, {}));
    }
  }
}

// Windows that begin in the middle of a block, before all rows and behind some of them.
TEST_F(PrefillTest, SeesAWindow) {
  for (const std::uint32_t window : {1u, 30u, 64u, 100u, 5000u}) {
    SCOPED_TRACE(window);
    const Text text = text_of(shape_of(2, {2, 32, 32}, 150, window), 0, {}, 77, {});
    expect_near(text, attend(text, {}));
    expect_near(text, attend(text, {.sent = true, .rows = 64}));
  }
  // Of a block nothing but its last row.
  const Text last = text_of(shape_of(1, {2, 32, 32}, 1, 38), 0, {}, 100, {});
  expect_near(last, attend(last, {}));
}

// A query that is the first of all rows sees one, and where there are none there is nothing.
TEST_F(PrefillTest, SeesLittleOrNothing) {
  const Text first = text_of(shape_of(1, {2, 32, 32}, 70), 0, {}, 0, {});
  expect_near(first, attend(first, {}));
  // Of a block nothing but its first row.
  const Text of_block = text_of(shape_of(1, {2, 32, 32}, 1), 0, {}, 64, {});
  expect_near(of_block, attend(of_block, {}));
  Text none = first;
  none.rows.clear();
  expect_near(none, attend(none, {}));
  none.rows.push_back(raw_rows(none.shape, 10, 0, 500));  // all behind the last query
  expect_near(none, attend(none, {}));
}

// Whether they lie there or are sent, and how many at a time.
TEST_F(PrefillTest, BitsDependOnNoLaunch) {
  for (const PrefillShape& shape :
       {shape_of(2, {3, 64, 64}, 90), shape_of(1, {2, 256, 144}, 35, 100)}) {
    SCOPED_TRACE(name_of(shape));
    const Text text = text_of(
        shape, shape.window == 0 ? 4 : 0,
        shape.window == 0 ? std::vector<std::uint32_t>{256, 70} : std::vector<std::uint32_t>{}, 110,
        {});
    const std::vector<float> wanted = attend(text, {});
    EXPECT_EQ(attend(text, {.rows = 64}), wanted);
    EXPECT_EQ(attend(text, {.rows = 192}), wanted);
    EXPECT_EQ(attend(text, {.sent = true, .rows = 64}), wanted);
    EXPECT_EQ(attend(text, {.sent = true, .rows = 256, .piece = 1 << 20}), wanted);
  }
}

// Nor on which other queries there are: a text that is read in two goes has the bits of one that is
// read at once, as long as rows lie in the same slots.
TEST_F(PrefillTest, BitsDependOnNoOtherQuery) {
  const Text text = text_of(shape_of(2, {3, 32, 32}, 120), 4, {128}, 30, {});
  const std::vector<float> wanted = attend(text, {});
  const std::size_t row = text.shape.q_heads() * text.shape.head.value_dim;
  const std::size_t queries = text.shape.q_heads() * text.shape.head.key_dim;
  for (const std::uint32_t first : {1u, 21u, 64u, 119u}) {
    for (const bool later : {false, true}) {
      SCOPED_TRACE(std::to_string(first) + (later ? ", later" : ", before"));
      const std::uint32_t from = later ? first : 0, to = later ? 120 : first;
      Text part = text;
      part.shape.rows = to - from;
      part.shape.first_position += from;
      part.queries.assign(text.queries.begin() + static_cast<std::ptrdiff_t>(from * queries),
                          text.queries.begin() + static_cast<std::ptrdiff_t>(to * queries));
      const std::vector<float> got = attend(part, {.rows = 64});
      const std::vector<float> same(wanted.begin() + static_cast<std::ptrdiff_t>(from * row),
                                    wanted.begin() + static_cast<std::ptrdiff_t>(to * row));
      EXPECT_EQ(got, same);
    }
  }
}

// Of queries that were given up nothing is left.
TEST_F(PrefillTest, BeginsAnew) {
  const Text text = text_of(shape_of(2, {2, 32, 32}, 40), 4, {64}, 10, {});
  const std::vector<float> wanted = attend(text, {});
  const auto made =
      PrefillQueue::create(0, PrefillQueue::bytes(text.shape, text.rows[0].row_bytes, 0));
  ASSERT_TRUE(made.has_value()) << made.error().message;
  std::vector<std::unique_ptr<OnDevice<std::byte>>> there;
  expect((*made)->begin(text.shape));
  send_queries(text, made->get());
  attend(text.shape, text.rows[0], {.sent = true}, made->get(), &there);
  expect((*made)->begin(text.shape));
  send_queries(text, made->get());
  for (const Rows& rows : text.rows)
    attend(text.shape, rows, {.sent = true, .rows = 64}, made->get(), &there);
  EXPECT_EQ(results_of(text.shape, made->get()), wanted);
}

}  // namespace
}  // namespace thermocline::cuda
