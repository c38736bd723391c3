#include "retrieval/select/sketch.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "kernels/format/row.h"
#include "retrieval/in_tasks.h"
#include "retrieval/index/key_clusters.h"
#include "retrieval/index/sketch_index.h"
#include "retrieval/over_segments.h"
#include "tiers/codec/int8.h"

namespace thermocline {
namespace {

constexpr std::size_t kTaskRows = 256;  // whole groups of the sketch's layout
constexpr std::size_t kTaskClusters = 32;
// A mean's rounding is nothing beside its rows' spread.
using MeanKeyCodec = Int8Codec;
constexpr int kMeanValueBits = 4;  // of SketchOptions::summary_layout()

// One KV head at sealing. Every sum is taken in an order that the rows alone decide.
static_assert(SketchIndex::kMeanFormat == RowFormat::int8);  // what MeanKeyCodec writes
class HeadForming {
 public:
  HeadForming(const Sealing& sealing, std::uint32_t head, const KeyClusters& clusters,
              const CpuTable& cpu, const Workers& workers)
      : sealing_(sealing),
        head_(head),
        dim_(sealing.shape.key_dim),
        clusters_(clusters),
        cpu_(cpu),
        workers_(workers) {}

  // The means of the keys of each cluster, and of each group, to the index, and of its values, as
  // records of `layout`; zeros where it is empty.
  void average(const SketchIndex& index, const RowLayout& layout, std::byte* summaries) const {
    const std::size_t value_dim = sealing_.shape.value_dim, clusters = index.clusters();
    const std::size_t means = clusters + index.groups();
    const MeanKeyCodec codec;
    in_tasks(means, kTaskClusters, workers_, [&](std::size_t first, std::size_t last) {
      std::vector<float> mean_key(dim_), mean_value(value_dim), value(value_dim);
      std::vector<f16> half(dim_);
      for (std::size_t c = first; c < last; ++c) {
        std::fill(mean_key.begin(), mean_key.end(), 0.0f);
        std::fill(mean_value.begin(), mean_value.end(), 0.0f);
        const auto [begin, end] = c < clusters ? rows_of(c, c + 1) : rows_of_group(c - clusters);
        for (std::uint32_t i = begin; i < end; ++i) {
          const float* key = clusters_.keys.data() + clusters_.order[i] * dim_;
          for (std::size_t d = 0; d < dim_; ++d) mean_key[d] += key[d];
          cpu_.dense.from_half(sealing_.rows.value(head_, clusters_.order[i]), value_dim,
                               value.data());
          for (std::size_t d = 0; d < value_dim; ++d) mean_value[d] += value[d];
        }
        const float share = 1.0f / static_cast<float>(std::max(1u, end - begin));
        for (std::size_t d = 0; d < dim_; ++d) mean_key[d] *= share;
        for (std::size_t d = 0; d < value_dim; ++d) mean_value[d] *= share;
        cpu_.dense.to_half(mean_key.data(), dim_, half.data());
        codec.encode(half.data(), static_cast<std::uint32_t>(dim_),
                     index.means(head_) + c * index.mean_bytes());
        cpu_.dense.hadamard(mean_value.data(), value_dim);
        cpu_.sketch.encode_row(kMeanValueBits, mean_value.data(), value_dim,
                               summaries + c * layout.bytes());
      }
    });
  }

  // Codes each row's key, less its cluster's mean as the index has it; or keeps the key.
  void encode(const SketchIndex& index) const {
    in_tasks(clusters_.order.size(), kTaskRows, workers_, [&](std::size_t first, std::size_t last) {
      std::vector<float> residual((last - first) * dim_), mean(dim_);
      with_clusters(
          first, last,
          [&](std::size_t cluster) {
            read_row(SketchIndex::kMeanFormat, index.means(head_) + cluster * index.mean_bytes(),
                     static_cast<std::uint32_t>(dim_), mean.data());
          },
          [&](std::size_t i) {
            float* to = residual.data() + (i - first) * dim_;
            const float* key = clusters_.keys.data() + clusters_.order[i] * dim_;
            for (std::size_t d = 0; d < dim_; ++d) to[d] = key[d] - mean[d];
            cpu_.dense.hadamard(to, dim_);
          });
      if (index.keeps_keys()) return keep_keys(index, residual.data(), first, last);
      cpu_.sketch.encode(index.bits(), residual.data(), dim_, first, last - first,
                         index.codes(head_), index.scales(head_));
    });
  }

  // Codes each row's value, less its cluster's mean as `summaries` have it, to records of `layout`.
  void encode_values(int bits, const RowLayout& means, const std::byte* summaries,
                     const RowLayout& layout, std::byte* codes) const {
    const std::uint32_t dim = sealing_.shape.value_dim;
    in_tasks(clusters_.order.size(), kTaskRows, workers_, [&](std::size_t first, std::size_t last) {
      std::vector<float> residual(dim), mean(dim);
      with_clusters(
          first, last,
          [&](std::size_t cluster) {
            read_row(means.value_format, summaries + cluster * means.bytes(), dim, mean.data());
          },
          [&](std::size_t i) {
            cpu_.dense.from_half(sealing_.rows.value(head_, clusters_.order[i]), dim,
                                 residual.data());
            for (std::size_t d = 0; d < dim; ++d) residual[d] -= mean[d];
            cpu_.dense.hadamard(residual.data(), dim);
            cpu_.sketch.encode_row(bits, residual.data(), dim, codes + i * layout.bytes());
          });
    });
  }

  // How far rows stray from their clusters' means, and from their groups'.
  void find_spreads(const SketchIndex& index) const {
    const std::span<float> spread = index.spreads(head_);
    for (std::size_t c = 0; c < index.clusters(); ++c) {
      const auto [begin, end] = rows_of(c, c + 1);
      float most = 0.0f;
      for (std::uint32_t r = begin; r < end; ++r)
        most = std::max(most, to_float(index.scales(head_)[r]));
      spread[c] = most;
    }
    const auto read_mean = [&](std::size_t unit, std::vector<float>* out) {
      read_row(SketchIndex::kMeanFormat, index.means(head_) + unit * index.mean_bytes(),
               static_cast<std::uint32_t>(dim_), out->data());
    };
    std::vector<float> middle(dim_), mean(dim_);
    for (std::size_t g = 0; g < index.groups(); ++g) {
      read_mean(index.clusters() + g, &middle);
      float most = 0.0f;
      for (std::size_t c = clusters_.groups[g]; c < clusters_.groups[g + 1]; ++c) {
        if (clusters_.starts[c] == clusters_.starts[c + 1]) continue;
        read_mean(c, &mean);
        float squares = 0.0f;
        for (std::size_t d = 0; d < dim_; ++d)
          squares += (mean[d] - middle[d]) * (mean[d] - middle[d]);
        most = std::max(most, spread[c] * spread[c] + squares / static_cast<float>(dim_));
      }
      spread[index.clusters() + g] = std::sqrt(most);
    }
  }

 private:
  // The keys of the stored rows [first, last), and the scales alone of codes of their residuals.
  void keep_keys(const SketchIndex& index, const float* residual, std::size_t first,
                 std::size_t last) const {
    const std::size_t key_bytes = sketch_row_bytes(index.bits(), dim_);
    for (std::size_t i = first; i < last; ++i)
      std::memcpy(index.keys(head_) + i * key_bytes, sealing_.rows.key(head_, clusters_.order[i]),
                  key_bytes);
    const int bits = SketchIndex::scale_bits(index.bits());
    std::vector<std::uint8_t> codes(sketch_bytes(bits, last - first, dim_));
    cpu_.sketch.encode(bits, residual, dim_, 0, last - first, codes.data(),
                       index.scales(head_) + first);
  }

  std::pair<std::uint32_t, std::uint32_t> rows_of(std::size_t first, std::size_t last) const {
    return {clusters_.starts[first], clusters_.starts[last]};
  }
  std::pair<std::uint32_t, std::uint32_t> rows_of_group(std::size_t g) const {
    return rows_of(clusters_.groups[g], clusters_.groups[g + 1]);
  }

  // row(i) for the stored rows [first, last), with enter(c) before the first one of a cluster.
  template <typename Enter, typename Row>
  void with_clusters(std::size_t first, std::size_t last, const Enter& enter,
                     const Row& row) const {
    const std::vector<std::uint16_t>& starts = clusters_.starts;
    const auto after = std::upper_bound(starts.begin(), starts.end(), first);
    auto cluster = static_cast<std::size_t>(after - starts.begin()) - 1;
    enter(cluster);
    for (std::size_t i = first; i < last; ++i) {
      if (i >= starts[cluster + 1]) {
        while (i >= starts[cluster + 1]) ++cluster;
        enter(cluster);
      }
      row(i);
    }
  }

  const Sealing& sealing_;
  const std::uint32_t head_;
  const std::size_t dim_;
  const KeyClusters& clusters_;
  const CpuTable& cpu_;
  const Workers& workers_;
};

}  // namespace

std::span<const Parameter<SketchOptions>> SketchSelector::parameters() {
  static constexpr Parameter<SketchOptions> kParameters[] = {
      {"share", &SketchOptions::share, 0, 1},
      {"min_rows", &SketchOptions::min_rows, 1, 1 << 20},
      {"most_rows", &SketchOptions::most_rows, 0, 1 << 20},
      {"bits", &SketchOptions::bits, 1, SketchIndex::kKeyBits},
      {"coded", &SketchOptions::coded, 0, 1},
      {"most_coded", &SketchOptions::most_coded, 0, 1 << 20, {}, {}, "coded"},
      {"value_bits", &SketchOptions::value_bits, 2, 4, {}, {}, "coded"},
      {"cluster", &SketchOptions::cluster, 4, 256},
      {"reach", &SketchOptions::reach, 0, 100},
      {"means", &SketchOptions::means, 64, 1 << 20},
      {"candidates", &SketchOptions::candidates, 1, 1000},
      {"least_candidates", &SketchOptions::least_candidates, 1, 1 << 20}};
  return kParameters;
}

Result<std::unique_ptr<SketchSelector>> SketchSelector::create(const SketchOptions& options,
                                                               const CpuTable& cpu) {
  TL_TRY(check("sketch", parameters(), options));
  if (options.bits != 1 && options.bits != 2 && options.bits != 4 && !options.keeps_keys())
    return fail(ErrorCode::invalid_argument, "sketch: bits = ", options.bits, " is not 1, 2, 4 or ",
                SketchIndex::kKeyBits);
  if (options.keeps_keys() && options.codes_values())
    return fail(ErrorCode::unsupported, "sketch: bits = ", options.bits,
                " keeps keys, and no codes to attend rows by: it goes with coded = 0, not ",
                options.coded);
  if (options.value_bits == 3)
    return fail(ErrorCode::invalid_argument, "sketch: value_bits = 3 is not 2 or 4");
  return std::unique_ptr<SketchSelector>(new SketchSelector(options, cpu));
}

std::uint64_t SketchSelector::summary_bytes(HeadShape shape, std::uint64_t rows) const {
  return over_segments(rows, [&](std::uint32_t n) -> std::uint64_t { return summaries(n); }) *
         SketchOptions::summary_layout(shape).bytes();
}

std::uint64_t SketchSelector::code_bytes(HeadShape shape, std::uint64_t rows) const {
  return options_.codes_values() ? rows * options_.code_layout(shape).bytes() : 0;
}

std::uint32_t SketchSelector::summaries(std::uint32_t rows) const {
  const std::uint32_t clusters = options_.clusters(rows);
  return clusters + SketchIndex::groups_of(rows, clusters);
}

void SketchSelector::save(const Formation& formation, RecordWriter* out) const {
  out->raw(formation.summary_rows);
  out->raw(formation.code_rows);
  static_cast<const SketchIndex&>(*formation.index).save(out);
}

Result<Formation> SketchSelector::load(HeadShape shape, std::uint32_t heads, std::uint32_t rows,
                                       RecordReader* in) const {
  Formation formation;
  formation.summaries = summaries(rows);
  formation.summary_layout = SketchOptions::summary_layout(shape);
  TL_TRY_ASSIGN(const auto summary_rows,
                in->raw("summaries", std::uint64_t{formation.summaries} *
                                         formation.summary_layout.bytes() * heads));
  formation.summary_rows.assign(summary_rows.begin(), summary_rows.end());
  formation.code_layout = options_.code_layout(shape);
  TL_TRY_ASSIGN(const auto code_rows, in->raw("codes", heads * code_bytes(shape, rows)));
  formation.code_rows.assign(code_rows.begin(), code_rows.end());
  TL_TRY_ASSIGN(formation.index, SketchIndex::load(static_cast<int>(options_.bits), heads, rows,
                                                   shape.key_dim, options_.clusters(rows), in));
  return formation;
}

std::uint64_t SketchSelector::index_bytes(HeadShape shape, std::uint64_t rows) const {
  return over_segments(rows, [&](std::uint32_t n) {
    if (n == 0) return std::uint64_t{0};
    return SketchIndex::head_bytes(static_cast<int>(options_.bits), n, shape.key_dim,
                                   options_.clusters(n));
  });
}

Result<Formation> SketchSelector::form(const Sealing& sealing, const Workers& workers) const {
  const RawRows& rows = sealing.rows;
  const HeadShape shape = sealing.shape;
  TL_CHECK(rows.rows >= 1 && rows.rows <= kSegmentRows);
  TL_CHECK(rows.layout.key_bytes == shape.key_dim * sizeof(f16) &&
           rows.layout.value_bytes == shape.value_dim * sizeof(f16));
  const auto bits = static_cast<int>(options_.bits);
  if (!SketchIndex::takes(bits, shape.key_dim))
    return fail(ErrorCode::unsupported, "sketch: heads of ", shape.key_dim,
                " key channels: only multiples of ", std::max(16, 32 / bits), " can be kept in ",
                bits, " bits each; select by another method");
  const std::uint32_t count = options_.clusters(rows.rows);
  TL_TRY_ASSIGN(const std::shared_ptr<SketchIndex> index,
                SketchIndex::create(bits, rows.heads, rows.rows, shape.key_dim, count));
  Formation formation;
  formation.order.reserve(std::size_t{rows.heads} * rows.rows);
  formation.summaries = summaries(rows.rows);
  formation.summary_layout = SketchOptions::summary_layout(shape);
  const std::size_t head_bytes =
      std::size_t{formation.summaries} * formation.summary_layout.bytes();
  formation.summary_rows.resize(rows.heads * head_bytes);
  formation.code_layout = options_.code_layout(shape);
  const std::uint64_t head_codes = code_bytes(shape, rows.rows);
  formation.code_rows.resize(rows.heads * head_codes);
  for (std::uint32_t head = 0; head < rows.heads; ++head) {
    const KeyClusters made = cluster_keys(sealing, head, count, options_.kmeans, cpu_, workers);
    formation.order.insert(formation.order.end(), made.order.begin(), made.order.end());
    std::copy(made.starts.begin(), made.starts.end(), index->starts(head).begin());
    if (index->groups() > 0)
      std::copy(made.groups.begin(), made.groups.end(), index->group_starts(head).begin());
    const HeadForming forming(sealing, head, made, cpu_, workers);
    std::byte* summaries = formation.summary_rows.data() + head * head_bytes;
    forming.average(*index, formation.summary_layout, summaries);
    forming.encode(*index);
    if (options_.codes_values())
      forming.encode_values(static_cast<int>(options_.value_bits), formation.summary_layout,
                            summaries, formation.code_layout,
                            formation.code_rows.data() + head * head_codes);
    forming.find_spreads(*index);
  }
  formation.index = index;
  return formation;
}

}  // namespace thermocline
