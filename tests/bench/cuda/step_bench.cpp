#include "tests/bench/cuda/step_bench.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include "kernels/device.h"
#include "tests/bench/cuda/attention_bench.h"

namespace thermocline::cuda {
namespace {

constexpr std::uint32_t kDim = 128, kHeadsAKvHead = 4, kChunkRows = 8, kSinks = 4, kTail = 128;
constexpr double kShare = 0.02;  // of the rows, where some are chosen

// A model, of which all layers and matrices have the same values.
struct Network {
  std::uint32_t q_heads = 0, kv_heads = 0;
  LayersShape shape;
  std::vector<bf16> values;  // of every matrix
  std::vector<float> ones;
  LayerWeights layer;
  HeadWeights head;
  double weight_bytes = 0;  // of all layers and the head

  static Network of(std::uint32_t width, std::uint32_t layers);
};

Network Network::of(std::uint32_t width, std::uint32_t layers) {
  Network made;
  made.q_heads = width / kDim;
  made.kv_heads = std::max(1u, made.q_heads / kHeadsAKvHead);
  const std::size_t inner = std::size_t{width} * 7 / 2, vocabulary = std::size_t{width} / 32 * 1002;
  const std::size_t kv = std::size_t{made.kv_heads} * kDim;
  made.shape = {width, inner, width, kv, kv, width, 1e-5f, Activation::silu};
  std::mt19937 random(3);
  made.values.resize(std::max(inner, vocabulary) * width);
  for (bf16& x : made.values)  // small enough that hidden rows stay of their size
    x = to_bf16(static_cast<float>(static_cast<int>(random() % 2001) - 1000) * 2e-6f);
  made.ones.assign(width, 1.0f);
  const auto matrix = [&](std::size_t matrix_rows, std::size_t cols) {
    return WeightView{WeightType::bf16, reinterpret_cast<const std::byte*>(made.values.data()),
                      matrix_rows, cols};
  };
  made.layer.q = made.layer.output = matrix(width, width);
  made.layer.k = made.layer.v = matrix(kv, width);
  made.layer.gate = made.layer.up = matrix(inner, width);
  made.layer.down = matrix(width, inner);
  made.layer.attention_norm = made.layer.feed_forward_norm = made.ones;
  made.head = {made.ones, matrix(vocabulary, width)};
  made.weight_bytes = static_cast<double>(layers) * static_cast<double>(layer_bytes(made.layer)) +
                      static_cast<double>(head_bytes(made.head));
  return made;
}

// Sinks, tail and sealed rows of a layer, and what chunks are chosen by.
struct KvThere {
  Memory<std::byte> steady, rows;
  Memory<f16> landmarks;
  std::vector<IndexedRows> runs;  // [KV head][run]
  ChoiceFormat format;
  std::uint32_t read = 0;

  static Result<KvThere> create(const Network& network, std::uint32_t rows, bool everything);
};

// `values` over and over.
template <typename T>
Status fill(const Memory<T>& memory, const std::vector<T>& values) {
  for (std::size_t at = 0; at < memory.count(); at += values.size())
    TL_TRY(check(
        cudaMemcpy(memory.data() + at, values.data(),
                   std::min(values.size(), memory.count() - at) * sizeof(T), cudaMemcpyDefault),
        "filling rows"));
  return {};
}

Result<KvThere> KvThere::create(const Network& network, std::uint32_t rows, bool everything) {
  KvThere made;
  std::mt19937 random(5);
  const auto halves = [&](std::size_t count) {
    std::vector<f16> values(count);
    for (f16& x : values) x = to_f16(std::normal_distribution<float>()(random));
    return values;
  };
  constexpr std::uint32_t kRecord = 2 * kDim * sizeof(f16);
  const std::vector<f16> piece = halves(std::size_t{1024} * 2 * kDim);
  const auto* const bytes = reinterpret_cast<const std::byte*>(piece.data());
  const std::vector<std::byte> records(bytes, bytes + piece.size() * sizeof(f16));
  const std::size_t heads = network.kv_heads, runs = rows / kRunRows,
                    chunks = kRunRows / kChunkRows;
  TL_TRY_ASSIGN(made.steady,
                Memory<std::byte>::create(Where::device, heads * (kSinks + kTail) * kRecord));
  TL_TRY_ASSIGN(made.rows, Memory<std::byte>::create(Where::device, heads * rows * kRecord));
  TL_TRY(fill(made.steady, records));
  TL_TRY(fill(made.rows, records));
  made.format = {.head = {network.q_heads / network.kv_heads, kDim, kDim},
                 .bits = 0,
                 .unit = {UnitScore::landmarks, GroupRank::max, kChunkRows},
                 .everything = everything,
                 .key_bytes = kDim * sizeof(f16),
                 .row_bytes = kRecord};
  made.read = everything ? rows : static_cast<std::uint32_t>(kShare * rows);
  if (!everything) {
    TL_TRY_ASSIGN(made.landmarks, Memory<f16>::create(Where::device, heads * runs * chunks * kDim));
    TL_TRY(fill(made.landmarks, halves(chunks * kDim)));
  }
  for (std::size_t h = 0; h < heads; ++h)
    for (std::size_t r = 0; r < runs; ++r) {
      IndexedRows run;
      run.rows = kRunRows;
      if (!everything) {
        run.units = static_cast<std::uint32_t>(chunks);
        run.unit_keys = reinterpret_cast<const std::byte*>(made.landmarks.data() +
                                                           (h * runs + r) * chunks * kDim);
        run.unit_key_bytes = kDim * sizeof(f16);
      }
      run.row = made.rows.data() + (h * rows + r * kRunRows) * kRecord + kDim * sizeof(f16);
      made.runs.push_back(run);
    }
  return made;
}

// A step of one sequence, again and again at the same position.
class Step {
 public:
  static Result<Step> create(const Network& network, std::uint32_t rows, std::uint32_t layers,
                             bool everything) {
    Step made(network, layers);
    TL_TRY_ASSIGN(made.device_, open_device(0));
    TL_TRY_ASSIGN(made.kv_, KvThere::create(network, rows, everything));
    TL_TRY_ASSIGN(made.layers_, made.device_->open_layers(network.shape, 1));
    for (std::uint32_t l = 0; l < layers; ++l) TL_TRY(made.layers_->add(network.layer));
    TL_TRY(made.layers_->add(network.head));
    const auto runs = static_cast<std::uint32_t>(rows / kRunRows);
    StepBounds bounds;
    bounds.layers = layers;
    bounds.rows = 1;
    bounds.steady = kSinks + kTail;
    bounds.head = made.kv_.format.head;
    bounds.kv_heads = bounds.lists = network.kv_heads;
    bounds.formats = {made.kv_.format};
    bounds.chosen = {.runs = runs,
                     .rows = rows,
                     .units = everything ? 0 : rows / kChunkRows,
                     .read = made.kv_.read};
    TL_TRY_ASSIGN(made.step_, made.device_->open_step(bounds));
    for (std::uint32_t h = 0; h < network.kv_heads; ++h) {
      ChoiceQuestion question;
      question.runs = std::span(made.kv_.runs).subspan(std::size_t{h} * runs, runs);
      question.read = made.kv_.read;
      made.questions_.push_back(question);
      made.lists_.push_back(h);
    }
    return made;
  }

  Status run() {
    constexpr std::uint32_t kRecord = 2 * kDim * sizeof(f16);
    const std::size_t width = hidden_.size();
    TL_TRY(layers_->write(MatView<const float>(hidden_.data(), 1, width)));
    TL_TRY(step_->start(layers_->queue()));
    std::byte* const sinks = kv_.steady.data();
    std::byte* const tail = sinks + kv_heads_ * kSinks * kRecord;
    StepRow row;
    row.cosine = cosine_.data();
    row.sine = sine_.data();
    row.record = tail + (kTail - 1) * kRecord;
    row.head_apart = kTail * kRecord;
    row.steady[0] = {sinks, kSinks * kRecord, kSinks};
    row.steady[1] = {tail, kTail * kRecord, kTail};
    StepLayer layer;
    layer.head = kv_.format.head;
    layer.kv_heads = kv_heads_;
    layer.layout = RopePairs::neighbours;
    layer.pairs = kDim / 2;
    layer.scale = 1.0f / std::sqrt(static_cast<float>(kDim));
    layer.rows = {&row, 1};
    for (std::uint32_t l = 0; l < count_; ++l) {
      TL_TRY_ASSIGN(const RowsThere at, layers_->project(l));
      TL_TRY(step_->begin(at, layer));
      TL_TRY(step_->choose(kv_.format, questions_, lists_));
      TL_TRY(step_->end());
      TL_TRY(layers_->finish(l));
    }
    TL_TRY(layers_->head({logits.data(), 1, logits.size()}));
    TL_TRY_ASSIGN(const auto answers, step_->finish());
    read = 0;
    for (const DeviceStep::Answer& answer : answers)
      for (const std::uint32_t rows : answer.read) read += rows;
    return {};
  }
  std::uint64_t replays() const { return layers_->replays(); }

  std::vector<float> logits;
  std::uint64_t read = 0;  // rows, in all layers

 private:
  Step(const Network& network, std::uint32_t layers)
      : logits(network.head.output.rows), count_(layers), kv_heads_(network.kv_heads) {
    std::mt19937 random(9);
    for (std::size_t i = 0; i < network.shape.width; ++i)
      hidden_.push_back(std::normal_distribution<float>()(random));
    for (std::uint32_t i = 0; i < kDim / 2; ++i) {
      cosine_.push_back(std::cos(0.1f * static_cast<float>(i)));
      sine_.push_back(std::sin(0.1f * static_cast<float>(i)));
    }
  }

  std::unique_ptr<Device> device_;
  KvThere kv_;
  std::unique_ptr<DeviceLayers> layers_;
  std::unique_ptr<DeviceStep> step_;  // which waits for their queue when it goes
  std::vector<ChoiceQuestion> questions_;
  std::vector<std::uint32_t> lists_;
  std::vector<float> hidden_, cosine_, sine_;
  std::uint32_t count_, kv_heads_;
};

Result<double> time_ms(Step* step) {
  const auto begin = std::chrono::steady_clock::now();
  TL_TRY(step->run());
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin)
      .count();
}

Status measure(const Limits& limits, const Network& network, std::uint32_t rows,
               std::uint32_t layers, bool everything, int rounds) {
  TL_TRY_ASSIGN(Step step, Step::create(network, rows, layers, everything));
  TL_TRY_ASSIGN(const double queued, time_ms(&step));
  const std::vector<float> first = step.logits;
  if (std::ranges::any_of(first, [](float x) { return !std::isfinite(x); }))
    return fail(ErrorCode::corrupt, "a step's logits are not finite");
  TL_TRY(step.run());  // becomes a graph
  std::vector<double> times;
  for (int round = 0; round < rounds; ++round) {
    TL_TRY_ASSIGN(const double ms, time_ms(&step));
    times.push_back(ms);
    if (step.logits != first)
      return fail(ErrorCode::corrupt, "a step gave other logits as a graph");
  }
  std::nth_element(times.begin(), times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2),
                   times.end());
  const double ms = times[times.size() / 2];
  const double kv_bytes = static_cast<double>(step.read) * 2 * kDim * sizeof(f16);
  const double index_bytes = everything ? 0.0
                                        : static_cast<double>(layers) * network.kv_heads * rows /
                                              kChunkRows * kDim * sizeof(f16);
  std::printf("| %u | %s | %.2f | %.2f | %.0f %% | %.1f | %llu |\n", rows,
              everything ? "all rows" : "2 % by landmarks", queued, ms,
              100 * (network.weight_bytes + kv_bytes + index_bytes) / (ms * 1e-3) / limits.device,
              1e3 / ms, static_cast<unsigned long long>(step.replays()));
  std::fflush(stdout);
  return {};
}

}  // namespace

Status bench_step(const Limits& limits, std::span<const std::uint32_t> rows, std::uint32_t width,
                  std::uint32_t layers, int rounds) {
  std::printf(
      "| rows | attention | first step, ms | a step, ms | HBM | tokens/s | graphs |\n"
      "| --- | --- | --- | --- | --- | --- | --- |\n");
  const Network network = Network::of(width, layers);
  for (const std::uint32_t count : rows)
    for (const bool everything : {true, false})
      TL_TRY(measure(limits, network, count, layers, everything, rounds));
  return {};
}

}  // namespace thermocline::cuda
