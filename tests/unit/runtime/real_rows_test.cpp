// What every codec makes of keys and values of real models (tests/golden/make_rows.py), sinks
// apart: read back within the bound that its file states, each bound computed here from the rows
// and, of codecs that ask for them, the queries' squares.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>
#include <string>
#include <vector>

#include "kernels/cpu/table.h"
#include "kernels/format/row_allotted.h"
#include "kernels/format/row_nuq4.h"
#include "kernels/hadamard.h"
#include "runtime/method.h"
#include "tiers/codec/codec.h"
#include "tiers/codec/plain_row.h"
#include "tiers/codec/raw.h"

namespace thermocline {
namespace {

constexpr double kHalf = 0x1.0p-11;  // of an f16, what rounding to one moves it by at most
constexpr std::uint32_t kGroup = 32;

// Rows of one side, of all KV heads.
struct RealRows {
  std::string name;
  Side side = Side::keys;
  std::uint32_t heads = 0, rows = 0, dim = 0;
  std::vector<std::byte> records;
  RawRows view;
  Rotation rotation;
  std::vector<float> query_squares;  // [heads][dim]; of values none

  const Rotation* turn() const { return side == Side::keys ? &rotation : nullptr; }
  std::vector<float> row(std::uint32_t head, std::uint32_t r) const {
    const f16* from = view.side(side, head, r);
    std::vector<float> out(dim);
    std::transform(from, from + dim, out.begin(), [](f16 x) { return to_float(x); });
    return out;
  }
  // Before its rotary embedding.
  std::vector<float> plain(std::uint32_t head, std::uint32_t r) const {
    std::vector<float> out(dim);
    plain_row(view.side(side, head, r), dim, turn(), view.first_position + r, out.data());
    return out;
  }
};

std::vector<RealRows> real_rows() {
  const std::string folder = std::string(THERMOCLINE_SOURCE_DIR) + "/tests/golden/rows/";
  std::vector<RealRows> all;
  const nlohmann::json about = nlohmann::json::parse(std::ifstream(folder + "about.json"));
  for (const auto& [file, of] : about.items()) {
    RealRows rows;
    rows.heads = of.at("heads");
    rows.rows = of.at("rows");
    rows.dim = of.at("size");
    const std::size_t row_bytes = rows.dim * sizeof(f16), count = rows.heads * rows.rows;
    std::vector<char> bytes(2 * count * row_bytes);
    std::vector<float> squares(std::size_t{rows.heads} * rows.dim);
    std::ifstream from(folder + file, std::ios::binary);
    from.read(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    from.read(reinterpret_cast<char*>(squares.data()),
              static_cast<std::streamsize>(squares.size() * sizeof(float)));
    EXPECT_TRUE(from) << file;
    rows.records.resize(bytes.size());
    for (std::size_t r = 0; r < count; ++r)  // keys, then values; to records of both
      for (const std::size_t value : {0, 1})
        std::memcpy(rows.records.data() + (2 * r + value) * row_bytes,
                    bytes.data() + (value * count + r) * row_bytes, row_bytes);
    std::vector<float> frequency(rows.dim / 2);
    for (std::size_t i = 0; i < frequency.size(); ++i)
      frequency[i] = static_cast<float>(
          std::pow(double{of.at("rope_base")}, -2.0 * static_cast<double>(i) / rows.dim));
    rows.rotation = Rotation::of(
        frequency, of.at("rope_pairs") == "halves" ? RopePairs::halves : RopePairs::neighbours, 1);
    for (const Side side : kSides) {
      RealRows& made = all.emplace_back(rows);
      made.side = side;
      if (side == Side::keys) made.query_squares = squares;
      made.name = file + (side == Side::keys ? ", keys" : ", values");
      made.view = {raw_layout(rows.dim, rows.dim),
                   rows.heads,
                   of.at("first_position"),
                   rows.rows,
                   made.records.data(),
                   rows.rows * 2 * row_bytes};
    }
  }
  for (RealRows& rows : all) rows.view.data = rows.records.data();  // they have moved
  return all;
}

using Row = std::vector<float>;

// Rows through a codec and back, and what the codec made of them all.
struct RoundTrip {
  const RealRows& rows;
  Buffer common, own;
  FitFacts facts;
  std::vector<std::vector<Row>> got;  // [head][row]

  RoundTrip(const RealRows& from, const Codec& codec, std::span<const float> queries) : rows(from) {
    const FitShape shape{rows.heads, rows.dim};
    if (const Fitter* fitter = codec.fitter()) {
      Fitting fitting{rows.side, rows.view};
      fitting.rotation = rows.turn();
      if (fitter->asks_for_queries()) fitting.query_squares = queries;
      Result<Fit> fit = fitter->fit(fitting, Workers(2));
      EXPECT_TRUE(fit) << (fit ? "" : fit.error().message);
      common = std::move(fit->common);
      own = std::move(fit->own);
      EXPECT_LE(common.size() + own.size(), fitter->bytes(shape, rows.rows, 0));
      facts = fitter->facts(shape, rows.rows, common.bytes(), own.bytes());
    }
    std::vector<std::byte> record(row_bytes(codec.format(), rows.dim));
    std::vector<f16> back(rows.dim);
    got.resize(rows.heads);
    for (std::uint32_t h = 0; h < rows.heads; ++h)
      for (std::uint32_t r = 0; r < rows.rows; ++r) {
        const SideFit fit = fit_of(h);
        codec.write(rows.view.side(rows.side, h, r), rows.dim, fit, r, record.data());
        codec.read(record.data(), rows.dim, fit, r, back.data());
        Row& out = got[h].emplace_back();
        for (const f16 x : back) out.push_back(to_float(x));
      }
  }
  SideFit fit_of(std::uint32_t head) const {
    return {common.size() > 0 ? common.data() : nullptr,
            own.size() > 0 ? own.data() : nullptr,
            rows.heads,
            rows.rows,
            head,
            rows.view.first_position,
            nullptr,
            rows.turn()};
  }
  Row got_plain(std::uint32_t head, std::uint32_t r) const {
    std::vector<f16> half;
    for (const float x : got[head][r]) half.push_back(to_f16(x));
    Row out(rows.dim);
    plain_row(half.data(), rows.dim, rows.turn(), rows.view.first_position + r, out.data());
    return out;
  }
  // Of all rows, the share of the squares that is lost.
  double lost() const { return lost(std::vector<float>(std::size_t{rows.heads} * rows.dim, 1.0f)); }
  // The same with each channel's by the weight that it has in its head: [heads][dim].
  double lost(const std::vector<float>& weight) const {
    double missed = 0, all = 0;
    for (std::uint32_t h = 0; h < rows.heads; ++h)
      for (std::uint32_t r = 0; r < rows.rows; ++r) {
        const Row was = rows.row(h, r);
        for (std::uint32_t i = 0; i < rows.dim; ++i) {
          const double by = weight[std::size_t{h} * rows.dim + i];
          missed += by * std::pow(double{got[h][r][i]} - was[i], 2);
          all += by * std::pow(double{was[i]}, 2);
        }
      }
    return missed / all;
  }
};

double length(const Row& row) {
  return std::sqrt(std::inner_product(row.begin(), row.end(), row.begin(), 0.0));
}
double distance(const Row& one, const Row& other) {
  double sum = 0;
  for (std::size_t i = 0; i < one.size(); ++i) sum += std::pow(double{one[i]} - other[i], 2);
  return std::sqrt(sum);
}

// Least and greatest of `count` values from `first` on, `stride` apart.
struct Range {
  double least = 1e30, greatest = -1e30;
  void add(double x) { least = std::min(least, x), greatest = std::max(greatest, x); }
  double width() const { return greatest - least; }
  double largest() const { return std::max(std::abs(least), std::abs(greatest)); }
};

using Bound = std::function<void(const RoundTrip&)>;

// Every channel of a row within `of(its group of so many channels, its value)`.
Bound each_channel(std::uint32_t group, std::function<double(const Range&, double)> of) {
  return [=](const RoundTrip& trip) {
    for (std::uint32_t h = 0; h < trip.rows.heads; ++h)
      for (std::uint32_t r = 0; r < trip.rows.rows; ++r) {
        const Row was = trip.rows.row(h, r);
        for (std::uint32_t first = 0; first < trip.rows.dim; first += group) {
          const std::uint32_t end = std::min(first + group, trip.rows.dim);
          Range range;
          for (std::uint32_t i = first; i < end; ++i) range.add(was[i]);
          for (std::uint32_t i = first; i < end; ++i)
            ASSERT_LE(std::abs(double{trip.got[h][r][i]} - was[i]), of(range, was[i]))
                << "head " << h << ", row " << r << ", channel " << i;
        }
      }
  };
}

// tiers/codec/groups.h; what is read is an f16.
Bound of_largest(double levels, double steps) {
  return each_channel(kGroup, [=](const Range& range, double x) {
    return range.largest() * (steps / levels + kHalf + 1e-6) + std::abs(x) * 2 * kHalf +
           levels * 0x1.0p-25;
  });
}
Bound of_range(double levels) {
  return each_channel(kGroup, [=](const Range& range, double x) {
    return range.width() * (0.5 / levels + kHalf + 1e-6) + std::abs(x) * 2 * kHalf +
           range.largest() * kHalf + levels * 0x1.0p-25;
  });
}

// tiers/codec/channels.h: half a step of the range of 32 rows.
Bound by_channel(double levels) {
  return [=](const RoundTrip& trip) {
    for (std::uint32_t h = 0; h < trip.rows.heads; ++h)
      for (std::uint32_t g = 0; g < trip.rows.rows; g += kGroup)
        for (std::uint32_t i = 0; i < trip.rows.dim; ++i) {
          const std::uint32_t end = std::min(g + kGroup, trip.rows.rows);
          Range range;
          for (std::uint32_t r = g; r < end; ++r) range.add(trip.rows.row(h, r)[i]);
          const double scale = range.width() / levels * (1 + 2 * kHalf) + 0x1.0p-24;
          for (std::uint32_t r = g; r < end; ++r)
            ASSERT_LE(std::abs(double{trip.got[h][r][i]} - trip.rows.row(h, r)[i]),
                      scale / 2 * (1 + 4 * kHalf) + range.largest() * 2 * kHalf)
                << "head " << h << ", row " << r << ", channel " << i;
        }
  };
}

// tiers/codec/hadamard.h: no group's range is wider than its row's.
Bound rotated(double levels) {
  return [=](const RoundTrip& trip) {
    for (std::uint32_t h = 0; h < trip.rows.heads; ++h)
      for (std::uint32_t r = 0; r < trip.rows.rows; ++r) {
        Row turned = trip.rows.plain(h, r);
        hadamard(turned.data(), trip.rows.dim);
        Range range;
        for (const float x : turned) range.add(x);
        const Row was = trip.rows.row(h, r);
        ASSERT_LE(distance(trip.got[h][r], was),
                  std::sqrt(trip.rows.dim) * range.width() / levels / 2 + length(was) * 4 * kHalf)
            << "head " << h << ", row " << r;
      }
  };
}

// tiers/codec/rotated.h: all channels together within half a step each, of the largest.
Bound of_rotated_largest(double steps) {
  return [=](const RoundTrip& trip) {
    for (std::uint32_t h = 0; h < trip.rows.heads; ++h)
      for (std::uint32_t r = 0; r < trip.rows.rows; ++r) {
        const Row was = trip.rows.row(h, r);
        Row turned = was;
        hadamard(turned.data(), trip.rows.dim);
        Range range;
        for (const float x : turned) range.add(x);
        ASSERT_LE(distance(trip.got[h][r], was),
                  std::sqrt(trip.rows.dim) * range.largest() / steps / 2 + length(was) * 4 * kHalf)
            << "head " << h << ", row " << r;
      }
  };
}

// tiers/codec/allotted.h: of the channels that have bits.
void allotted(const RoundTrip& trip) {
  for (std::uint32_t h = 0; h < trip.rows.heads; ++h) {
    const Allotted of(trip.fit_of(h), trip.rows.dim);
    std::vector<double> gap(trip.rows.dim), highest(trip.rows.dim);
    for (std::uint32_t i = 0; i < trip.rows.dim; ++i) {
      const std::uint32_t width = of.width(i);
      double before = 0;
      for (std::uint32_t code = 0; code < 1u << width && width > 0; ++code) {
        const double u = (2.0 * code + 1) / (1u << width) - 1;
        highest[i] = u * (Allotted::kLinear[width] + Allotted::kCubic[width] * u * u);
        if (code > 0) gap[i] = std::max(gap[i], highest[i] - before);
        before = highest[i];
      }
    }
    for (std::uint32_t r = 0; r < trip.rows.rows; ++r) {
      const Row was = trip.rows.plain(h, r), got = trip.got_plain(h, r);
      double scale = 0, missed = 0, bound = 0;
      for (std::uint32_t i = 0; i < trip.rows.dim; ++i) {
        const double off = std::abs(double{was[of.channel[i]]} - to_float(of.mean[i]));
        if (highest[i] > 0) scale = std::max(scale, off / to_float(of.spread[i]) / highest[i]);
      }
      for (std::uint32_t i = 0; i < trip.rows.dim; ++i) {
        if (highest[i] == 0) continue;
        missed += std::pow(double{got[of.channel[i]]} - was[of.channel[i]], 2);
        bound += std::pow(gap[i] / 2 * to_float(of.spread[i]) * scale, 2);
      }
      ASSERT_LE(std::sqrt(missed), std::sqrt(bound) + length(was) * 4 * kHalf)
          << "head " << h << ", row " << r;
    }
  }
}

// tiers/codec/nuq.h: within half of its range times the distance to the nearest level; and all
// together nearer than 15 equal steps of the ranges would be, were values anywhere between them.
void nearest_level(const RoundTrip& trip) {
  const bool by_row = RowNuq4::header(trip.fit_of(0)).by == RowNuq4::kByRow;
  const float* level = RowNuq4::header(trip.fit_of(0)).level;
  double gap = std::max(level[0] + 1.0, 1.0 - level[RowNuq4::kLevels - 1]);
  for (std::uint32_t k = 1; k < RowNuq4::kLevels; ++k)
    gap = std::max(gap, (double{level[k]} - level[k - 1]) / 2);
  double missed = 0, equal = 0;
  for (std::uint32_t h = 0; h < trip.rows.heads; ++h) {
    std::vector<Range> of_channel(trip.rows.dim), of_row(trip.rows.rows);
    for (std::uint32_t r = 0; r < trip.rows.rows; ++r) {
      const Row was = trip.rows.plain(h, r);
      for (std::uint32_t i = 0; i < trip.rows.dim; ++i)
        of_channel[i].add(was[i]), of_row[r].add(was[i]);
    }
    for (std::uint32_t r = 0; r < trip.rows.rows; ++r) {
      const Row was = trip.rows.plain(h, r), got = trip.got_plain(h, r);
      const double rounding = length(was) * 4 * kHalf;
      for (std::uint32_t i = 0; i < trip.rows.dim; ++i) {
        const Range& range = by_row ? of_row[r] : of_channel[i];
        const double off = std::abs(double{got[i]} - was[i]);
        ASSERT_LE(off, gap * range.width() / 2 * (1 + 4 * kHalf) + rounding)
            << "head " << h << ", row " << r << ", channel " << i;
        missed += off * off;
        equal += std::pow(range.width() / 15, 2) / 12;
      }
    }
  }
  EXPECT_LT(missed, equal);
}

// tiers/codec/lowrank.h: what the basis does not capture.
void uncaptured(const RoundTrip& trip) {
  EXPECT_GT(trip.facts.captured, 0.5);
  EXPECT_NEAR(trip.lost(), 1.0 - trip.facts.captured, 1e-4);
}

// tiers/codec/pruned.h: the same channels of every row, and they are the largest, by what queries
// ask for.
Bound largest_channels(std::uint32_t eighths) {
  return [=](const RoundTrip& trip) {
    const std::uint32_t dim = trip.rows.dim, kept = dim / 8 * eighths;
    for (std::uint32_t h = 0; h < trip.rows.heads; ++h) {
      std::vector<double> squares(dim);
      for (std::uint32_t r = 0; r < trip.rows.rows; ++r)
        for (std::uint32_t i = 0; i < dim; ++i)
          squares[i] += std::pow(double{trip.rows.row(h, r)[i]}, 2);
      for (std::uint32_t i = 0; i < dim && !trip.rows.query_squares.empty(); ++i)
        squares[i] *= double{trip.rows.query_squares[std::size_t{h} * dim + i]};
      std::vector<double> sorted = squares;
      std::sort(sorted.rbegin(), sorted.rend());
      for (std::uint32_t r = 0; r < trip.rows.rows; ++r)
        for (std::uint32_t i = 0; i < dim; ++i)
          ASSERT_EQ(trip.got[h][r][i], squares[i] >= sorted[kept - 1] ? trip.rows.row(h, r)[i] : 0)
              << "head " << h << ", row " << r << ", channel " << i;
    }
  };
}

const std::map<std::string, Bound>& bounds() {
  static const std::map<std::string, Bound> all = {
      {"raw", each_channel(kGroup, [](const Range&, double) { return 0.0; })},
      {"bf16", each_channel(kGroup, [](const Range&, double x) { return std::abs(x) * 0x1.0p-8; })},
      {"int8", each_channel(1024,
                            [](const Range& range, double x) {
                              return range.largest() / 127 / 2 * (1 + 2 * kHalf) +
                                     std::abs(x) * 2 * kHalf + 0x1.0p-24;
                            })},
      {"q8_0", of_largest(127, 0.5)},
      {"q4_0", of_largest(8, 1.0)},
      {"q5_0", of_largest(16, 1.0)},
      {"iq4_nl", of_largest(127, 30)},
      {"q4_1", of_range(15)},
      {"q5_1", of_range(31)},
      {"kivi2", of_range(3)},
      {"channels2", by_channel(3)},
      {"channels4", by_channel(15)},
      {"hadamard2", rotated(3)},
      {"hadamard4", rotated(15)},
      {"rotated2", of_rotated_largest(1.5)},
      {"rotated3", of_rotated_largest(3.5)},
      {"rotated4", of_rotated_largest(7.5)},
      {"allotted2", allotted},
      {"allotted3", allotted},
      {"allotted4", allotted},
      {"nuq4", nearest_level},
      {"nuq4_rows", nearest_level},
      {"lowrank", uncaptured},
      {"lowrank_layers", uncaptured},
      {"pruned5", largest_channels(5)},
      {"pruned6", largest_channels(6)}};
  return all;
}

// What scores are made of is told better by who was shown queries than by who was not.
void expect_nearer_where_queries_look(const RoundTrip& trip, const Codec& codec) {
  const std::vector<float>& queries = trip.rows.query_squares;
  const double shown = trip.lost(queries);
  const double not_shown = RoundTrip(trip.rows, codec, {}).lost(queries);
  EXPECT_LT(shown, not_shown * 0.9);
  std::printf("%s: %.4f of what is asked for is lost, %.4f without queries\n",
              std::string(codec.name()).c_str(), shown, not_shown);
}

TEST(RealRows, AreReadBackWithinTheBoundOfEveryCodec) {
  const auto cpu = choose_cpu_table("auto");
  ASSERT_TRUE(cpu);
  std::size_t trips = 0;
  for (const RealRows& rows : real_rows()) {
    const std::string question = rows.side == Side::keys ? "keys.compress" : "values.compress";
    for (const MethodQuestion& of : method_questions())
      if (of.key == question)
        for (const std::string& name : of.choices) {
          SCOPED_TRACE(rows.name + " by " + name);
          const std::string setting = question + "=" + name;
          const auto method = load_method("exact", "", {&setting, 1}, **cpu);
          ASSERT_TRUE(method) << method.error().message;
          ASSERT_TRUE(bounds().contains(name)) << "a codec without a bound";
          const Codec& codec = method->compress.of(rows.side);
          const RoundTrip trip(rows, codec, rows.query_squares);
          bounds().at(name)(trip);
          if (const Fitter* fitter = codec.fitter();
              rows.side == Side::keys && fitter && fitter->asks_for_queries())
            expect_nearer_where_queries_look(trip, codec);
          RecordProperty("lost by " + name + ", " + rows.name, std::to_string(trip.lost()));
          ++trips;
        }
  }
  EXPECT_EQ(trips, 6 * bounds().size());
}

}  // namespace
}  // namespace thermocline
