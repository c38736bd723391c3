#include "tests/support/asked_head.h"

#include <algorithm>
#include <cstdlib>
#include <numeric>
#include <random>
#include <sstream>
#include <string>

namespace thermocline::test {
namespace {

std::vector<std::uint32_t> numbers(const char* list) {
  std::vector<std::uint32_t> out;
  std::stringstream in(list);
  for (std::string one; std::getline(in, one, ',');)
    out.push_back(static_cast<std::uint32_t>(std::atoi(one.c_str())));
  return out;
}

void find_best(const CpuTable& cpu, const Workers& workers, AskedHead* of) {
  const LayerQueries& layer = *of->layer;
  const RawRows rows = layer.rows_of(of->head);
  of->best.resize(of->asked.size() * layer.shape.heads);
  workers.parallel(of->asked.size(), 1, [&](std::size_t first, std::size_t last) {
    std::vector<float> score(std::size_t{layer.shape.heads} * layer.rows);
    for (std::size_t q = first; q < last; ++q) {
      cpu.sketch.dot_rows(RowFormat::f16, rows.data, rows.layout.bytes(), layer.rows,
                          layer.shape.key_dim, of->query(q), static_cast<int>(layer.shape.heads),
                          score.data(), layer.rows);
      for (std::size_t h = 0; h < layer.shape.heads; ++h)
        of->best[q * layer.shape.heads + h] =
            best_of(score.data() + h * layer.rows, layer.rows, AskedHead::kBest);
    }
  });
}

}  // namespace

std::vector<float> AskedHead::shown(std::uint32_t from, std::uint32_t to) const {
  std::vector<float> queries;
  for (std::uint32_t r = from; r < to; ++r) {
    if (r % prompt >= prompt - prompt / 16 || r % sample != 0) continue;
    const float* q = layer->query(head, r);
    queries.insert(queries.end(), q, q + layer->shape.heads * layer->shape.key_dim);
  }
  return queries;
}

AskedHeadOptions AskedHeadOptions::of(std::span<const char* const> arguments,
                                      std::span<const char* const> texts) {
  AskedHeadOptions options;
  const auto number = [&](std::size_t i) {
    return static_cast<std::uint32_t>(std::atoi(arguments[i]));
  };
  options.trace.model = arguments[0];
  options.trace.layers = numbers(arguments[1]);
  options.heads = numbers(arguments[2]);
  options.trace.prompt = std::max(16u, number(4));
  options.trace.prompts = number(3) / options.trace.prompt;
  options.sample = std::max(1u, number(5));
  options.queries = number(6);
  options.trace.texts.assign(texts.begin(), texts.end());
  return options;
}

Result<AskedHeads> ask_heads(const AskedHeadOptions& options, const CpuTable& cpu,
                             const Workers& workers) {
  AskedHeads made;
  if (options.trace.prompts == 0 || options.queries == 0)
    return fail(ErrorCode::invalid_argument, "no keys or no queries: ROWS holds a PROMPT or more");
  TL_TRY_ASSIGN(made.layers, trace_queries(options.trace));
  const std::uint32_t prompt = options.trace.prompt;
  std::mt19937 random(1);
  for (const LayerQueries& layer : made.layers)
    for (const std::uint32_t head : options.heads) {
      if (head >= layer.kv_heads)
        return fail(ErrorCode::invalid_argument, "there is no KV head ", head);
      AskedHead of{&layer, head, prompt, options.sample, {}, {}};
      for (std::uint32_t q = 0; q < options.queries; ++q)
        of.asked.push_back(static_cast<std::uint32_t>(random() % options.trace.prompts + 1) *
                               prompt -
                           1 - static_cast<std::uint32_t>(random() % (prompt / 16)));
      find_best(cpu, workers, &of);
      made.heads.push_back(std::move(of));
    }
  return made;
}

std::vector<std::uint32_t> best_of(const float* score, std::size_t count, std::size_t k) {
  std::vector<std::uint32_t> order(count);
  std::iota(order.begin(), order.end(), 0);
  k = std::min(k, count);
  std::nth_element(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(k - 1), order.end(),
                   [&](auto a, auto b) { return score[a] > score[b]; });
  order.resize(k);
  std::sort(order.begin(), order.end());
  return order;
}

}  // namespace thermocline::test
