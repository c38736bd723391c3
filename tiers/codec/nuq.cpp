#include "tiers/codec/nuq.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "kernels/format/row_nuq4.h"
#include "tiers/codec/f16_limits.h"
#include "tiers/codec/plain_row.h"

namespace thermocline {
namespace {

using Layout = RowNuq4;
using Header = Layout::Header;
constexpr std::size_t kAtOnce = 16;  // ranges
constexpr int kBins = 1024;          // from -1 to 1, of which levels are made
constexpr int kMostRounds = 200;     // of k-means; most segments settle within 60

// Where the values of a channel or a row are that are no outliers.
struct Range {
  float least = 0, greatest = 0;
  f16 scale, middle;

  bool holds(float x) const { return x >= least && x <= greatest; }
  // The least f16 that reaches both ends from the middle.
  void settle() {
    middle = to_f16((least + greatest) / 2);
    const float reach = std::max(greatest - to_float(middle), to_float(middle) - least);
    scale = f16_at_least(reach);
  }
};

// Of all but `out` of the values, which are reordered.
Range range_of(std::span<float> x, std::size_t out) {
  Range range;
  if (!all_finite(x.data(), static_cast<std::uint32_t>(x.size()))) {
    range.least = -std::numeric_limits<float>::infinity();
    range.greatest = -range.least;
    range.scale = range.middle = kNanF16;
    return range;
  }
  // The `out + 1` least and as many of the greatest, in order: with no outlier these are the ends.
  const auto low = x.begin() + static_cast<std::ptrdiff_t>(out);
  const auto high = x.end() - static_cast<std::ptrdiff_t>(out) - 1;
  std::nth_element(x.begin(), low, x.end());
  std::sort(x.begin(), low);
  if (low < high) std::nth_element(low + 1, high, x.end());
  std::sort(std::max(low + 1, high), x.end());
  range.least = *x.begin(), range.greatest = *high;
  for (std::size_t below = 1; below <= out; ++below) {
    const float least = x[below], greatest = *(high + static_cast<std::ptrdiff_t>(below));
    if (greatest - least < range.greatest - range.least)
      range.least = least, range.greatest = greatest;
  }
  range.settle();
  return range;
}

std::size_t outliers_of(double share, std::uint64_t values) {
  const auto wanted = static_cast<std::uint64_t>(std::ceil(share * static_cast<double>(values)));
  return static_cast<std::size_t>(std::min(wanted, values / 2));
}

// What is made of one head's rows.
struct Outliers {
  std::vector<std::uint32_t> in_group;
  std::vector<f16> values;
  std::vector<std::uint16_t> places;
};
struct Masses {
  std::vector<double> weight = std::vector<double>(kBins), sum = std::vector<double>(kBins);

  void add(float x, double by) {  // x from -1 to 1
    const auto bin = static_cast<std::size_t>(
        std::clamp(static_cast<int>((x + 1.0f) * (kBins / 2)), 0, kBins - 1));
    weight[bin] += by;
    sum[bin] += by * double{x};
  }
  void add(const Masses& other) {
    for (std::size_t bin = 0; bin < kBins; ++bin)
      weight[bin] += other.weight[bin], sum[bin] += other.sum[bin];
  }
};

// The bin from which on `upper` is nearer than `lower`.
int border(double lower, double upper) {
  return std::clamp(static_cast<int>(std::lround(((lower + upper) / 2 + 1) * (kBins / 2))), 0,
                    kBins);
}

// K-means, from levels of equal distance on. One that nothing is near stays where it is.
void settle_levels(const Masses& of, float* level) {
  std::vector<double> weight(kBins + 1), sum(kBins + 1);  // of the bins before
  for (std::size_t bin = 0; bin < kBins; ++bin) {
    weight[bin + 1] = weight[bin] + of.weight[bin];
    sum[bin + 1] = sum[bin] + of.sum[bin];
  }
  double at[Layout::kLevels];
  for (std::uint32_t k = 0; k < Layout::kLevels; ++k) at[k] = (2.0 * k + 1) / Layout::kLevels - 1.0;
  for (int round = 0; round < kMostRounds; ++round) {
    double moved[Layout::kLevels], most = 0;
    for (std::uint32_t k = 0; k < Layout::kLevels; ++k) {
      const int first = k == 0 ? 0 : border(at[k - 1], at[k]);
      const int end = k + 1 == Layout::kLevels ? kBins : border(at[k], at[k + 1]);
      const double mass =
          weight[static_cast<std::size_t>(end)] - weight[static_cast<std::size_t>(first)];
      moved[k] =
          mass > 0
              ? (sum[static_cast<std::size_t>(end)] - sum[static_cast<std::size_t>(first)]) / mass
              : at[k];
      most = std::max(most, std::abs(moved[k] - at[k]));
    }
    std::copy_n(moved, Layout::kLevels, at);
    if (most == 0) break;
  }
  std::sort(at, at + Layout::kLevels);  // a level that nothing is near may have been passed
  for (std::uint32_t k = 0; k < Layout::kLevels; ++k)
    level[k] = static_cast<float>(std::clamp(at[k], -1.0, 1.0));
}

// All rows as they are coded, in the order in which they are stored: [head][row][dim].
struct PlainRows {
  std::uint32_t heads = 0, rows = 0, dim = 0;
  Buffer data;

  float* row(std::size_t at) const { return data.as<float>().data() + at * dim; }
};

Result<PlainRows> plain_rows(const Fitting& of, const Workers& workers) {
  PlainRows plain{of.rows.heads, of.rows.rows, of.dim(), {}};
  const std::size_t all = std::size_t{plain.heads} * plain.rows;
  TL_TRY_ASSIGN(plain.data, Buffer::create(all * plain.dim * sizeof(float)));
  workers.parallel(all, 256, [&](std::size_t first, std::size_t last) {
    for (std::size_t at = first; at < last; ++at) {
      const auto head = static_cast<std::uint32_t>(at / plain.rows);
      const auto number = static_cast<std::uint32_t>(at % plain.rows);
      plain_row(of.stored(head, number), plain.dim, of.rotation, of.position(head, number),
                plain.row(at));
    }
  });
  return plain;
}

// [head][channel] or [head][row].
std::vector<Range> ranges_of(const PlainRows& plain, NuqCodec::By by, double share,
                             const Workers& workers) {
  const bool by_row = by == NuqCodec::By::row;
  const std::size_t of_head = by_row ? plain.rows : plain.dim;
  const std::size_t length = by_row ? plain.dim : plain.rows;
  std::vector<Range> ranges(plain.heads * of_head);
  workers.parallel(ranges.size(), kAtOnce, [&](std::size_t first, std::size_t last) {
    std::vector<float> values(length);
    for (std::size_t at = first; at < last; ++at) {
      const float* from =
          by_row ? plain.row(at) : plain.row(at / of_head * plain.rows) + at % of_head;
      for (std::size_t n = 0; n < length; ++n) values[n] = from[by_row ? n : n * plain.dim];
      ranges[at] = range_of(values, outliers_of(share, length));
    }
  });
  return ranges;
}

// One head's rows, by the ranges of that head.
void sort_out(const PlainRows& plain, std::uint32_t head, NuqCodec::By by, const Range* ranges,
              Outliers* outliers, Masses* masses) {
  outliers->in_group.assign(Layout::groups(plain.rows), 0);
  for (std::uint32_t n = 0; n < plain.rows; ++n) {
    const float* x = plain.row(std::size_t{head} * plain.rows + n);
    for (std::uint32_t i = 0; i < plain.dim; ++i) {
      const Range& range = ranges[by == NuqCodec::By::row ? n : i];
      const float scale = to_float(range.scale);
      if (!range.holds(x[i]) && !std::isnan(scale)) {
        ++outliers->in_group[n / Layout::kGroup];
        outliers->values.push_back(to_f16(x[i]));
        outliers->places.push_back(
            static_cast<std::uint16_t>(n % Layout::kGroup * Layout::kRowPlaces + i));
      } else if (scale > 0) {
        masses->add((x[i] - to_float(range.middle)) / scale, double{scale} * scale);
      }
    }
  }
}

Header header_of(std::span<const std::byte> own) {
  Header header;
  std::memcpy(&header, own.data(), sizeof header);
  return header;
}

}  // namespace

std::span<const Parameter<NuqOptions>> NuqCodec::parameters() {
  static constexpr Parameter<NuqOptions> kParameters[] = {
      {"outliers", &NuqOptions::outliers, 0, 0.1}};
  return kParameters;
}

std::uint64_t NuqCodec::most_outliers(FitShape shape, std::uint64_t rows) const {
  return shape.heads * (by_ == By::row ? rows * outliers_of(options_.outliers, shape.dim)
                                       : shape.dim * outliers_of(options_.outliers, rows));
}

std::uint64_t NuqCodec::bytes(FitShape shape, std::uint64_t rows, std::uint64_t) const {
  return Layout::own_bytes(static_cast<std::uint32_t>(by_), shape.heads, rows, shape.dim,
                           most_outliers(shape, rows));
}

Result<Fit> NuqCodec::fit(const Fitting& of, const Workers& workers) const {
  const std::uint32_t heads = of.rows.heads, rows = of.rows.rows, dim = of.dim();
  TL_TRY_ASSIGN(const PlainRows plain, plain_rows(of, workers));
  const std::vector<Range> ranges = ranges_of(plain, by_, options_.outliers, workers);
  std::vector<Outliers> outliers(heads);
  std::vector<Masses> masses(heads);
  workers.parallel(heads, 1, [&](std::size_t first, std::size_t last) {
    for (std::size_t h = first; h < last; ++h)
      sort_out(plain, static_cast<std::uint32_t>(h), by_, &ranges[h * (ranges.size() / heads)],
               &outliers[h], &masses[h]);
  });

  Header header;
  header.by = static_cast<std::uint32_t>(by_);
  for (std::uint32_t h = 0; h < heads; ++h) {
    header.outliers += static_cast<std::uint32_t>(outliers[h].values.size());
    if (h > 0) masses[0].add(masses[h]);
  }
  settle_levels(masses[0], header.level);

  Fit fit;
  TL_TRY_ASSIGN(fit.own,
                Buffer::create(Layout::own_bytes(header.by, heads, rows, dim, header.outliers)));
  std::memcpy(fit.own.data(), &header, sizeof header);
  auto* const range = reinterpret_cast<f16*>(fit.own.data() + sizeof header);
  for (std::size_t at = 0; at < ranges.size(); ++at) {
    f16* to = by_ == By::row ? range + 2 * at : range + at / dim * 2 * dim + at % dim;
    to[0] = ranges[at].scale;
    to[by_ == By::row ? 1 : dim] = ranges[at].middle;
  }
  auto* start = reinterpret_cast<std::uint32_t*>(range + 2 * ranges.size());
  auto* value = reinterpret_cast<f16*>(start + heads * Layout::groups(rows) + 1);
  auto* place = reinterpret_cast<std::uint16_t*>(value + header.outliers);
  std::uint32_t so_far = 0;
  for (const Outliers& of_head : outliers) {
    for (const std::uint32_t count : of_head.in_group) *start++ = so_far, so_far += count;
    value = std::copy(of_head.values.begin(), of_head.values.end(), value);
    place = std::copy(of_head.places.begin(), of_head.places.end(), place);
  }
  *start = so_far;
  return fit;
}

void NuqCodec::write(const f16* row, std::uint32_t dim, const SideFit& fit, std::uint32_t number,
                     std::byte* out) const {
  float x[kMaxHeadSize];
  plain_row(row, dim, fit.rotation, fit.first_position + fit.offset_of(number), x);
  const float* level = Layout::header(fit).level;
  float between[Layout::kLevels - 1];
  for (std::uint32_t k = 0; k + 1 < Layout::kLevels; ++k)
    between[k] = (level[k] + level[k + 1]) / 2;
  const bool by_row = by_ == By::row;
  const f16* scale = by_row ? Layout::row_scale(fit, number) : Layout::channel_scales(fit, dim);
  const f16* middle = scale + (by_row ? 1 : dim);
  auto* codes = reinterpret_cast<std::uint8_t*>(out);
  std::memset(out, 0, Layout::bytes(dim));
  for (std::uint32_t i = 0; i < dim; ++i) {
    const std::uint32_t at = by_row ? 0 : i;
    const float by = to_float(scale[at]);
    if (!(by > 0.0f)) continue;  // all the same, or not a number whatever the code
    const float to = (x[i] - to_float(middle[at])) / by;
    const auto code = std::lower_bound(std::begin(between), std::end(between), to) - between;
    codes[i / 32 * 16 + i % 16] |= static_cast<std::uint8_t>(code << i % 32 / 16 * 4);
  }
}

FitFacts NuqCodec::facts(FitShape shape, std::uint32_t rows, std::span<const std::byte>,
                         std::span<const std::byte> own) const {
  static_assert(Layout::kGroup == kFitGroup);
  constexpr std::size_t kRange = 2 * sizeof(f16), kOutlier = sizeof(f16) + sizeof(std::uint16_t);
  const std::size_t groups = shape.heads * Layout::groups(rows);
  const std::size_t outliers = header_of(own).outliers * kOutlier;
  const bool by_row = by_ == By::row;
  return {
      .head_bytes = static_cast<std::uint32_t>(sizeof(Header) + (by_row ? 0 : shape.dim * kRange)),
      .group_bytes =
          static_cast<std::uint32_t>(sizeof(std::uint32_t) + (outliers + groups - 1) / groups),
      .row_bytes = by_row ? static_cast<std::uint32_t>(kRange) : 0};
}

const char* NuqCodec::flaw(FitShape shape, std::uint32_t rows, std::span<const std::byte> common,
                           std::span<const std::byte> own) const {
  if (!common.empty()) return "has a common part, and this codec makes none";
  if (own.size() < sizeof(Header)) return "has a part that is too short for its length";
  const Header header = header_of(own);
  if (header.by != static_cast<std::uint32_t>(by_))
    return "has ranges of rows where this codec's are of channels, or the other way";
  if (header.outliers > most_outliers(shape, rows) ||
      own.size() != Layout::own_bytes(header.by, shape.heads, rows, shape.dim, header.outliers))
    return "has other ranges or outliers than it says";
  const SideFit side{.own = own.data(), .heads = shape.heads, .rows = rows};
  const std::uint32_t* start = Layout::group_starts(side, shape.dim);
  const std::size_t groups = shape.heads * Layout::groups(rows);
  if (start[0] != 0 || start[groups] != header.outliers ||
      !std::is_sorted(start, start + groups + 1))
    return "has outliers that do not follow each other";
  const auto* values = reinterpret_cast<const f16*>(start + groups + 1);
  const auto* place = reinterpret_cast<const std::uint16_t*>(values + header.outliers);
  for (std::size_t g = 0; g < groups; ++g)
    for (std::uint32_t i = start[g]; i < start[g + 1]; ++i)
      if (place[i] % Layout::kRowPlaces >= shape.dim || (i > start[g] && place[i] <= place[i - 1]))
        return "has an outlier in no channel, or not after the one before it";
  return nullptr;
}

}  // namespace thermocline
