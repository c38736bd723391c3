// How long the sketch takes to choose what a step reads in a layer: microseconds, and index bytes
// over time. The layers together exceed the caches, as a model's do.
//
//   select_bench [rows] [layers] [threads] [passes] [method] [setting...]   (select.share=0)
//
// The method is one that selects by sketch. The choice is checked against exact attention: the mass
// that the rows read would have.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "retrieval/rows_read.h"
#include "runtime/method.h"
#include "tests/support/covered_mass.h"
#include "tests/unit/retrieval/sealed_keys.h"

namespace thermocline {
namespace {

constexpr HeadShape kShape{3, 64, 64};
constexpr std::uint32_t kKvHeads = 3;

struct Layer {
  SealedRuns sealed;
  std::vector<float> query;
  std::vector<ListQuery> lists;
};

double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

int run(std::uint32_t rows, std::uint32_t layers, int threads, int passes, const std::string& name,
        const std::vector<std::string>& settings) {
  const Workers workers(threads);
  const auto method = load_method(name, "", settings, **choose_cpu_table("auto"));
  if (!method) {
    std::fprintf(stderr, "select_bench: %s\n", method.error().message.c_str());
    return 1;
  }
  Selector* const selector = method->select.get();
  std::vector<Layer> stack(layers);
  const std::vector<AttnState> steady(kShape.heads, AttnState{1.0f, 2.0f, nullptr});
  for (std::uint32_t l = 0; l < layers; ++l) {
    Layer& layer = stack[l];
    SyntheticRows synthetic(kShape, kKvHeads, rows, rows / 48 + 1, l);
    for (std::uint32_t first = 0; first < rows; first += kSegmentRows) {
      const Sealing sealing = synthetic.sealing(first, std::min(kSegmentRows, rows - first));
      auto formed = selector->form(sealing, workers);
      if (!formed) return 1;
      layer.sealed.add(sealing, *formed);
    }
    std::mt19937 random(l + 100);
    std::normal_distribution<float> normal(0.0f, 0.2f);
    for (std::uint32_t i = 0; i < kKvHeads * kShape.heads * kShape.key_dim; ++i)
      layer.query.push_back(normal(random));
    for (std::uint32_t h = 0; h < kKvHeads; ++h)
      layer.lists.push_back({h, rows + 20, &layer.query[h * kShape.heads * kShape.key_dim], steady,
                             20, layer.sealed.runs()});
  }
  std::vector<ReadList> out(kKvHeads);
  std::vector<double> times;
  std::uint64_t bytes = 0;
  for (int pass = 0; pass <= passes; ++pass) {  // the first one warms up
    const double start = seconds();
    bytes = 0;
    for (const Layer& layer : stack)
      bytes += selector->choose({{}, kShape, layer.lists}, workers, out)->index_bytes;
    if (pass > 0) times.push_back((seconds() - start) / layers);
  }
  std::sort(times.begin(), times.end());
  const double median = times[times.size() / 2];
  double mass = 0, read = 0;
  for (std::uint32_t h = 0; h < kKvHeads; ++h) {
    const Layer& last = stack.back();
    mass += covered_mass(kShape, last.lists[h], last.sealed.keys(h), out[h]) / kKvHeads;
    read += static_cast<double>(rows_read(last.sealed.runs(), out[h], Form::rows)) / kKvHeads;
  }
  std::printf(
      "%u rows, %u layers, %d threads, %.0f rows read: median %.1f us a layer, best %.1f; %.2f "
      "GB/s; "
      "mass covered %.4f\n",
      rows, layers, threads, read, median * 1e6, times.front() * 1e6,
      static_cast<double>(bytes) / layers / median * 1e-9, mass);
  // Synthetic keys, of which a few dozen hold half of the mass: a choice at random covers no more
  // than its share of the rows.
  return mass > 20 * read / rows ? 0 : 1;
}

}  // namespace
}  // namespace thermocline

int main(int argc, char** argv) {
  const auto argument = [&](int i, int otherwise) {
    return argc > i ? std::atoi(argv[i]) : otherwise;
  };
  return thermocline::run(static_cast<std::uint32_t>(argument(1, 7600)),
                          static_cast<std::uint32_t>(argument(2, 30)), argument(3, 2),
                          argument(4, 200), argc > 5 ? argv[5] : "sketch",
                          std::vector<std::string>(argv + std::min(argc, 6), argv + argc));
}
