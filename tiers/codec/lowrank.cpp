#include "tiers/codec/lowrank.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/eigen.h"
#include "kernels/format/row_lowrank.h"
#include "tiers/codec/f16_limits.h"

namespace thermocline {
namespace {

using Layout = RowLowRank;
constexpr std::size_t kAtOnce = 256;  // rows
// What a segment's rows may lose in a basis of others, as a multiple of what those lost in it.
// More than that is due to the rows; less than kRounding to the f16 of the basis.
constexpr double kMostLost = 1.5, kRounding = 5e-4;

struct Header {             // of either part
  std::uint32_t count = 0;  // rank; kept rows
  float captured = 1.0f;
};
static_assert(sizeof(Header) == Layout::kHeader);

Header header_of(std::span<const std::byte> part) {
  Header header;
  std::memcpy(&header, part.data(), sizeof header);
  return header;
}
void set_header(Header header, const Buffer& part) {
  std::memcpy(part.data(), &header, sizeof header);
}

// The rows of all heads, one beside the other, without their rotary embedding: [rows][width]. One
// that is not finite is zeros, and is told apart.
struct PlainRows {
  std::uint32_t count = 0, width = 0;
  Buffer data;
  std::vector<std::uint8_t> finite;

  float* row(std::size_t r) const { return data.as<float>().data() + r * width; }
  double squares(std::size_t first, std::size_t end) const {
    double sum = 0;
    for (const float* x = row(first); x != row(end); ++x) sum += double{*x} * *x;
    return sum;
  }
};

bool read_plain(const Fitting& of, std::uint32_t r, float* out) {
  const std::uint32_t dim = of.dim(), heads = of.rows.heads;
  bool finite = true;
  for (std::uint32_t h = 0; h < heads; ++h) {
    const f16* from = of.rows.side(of.side, h, r);
    float* head = out + std::size_t{h} * dim;
    for (std::uint32_t i = 0; i < dim; ++i) head[i] = to_float(from[i]);
    finite = finite && all_finite(head, dim);
    if (of.rotation) rotate_back(*of.rotation, of.rows.first_position + r, head);
  }
  if (!finite) std::fill_n(out, std::size_t{heads} * dim, 0.0f);
  return finite;
}

Result<PlainRows> plain_rows(const Fitting& of, const Workers& workers) {
  PlainRows plain;
  plain.count = of.rows.rows;
  plain.width = of.rows.heads * of.dim();
  TL_TRY_ASSIGN(plain.data, Buffer::create(std::size_t{plain.count} * plain.width * sizeof(float)));
  plain.finite.resize(plain.count);
  workers.parallel(plain.count, kAtOnce, [&](std::size_t first, std::size_t last) {
    for (std::size_t r = first; r < last; ++r)
      plain.finite[r] = read_plain(of, static_cast<std::uint32_t>(r), plain.row(r));
  });
  return plain;
}

// Least in number, in sixteens, of those that capture the share of the squares; or all.
std::uint32_t rank_for(std::span<const double> values, double squares, double share) {
  double captured = 0;
  for (std::size_t k = 0; k < values.size(); ++k) {
    captured += values[k];
    if ((k + 1) % Layout::kRankUnit == 0 && captured >= share * squares)
      return static_cast<std::uint32_t>(k + 1);
  }
  return static_cast<std::uint32_t>(values.size());
}

// The common part: a basis of the rows, [heads][rank][dim]; what it captures is not said yet.
Result<Buffer> basis_of(const PlainRows& plain, FitShape shape, std::uint32_t most, double energy) {
  const std::uint32_t width = plain.width;
  TL_TRY_ASSIGN(const Buffer squares, Buffer::create(std::size_t{width} * width * sizeof(double)));
  TL_TRY_ASSIGN(const Buffer block, Buffer::create(kAtOnce * width * sizeof(double)));
  std::memset(squares.data(), 0, squares.size());
  for (std::size_t first = 0; first < plain.count; first += kAtOnce) {
    const std::size_t count = std::min(kAtOnce, plain.count - first);
    std::copy(plain.row(first), plain.row(first + count), block.as<double>().data());
    add_squares(block.as<double>().data(), count, width, squares.as<double>().data());
  }
  TL_TRY_ASSIGN(const Eigen eigen, largest_eigenvectors(squares.as<double>().data(), width, most));
  const std::uint32_t rank =
      energy < 1.0 ? rank_for(eigen.values, plain.squares(0, plain.count), energy) : most;
  TL_TRY_ASSIGN(Buffer common, Buffer::create(Layout::common_bytes(shape.heads, rank, shape.dim)));
  set_header({rank, 1.0f}, common);
  auto* to = reinterpret_cast<f16*>(common.data() + sizeof(Header));
  const double* vectors = eigen.vectors.as<double>().data();
  for (std::uint32_t h = 0; h < shape.heads; ++h)
    for (std::uint32_t k = 0; k < rank; ++k)
      for (std::uint32_t i = 0; i < shape.dim; ++i)
        *to++ = to_f16(static_cast<float>(vectors[std::size_t{k} * width + h * shape.dim + i]));
  return common;
}

// Coefficients of the rows in a basis: [rows][rank], to `out`; null: they are not wanted. Returns
// the share of the squares that they hold.
Result<double> coefficients(const PlainRows& plain, FitShape shape,
                            std::span<const std::byte> common, const Workers& workers, f16* out) {
  const std::uint32_t rank = header_of(common).count, width = plain.width;
  TL_TRY_ASSIGN(const Buffer basis, Buffer::create(std::size_t{rank} * width * sizeof(float)));
  float* vectors = basis.as<float>().data();
  const auto* from = reinterpret_cast<const f16*>(common.data() + sizeof(Header));
  for (std::uint32_t h = 0; h < shape.heads; ++h)
    for (std::uint32_t k = 0; k < rank; ++k)
      for (std::uint32_t i = 0; i < shape.dim; ++i)
        vectors[std::size_t{k} * width + h * shape.dim + i] = to_float(*from++);
  TL_TRY_ASSIGN(const Buffer along,
                Buffer::create(std::size_t{plain.count} * rank * sizeof(float)));
  const std::size_t blocks = (plain.count + kAtOnce - 1) / kAtOnce;
  std::vector<double> held(blocks), all(blocks);
  workers.parallel(blocks, 1, [&](std::size_t from_block, std::size_t to_block) {
    for (std::size_t b = from_block; b < to_block; ++b) {
      const std::size_t first = b * kAtOnce,
                        end = std::min<std::size_t>(first + kAtOnce, plain.count);
      float* sums = along.as<float>().data() + first * rank;
      project(plain.row(first), end - first, width, vectors, rank, sums);
      all[b] = plain.squares(first, end);
      for (std::size_t i = 0; i < (end - first) * rank; ++i) held[b] += double{sums[i]} * sums[i];
      for (std::size_t r = first; r < end && out; ++r, sums += rank)
        for (std::uint32_t k = 0; k < rank; ++k)
          out[r * rank + k] = plain.finite[r] ? to_f16(sums[k]) : kNanF16;
    }
  });
  double captured = 0, squares = 0;
  for (std::size_t b = 0; b < blocks; ++b) captured += held[b], squares += all[b];
  return squares > 0 ? std::min(1.0, captured / squares) : 1.0;
}

// [head]: numbers of the rows that are kept as they are.
std::vector<std::vector<std::uint32_t>> kept_numbers(const Fitting& of) {
  std::vector<std::vector<std::uint32_t>> numbers(of.rows.heads);
  for (std::uint32_t h = 0; h < of.always.size(); ++h) {
    if (of.order.empty()) {
      numbers[h] = of.always[h];
      continue;
    }
    std::vector<bool> wanted(of.rows.rows);
    for (const std::uint32_t r : of.always[h]) wanted[r] = true;
    for (std::uint32_t n = 0; n < of.rows.rows; ++n)
      if (wanted[of.order[std::size_t{h} * of.rows.rows + n]]) numbers[h].push_back(n);
  }
  return numbers;
}

// Behind the coefficients.
void put_kept(const Fitting& of, const std::vector<std::vector<std::uint32_t>>& numbers,
              std::uint32_t kept, std::byte* at) {
  auto* first = reinterpret_cast<std::uint32_t*>(at);
  auto* rows = reinterpret_cast<f16*>(first + of.rows.heads + 1);
  auto* number = reinterpret_cast<std::uint16_t*>(rows + std::size_t{kept} * of.dim());
  std::uint32_t so_far = 0;
  for (std::uint32_t h = 0; h < of.rows.heads; ++h) {
    first[h] = so_far;
    for (const std::uint32_t n : numbers[h]) {
      rows = std::copy_n(of.stored(h, n), of.dim(), rows);
      *number++ = static_cast<std::uint16_t>(n);
    }
    so_far += static_cast<std::uint32_t>(numbers[h].size());
  }
  first[of.rows.heads] = so_far;
}

}  // namespace

std::span<const Parameter<LowRankOptions>> LowRankCodec::parameters() {
  return parameters_of_layers().subspan(1);
}

std::span<const Parameter<LowRankOptions>> LowRankCodec::parameters_of_layers() {
  static constexpr Parameter<LowRankOptions> kParameters[] = {
      {"layers", &LowRankOptions::layers, 2, 8},
      {"rank", &LowRankOptions::rank, 0.001, 1, {}, LowRankOptions::kAutoRank},
      {"energy", &LowRankOptions::energy, 0.5, 1}};
  return kParameters;
}

LowRankCodec::LowRankCodec(const LowRankOptions& options) : options_(options) {
  if (options.rank != LowRankOptions::kAutoRank) return;
  options_.rank = 0.5;
  if (options.energy == 1.0) options_.energy = 0.99;
}

std::uint32_t LowRankCodec::most_rank(FitShape shape) const {
  const std::uint32_t width = shape.heads * shape.dim;  // dim is a multiple of 16
  const auto wanted = static_cast<std::uint32_t>(std::lround(options_.rank * width));
  return std::clamp<std::uint32_t>(static_cast<std::uint32_t>(round_up(wanted, Layout::kRankUnit)),
                                   Layout::kRankUnit, std::min(width, Layout::kMaxRank));
}

std::uint64_t LowRankCodec::bytes(FitShape shape, std::uint64_t rows, std::uint64_t always) const {
  const std::uint32_t rank = most_rank(shape);
  return Layout::common_bytes(shape.heads, rank, shape.dim) +
         Layout::own_bytes(shape.heads, rows, rank, shape.dim, shape.heads * always);
}

// All rows as floats; and either what a basis is made with, or it and all coefficients as floats.
std::uint64_t LowRankCodec::scratch_bytes(FitShape shape, std::uint64_t rows) const {
  const std::uint64_t width = std::uint64_t{shape.heads} * shape.dim, rank = most_rank(shape);
  const std::uint64_t making = (width + kAtOnce + rank) * width * sizeof(double);
  const std::uint64_t coding = (width + rows) * rank * sizeof(float);
  return rows * (width * sizeof(float) + 1) + std::max(making, coding);
}

Result<Fit> LowRankCodec::fit(const Fitting& of, const Workers& workers) const {
  const FitShape shape{of.rows.heads, of.dim()};
  TL_TRY_ASSIGN(const PlainRows plain, plain_rows(of, workers));
  Fit fit;
  std::span<const std::byte> common;
  if (of.before && of.before->common) {
    common = of.before->common->bytes.bytes();
    const double lost = 1.0 - header_of(common).captured;
    TL_TRY_ASSIGN(const double captured, coefficients(plain, shape, common, workers, nullptr));
    fit.as_before = 1.0 - captured <= std::max(kMostLost * lost + kRounding, 1.0 - options_.energy);
  }
  if (!fit.as_before) {
    TL_TRY_ASSIGN(fit.common, basis_of(plain, shape, most_rank(shape), options_.energy));
    common = fit.common.bytes();
  }
  const std::vector<std::vector<std::uint32_t>> numbers = kept_numbers(of);
  std::uint32_t kept = 0;
  for (const auto& of_head : numbers) kept += static_cast<std::uint32_t>(of_head.size());
  const std::uint32_t rank = header_of(common).count;
  TL_TRY_ASSIGN(
      fit.own, Buffer::create(Layout::own_bytes(shape.heads, of.rows.rows, rank, shape.dim, kept)));
  auto* along = reinterpret_cast<f16*>(fit.own.data() + sizeof(Header));
  TL_TRY_ASSIGN(const double captured, coefficients(plain, shape, common, workers, along));
  set_header({kept, static_cast<float>(captured)}, fit.own);
  if (!fit.as_before) set_header({rank, static_cast<float>(captured)}, fit.common);
  put_kept(of, numbers, kept,
           reinterpret_cast<std::byte*>(along + std::size_t{of.rows.rows} * rank));
  return fit;
}

FitFacts LowRankCodec::facts(FitShape shape, std::uint32_t, std::span<const std::byte> common,
                             std::span<const std::byte> own) const {
  const std::uint32_t rank = header_of(common).count, kept = header_of(own).count;
  const std::size_t kept_bytes = kept * (shape.dim * sizeof(f16) + sizeof(std::uint16_t));
  return {.head_bytes = static_cast<std::uint32_t>(rank * shape.dim * sizeof(f16) +
                                                   (kept_bytes + shape.heads - 1) / shape.heads),
          .row_bytes = static_cast<std::uint32_t>(rank * sizeof(f16)),
          .rank = rank,
          .captured = header_of(own).captured};
}

const char* LowRankCodec::flaw(FitShape shape, std::uint32_t rows,
                               std::span<const std::byte> common,
                               std::span<const std::byte> own) const {
  if (common.size() < sizeof(Header) || own.size() < sizeof(Header))
    return "has a part that is too short for its length";
  const std::uint32_t rank = header_of(common).count, kept = header_of(own).count;
  if (rank == 0 || rank % Layout::kRankUnit != 0 || rank > most_rank(shape))
    return "has a rank that this method does not make";
  if (common.size() != Layout::common_bytes(shape.heads, rank, shape.dim))
    return "has a basis of another length than its rank has";
  if (kept > shape.heads * rows ||
      own.size() != Layout::own_bytes(shape.heads, rows, rank, shape.dim, kept))
    return "has other coefficients or kept rows than it says";
  const auto* first = reinterpret_cast<const std::uint32_t*>(
      own.data() + sizeof(Header) + std::size_t{rows} * rank * sizeof(f16));
  const auto* number = reinterpret_cast<const std::uint16_t*>(
      reinterpret_cast<const f16*>(first + shape.heads + 1) + std::size_t{kept} * shape.dim);
  if (first[0] != 0 || first[shape.heads] != kept ||
      !std::is_sorted(first, first + shape.heads + 1))
    return "has kept rows that do not follow each other";
  for (std::uint32_t h = 0; h < shape.heads; ++h)
    for (std::uint32_t i = first[h]; i < first[h + 1]; ++i)
      if (number[i] >= rows || (i > first[h] && number[i] <= number[i - 1]))
        return "has a kept row that its head does not have, or not after the one before it";
  return nullptr;
}

}  // namespace thermocline
