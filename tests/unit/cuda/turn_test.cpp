// The two ends of a layer's attention against plain loops in double.
#include "kernels/cuda/turn.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "kernels/base/half.h"
#include "tests/unit/cuda/on_device.h"
#include "tests/unit/cuda/stream_test.h"

namespace thermocline::cuda {
namespace {

class TurnTest : public StreamTest {
 protected:
  std::vector<float> normal(std::size_t size, float times = 1.0f) {
    std::normal_distribution<float> normal;
    std::vector<float> x(size);
    for (float& v : x) v = times * normal(random_);
    return x;
  }
  std::mt19937 random_{5};
};

// Of channel d, with the rotation in double.
double turned(const float* x, const float* cosine, const float* sine, std::uint32_t pairs,
              bool halves, std::uint32_t d) {
  if (d >= 2 * pairs) return x[d];
  const std::uint32_t pair = halves ? d % pairs : d / 2;
  const bool second = halves ? d >= pairs : d % 2 == 1;
  const double a = x[halves ? pair : 2 * pair], b = x[halves ? pair + pairs : 2 * pair + 1];
  return second ? a * sine[pair] + b * cosine[pair] : a * cosine[pair] - b * sine[pair];
}

TEST_F(TurnTest, RotatesScalesAndKeeps) {
  struct Case {
    HeadShape head;
    std::uint32_t kv_heads, rows, pairs;
    bool halves, balanced;
  };
  for (const Case& c :
       {Case{{4, 64, 64}, 2, 3, 32, true, false}, Case{{1, 32, 48}, 1, 1, 8, false, false},
        Case{{3, 48, 16}, 3, 5, 20, true, true}, Case{{8, 256, 256}, 1, 2, 128, false, true},
        Case{{2, 64, 64}, 2, 2, 0, true, false}}) {
    SCOPED_TRACE(std::to_string(c.head.key_dim) + " channels, " + std::to_string(c.pairs) +
                 " pairs");
    const std::uint32_t q_heads = c.kv_heads * c.head.heads, key_dim = c.head.key_dim,
                        value_dim = c.head.value_dim;
    const std::size_t record = 2 * (key_dim + value_dim);
    constexpr std::uint32_t kCapacity = 7;  // rows of a tail
    const auto q = normal(std::size_t{c.rows} * q_heads * key_dim),
               k = normal(std::size_t{c.rows} * c.kv_heads * key_dim, c.balanced ? 1e4f : 1.0f),
               v = normal(std::size_t{c.rows} * c.kv_heads * value_dim);
    std::vector<float> cosine, sine, key_by, query_by;
    for (std::uint32_t i = 0; i < c.rows * c.pairs; ++i) {
      const double angle = 0.37 * (i + 1);
      cosine.push_back(static_cast<float>(std::cos(angle)));
      sine.push_back(static_cast<float>(std::sin(angle)));
    }
    for (std::uint32_t d = 0; d < key_dim; ++d) {
      key_by.push_back(std::ldexp(1.0f, static_cast<int>(d / 4 % 8) - 4));
      query_by.push_back(1.0f / key_by.back());
    }
    const OnDevice<float> there_q(q), there_k(k), there_v(v), there_cosine(cosine),
        there_sine(sine), there_key_by(key_by), there_query_by(query_by),
        query(std::vector<float>(q.size(), -1.0f));
    const OnDevice<std::byte> tail(std::vector<std::byte>(c.kv_heads * kCapacity * record)),
        records(std::vector<std::byte>(c.rows * c.kv_heads * record));
    std::vector<TurnedRow> rows;
    for (std::uint32_t r = 0; r < c.rows; ++r)  // the last one first
      rows.push_back({there_cosine.data() + r * c.pairs, there_sine.data() + r * c.pairs,
                      tail.data() + (c.rows - 1 - r) * record, kCapacity * record});
    const OnDevice<TurnedRow> there_rows(rows);
    TurnedLayer layer;
    layer.head = c.head;
    layer.kv_heads = c.kv_heads;
    layer.rows = c.rows;
    layer.pairs = c.pairs;
    layer.halves = c.halves ? 1 : 0;
    layer.scale = 0.25f;
    if (c.balanced) {
      layer.key_by = there_key_by.data();
      layer.query_by = there_query_by.data();
    }
    layer.q = there_q.data();
    layer.k = there_k.data();
    layer.v = there_v.data();
    layer.row = there_rows.data();
    layer.query = query.data();
    layer.records = records.data();
    ASSERT_TRUE(turn(*stream_, layer));
    ASSERT_TRUE(stream_->wait());

    const auto got_query = query.copy();
    const auto kept = tail.copy(), back = records.copy();
    for (std::uint32_t r = 0; r < c.rows; ++r) {
      const float* const cos_r = cosine.data() + r * c.pairs;
      const float* const sin_r = sine.data() + r * c.pairs;
      for (std::uint32_t h = 0; h < q_heads; ++h)
        for (std::uint32_t d = 0; d < key_dim; ++d) {
          const std::size_t at = (std::size_t{r} * q_heads + h) * key_dim;
          const double by = (c.balanced ? query_by[d] : 1.0f) * 0.25;
          const double want = by * turned(q.data() + at, cos_r, sin_r, c.pairs, c.halves, d);
          // Three roundings of what a rotation adds up.
          ASSERT_NEAR(got_query[at + d], want, 3 * std::ldexp(6.0, -24) * by * 4)
              << "row " << r << ", head " << h << ", channel " << d;
        }
      for (std::uint32_t h = 0; h < c.kv_heads; ++h) {
        const std::size_t head = std::size_t{r} * c.kv_heads + h;
        const std::byte* const one = back.data() + head * record;
        const std::byte* const other =
            kept.data() + h * kCapacity * record + (c.rows - 1 - r) * record;
        ASSERT_TRUE(std::equal(one, one + record, other)) << "row " << r << ", head " << h;
        const f16* const halves = reinterpret_cast<const f16*>(one);
        for (std::uint32_t d = 0; d < key_dim; ++d) {
          const double by = c.balanced ? key_by[d] : 1.0f;
          const double want =
              std::clamp(by * turned(k.data() + head * key_dim, cos_r, sin_r, c.pairs, c.halves, d),
                         -65504.0, 65504.0);
          ASSERT_NEAR(to_float(halves[d]), want, std::ldexp(std::abs(want), -11) * 1.01 + 1e-5)
              << "row " << r << ", KV head " << h << ", channel " << d;
        }
        for (std::uint32_t d = 0; d < value_dim; ++d)
          ASSERT_EQ(halves[key_dim + d].bits, to_f16(v[head * value_dim + d]).bits);
      }
    }
  }
}

TEST_F(TurnTest, MixesWhatWasAttended) {
  constexpr float kNothing = -std::numeric_limits<float>::infinity();
  constexpr std::uint32_t kLists = 5;
  const HeadShape shape{2, 32, 48};
  // The first states' maxima: list 1 has attended nothing yet, list 4 nothing at all.
  std::vector<float> max1 = {1, -2, kNothing, kNothing, 80, 3, 0, 0, kNothing, kNothing};
  std::vector<float> max2 = {4, -90, 1, 2, kNothing, kNothing};
  std::vector<float> sum1(10), sum2(6);
  for (std::size_t i = 0; i < sum1.size(); ++i)
    sum1[i] = max1[i] == kNothing ? 0 : 1.0f + 0.3f * static_cast<float>(i);
  for (std::size_t i = 0; i < sum2.size(); ++i)
    sum2[i] = max2[i] == kNothing ? 0 : 2.0f + 0.7f * static_cast<float>(i);
  std::vector<float> acc1 = normal(10 * 48), acc2 = normal(6 * 48);
  for (std::size_t i = 0; i < 10; ++i)
    if (max1[i] == kNothing)
      std::fill_n(acc1.begin() + static_cast<std::ptrdiff_t>(i * 48), 48, 0.0f);
  const std::vector<std::uint32_t> chosen = {0, 1, kNoState, 2, kNoState};
  const OnDevice<float> m1(max1), m2(max2), s1(sum1), s2(sum2), a1(acc1), a2(acc2),
      out(std::vector<float>(kLists * 2 * 48, -1.0f));
  const OnDevice<std::uint32_t> of(chosen);
  ASSERT_TRUE(mix(*stream_, shape, kLists, {m1.data(), s1.data(), a1.data()},
                  {m2.data(), s2.data(), a2.data()}, of.data(), out.data()));
  ASSERT_TRUE(stream_->wait());
  const auto got = out.copy();
  for (std::uint32_t list = 0; list < kLists; ++list)
    for (std::uint32_t h = 0; h < 2; ++h) {
      const std::size_t at = list * 2 + h,
                        from = chosen[list] == kNoState ? 0 : chosen[list] * 2 + h;
      const bool has = chosen[list] != kNoState;
      const double top = std::max(max1[at], has ? max2[from] : kNothing);
      const auto weight = [&](float max) { return max == kNothing ? 0.0 : std::exp(max - top); };
      const double w1 = weight(max1[at]), w2 = has ? weight(max2[from]) : 0.0;
      const double sum = w1 * sum1[at] + w2 * (has ? sum2[from] : 0);
      for (std::uint32_t d = 0; d < 48; ++d) {
        const double acc = w1 * acc1[at * 48 + d] + (has ? w2 * acc2[from * 48 + d] : 0.0);
        const double want = sum > 0 ? acc / sum : 0.0;
        ASSERT_NEAR(got[at * 48 + d], want, 8 * std::ldexp(1.0, -24) * (std::abs(want) + 4))
            << "list " << list << ", head " << h;
      }
    }
}

}  // namespace
}  // namespace thermocline::cuda
