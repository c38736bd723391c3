#include "tests/bench/cuda/prefill_bench.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "kernels/cuda/prefill_queue.h"

namespace thermocline::cuda {
namespace {

constexpr HeadShape kHead{4, 128, 128};
constexpr std::uint32_t kKvHeads = 8, kRowBytes = 2 * 128 * sizeof(f16);
constexpr std::uint32_t kPieceRows = 2048;  // of each KV head, that cross at a time
constexpr std::size_t kHeadBytes = std::size_t{kPieceRows} * kRowBytes;

PrefillShape shape_of(std::uint32_t queries) {
  PrefillShape shape;
  shape.head = kHead;
  shape.kv_heads = kKvHeads;
  shape.rows = queries;
  return shape;
}

// As they are sent, and as they are then: [query][query head].
struct Queries {
  std::vector<std::byte> records;
  std::vector<float> rounded;

  explicit Queries(const PrefillShape& shape) : records(shape.rows * shape.query_row_bytes()) {
    std::mt19937 random(11);
    std::normal_distribution<float> normal(0.0f, 1.0f / std::sqrt(128.0f));
    for (std::size_t q = 0; q < std::size_t{shape.rows} * shape.q_heads(); ++q) {
      float query[128];
      for (float& x : query) x = normal(random);
      const float power = query_power(query);
      std::byte* const record = records.data() + q * shape.query_bytes();
      for (std::size_t i = 0; i < 128; ++i) {
        const f16 half = to_f16(query[i] / power);
        std::memcpy(record + i * sizeof half, &half, sizeof half);
        rounded.push_back(to_float(half) * power);
      }
      std::memcpy(record + sizeof(f16) * 128, &power, sizeof power);
    }
  }
};

// Rows of one piece, [KV head][kPieceRows]: f16 between -2 and 2. A text is these over and over.
std::vector<f16> random_piece() {
  std::mt19937 random(12);
  std::vector<f16> piece(kKvHeads * kHeadBytes / sizeof(f16));
  for (f16& x : piece) x.bits = static_cast<std::uint16_t>((random() & 0x83ffu) | 0x3800u);
  return piece;
}

// All of them on the device, with the kernel alone.
class Resident {
 public:
  static Result<Resident> create(const PrefillShape& shape, const Queries& queries,
                                 const std::vector<f16>& piece, std::uint32_t rows) {
    Resident made;
    made.shape_ = shape;
    const std::size_t head_bytes = std::size_t{rows} * kRowBytes;
    TL_TRY_ASSIGN(made.rows_, Memory<std::byte>::create(Where::device, kKvHeads * head_bytes));
    std::vector<RowStretch> stretches;
    std::vector<std::uint32_t> first_of_head;
    for (std::uint32_t h = 0; h < kKvHeads; ++h) {
      std::byte* const to = made.rows_.data() + h * head_bytes;
      const auto* const from = reinterpret_cast<const std::byte*>(piece.data()) + h * kHeadBytes;
      for (std::size_t at = 0; at < head_bytes; at += kHeadBytes)
        TL_TRY(check(
            cudaMemcpy(to + at, from, std::min(kHeadBytes, head_bytes - at), cudaMemcpyDefault),
            "filling rows"));
      stretches.push_back({to, h, rows});
      first_of_head.push_back(h);
    }
    first_of_head.push_back(kKvHeads);
    TL_TRY_ASSIGN(made.queries_, Memory<std::byte>::of(Where::device, queries.records));
    TL_TRY_ASSIGN(made.stretches_, Memory<RowStretch>::of(Where::device, stretches));
    TL_TRY_ASSIGN(made.first_of_head_, Memory<std::uint32_t>::of(Where::device, first_of_head));
    const std::size_t states = std::size_t{tiles_of(shape)} * kPrefillTile * kKvHeads;
    TL_TRY_ASSIGN(made.max_, Memory<float>::create(Where::device, states));
    TL_TRY_ASSIGN(made.sum_, Memory<float>::create(Where::device, states));
    TL_TRY_ASSIGN(made.acc_, Memory<float>::create(Where::device, states * kHead.value_dim));
    TL_TRY_ASSIGN(made.out_,
                  Memory<float>::create(Where::device, shape.rows * shape.result_row_bytes() / 4));
    return made;
  }

  Status clear(Stream& stream) const { return clear_states(stream, shape_, states()); }
  Status queue(Stream& stream) const {
    const PrefillLaunch launch = {{.key_bytes = kRowBytes / 2, .row_bytes = kRowBytes},
                                  stretches_.data(),
                                  first_of_head_.data(),
                                  0,
                                  tiles_of(shape_)};
    return attend_tiles(stream, shape_, queries_.data(), launch, states());
  }
  Result<std::vector<float>> results(Stream& stream) const {
    TL_TRY(finish_rows(stream, shape_, states(), 0, shape_.rows, out_.data()));
    TL_TRY(stream.wait());
    return out_.copy();
  }

 private:
  PrefillStates states() const { return {max_.data(), sum_.data(), acc_.data()}; }

  PrefillShape shape_;
  Memory<std::byte> rows_, queries_;
  Memory<RowStretch> stretches_;
  Memory<std::uint32_t> first_of_head_;
  Memory<float> max_, sum_, acc_, out_;
};

// A layer of a prefill whose rows all cross; what is to cross is in pinned memory already.
Result<std::vector<float>> attend_sent(PrefillQueue* queue, const PrefillShape& shape,
                                       const Queries& queries, const std::vector<f16>& piece,
                                       std::uint32_t rows) {
  TL_TRY(queue->begin(shape));
  for (std::uint32_t first = 0; first < shape.rows;) {
    TL_TRY_ASSIGN(const std::span<std::byte> outbox, queue->outbox());
    const auto some = static_cast<std::uint32_t>(
        std::min<std::uint64_t>(outbox.size() / shape.query_row_bytes(), shape.rows - first));
    std::memcpy(outbox.data(), queries.records.data() + first * shape.query_row_bytes(),
                some * shape.query_row_bytes());
    TL_TRY(queue->send_queries(first, some));
    first += some;
  }
  for (std::uint32_t first = 0, sent = 0; first < rows; first += kPieceRows, ++sent) {
    TL_TRY_ASSIGN(const std::span<std::byte> outbox, queue->outbox());
    if (sent < 2) std::memcpy(outbox.data(), piece.data(), kKvHeads * kHeadBytes);  // both of them
    std::vector<RowStretch> stretches;
    for (std::uint32_t h = 0; h < kKvHeads; ++h)
      stretches.push_back({outbox.data() + h * kHeadBytes, h, std::min(kPieceRows, rows - first)});
    TL_TRY(queue->attend({.key_bytes = kRowBytes / 2, .row_bytes = kRowBytes}, stretches,
                         kKvHeads * kHeadBytes));
  }
  std::vector<float> all;
  for (std::uint32_t first = 0; first < shape.rows;) {
    TL_TRY_ASSIGN(const MatView<const float> some, queue->results(first));
    all.insert(all.end(), some.data(), some.data() + some.rows() * some.cols());
    first += static_cast<std::uint32_t>(some.rows());
  }
  return all;
}

// The first and the last query, in the first and the last head: what tensor cores cut off counts as
// two roundings a term; a weight is off by what its score is, and by its own rounding to 11 bits.
Status check_answer(const PrefillShape& shape, const Queries& queries,
                    const std::vector<f16>& piece, std::uint32_t rows,
                    const std::vector<float>& answer) {
  constexpr double kUnit = 0x1p-24, kHalf = 0x1p-11;
  for (const std::size_t token : {std::size_t{0}, std::size_t{shape.rows} - 1})
    for (const std::uint32_t head : {0u, shape.q_heads() - 1}) {
      const std::size_t q = token * shape.q_heads() + head;
      const float* query = queries.rounded.data() + q * 128;
      const f16* of_head = piece.data() + head / kHead.heads * kHeadBytes / sizeof(f16);
      std::vector<double> scores(rows);
      double max = -INFINITY, terms = 0, sum = 0;
      for (std::uint32_t r = 0; r < rows; ++r) {
        const f16* key = of_head + std::size_t{r % kPieceRows} * 256;
        double of_row = 0;
        for (std::size_t i = 0; i < 128; ++i) {
          const double term = double{query[i]} * double{to_float(key[i])};
          scores[r] += term;
          of_row += std::abs(term);
        }
        max = std::max(max, scores[r]);
        terms = std::max(terms, of_row);
      }
      std::vector<double> wanted(128), magnitude(128);
      for (std::uint32_t r = 0; r < rows; ++r) {
        const f16* value = of_head + std::size_t{r % kPieceRows} * 256 + 128;
        const double weight = std::exp(scores[r] - max);
        sum += weight;
        for (std::size_t i = 0; i < 128; ++i) {
          wanted[i] += weight * double{to_float(value[i])};
          magnitude[i] += weight * std::abs(double{to_float(value[i])});
        }
      }
      const double relative =
          2 * std::expm1(4 * terms * 132 * kUnit) + 2 * kHalf + 2 * (rows + 16.0) * kUnit;
      for (std::size_t i = 0; i < 128; ++i)
        if (!(std::abs(double{answer[q * 128 + i]} - wanted[i] / sum) <=
              relative * magnitude[i] / sum))
          return fail(ErrorCode::corrupt, "a prefill over ", rows, " rows gives ",
                      answer[q * 128 + i], " in place of ", wanted[i] / sum);
    }
  return {};
}

void print(std::uint32_t queries, std::uint32_t rows, const char* where, double us,
           double link_share) {
  const double operations = 4.0 * 128 * kKvHeads * kHead.heads * queries * rows;
  std::printf("| %u | %u | %s | %.0f | %.1f | ", queries, rows, where, us, operations / us * 1e-6);
  if (link_share > 0)
    std::printf("%.0f %% |\n", 100 * link_share);
  else
    std::printf("|\n");
  std::fflush(stdout);
}

}  // namespace

Status bench_prefill(Stream& stream, const Limits& limits, std::span<const std::uint32_t> rows,
                     std::uint32_t queries, int rounds) {
  const PrefillShape shape = shape_of(queries);
  const Queries sent(shape);
  const std::vector<f16> piece = random_piece();
  TL_TRY_ASSIGN(
      const auto queue,
      PrefillQueue::create(0, PrefillQueue::bytes(shape, kRowBytes, kKvHeads * kHeadBytes)));
  std::printf(
      "| queries | rows | where | us | TFLOP/s | link |\n"
      "| --- | --- | --- | --- | --- | --- |\n");
  for (const std::uint32_t count : rows) {
    TL_TRY_ASSIGN(const Resident resident, Resident::create(shape, sent, piece, count));
    TL_TRY_ASSIGN(const double there_us, time_us(
                                             stream, rounds, [&] { return resident.clear(stream); },
                                             [&] { return resident.queue(stream); }));
    TL_TRY_ASSIGN(const auto wanted, resident.results(stream));
    TL_TRY(check_answer(shape, sent, piece, count, wanted));
    print(queries, count, "resident", there_us, 0);

    std::vector<double> times;
    for (int round = 0; round <= rounds; ++round) {  // the first warms up
      const auto begun = std::chrono::steady_clock::now();
      TL_TRY_ASSIGN(const auto got, attend_sent(queue.get(), shape, sent, piece, count));
      const std::chrono::duration<double, std::micro> took =
          std::chrono::steady_clock::now() - begun;
      if (got != wanted)
        return fail(ErrorCode::corrupt, "rows that are sent give a prefill other bits");
      if (round > 0) times.push_back(took.count());
    }
    std::nth_element(times.begin(), times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2),
                     times.end());
    const double us = times[times.size() / 2];
    const double bytes = static_cast<double>(kKvHeads) * count * kRowBytes;
    print(queries, count, "pinned", us, bytes / (us * 1e-6) / limits.link);
  }
  return {};
}

}  // namespace thermocline::cuda
