#include "tests/support/query_trace.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <iterator>
#include <memory>
#include <span>

#include "runtime/model/gguf.h"
#include "runtime/model/layer.h"
#include "runtime/model/tokenizer.h"
#include "runtime/prefill.h"

namespace thermocline::test {
namespace {

class QueryRecorder {
 public:
  static Result<std::unique_ptr<QueryRecorder>> open(const QueryTraceOptions& options);
  // Reads one prompt, whose rows begin at `first` of each traced layer.
  Status read(std::span<const int> tokens, std::uint32_t first);

  const std::vector<int>& tokens() const { return tokens_; }
  std::vector<LayerQueries> take() { return std::move(traced_); }

 private:
  explicit QueryRecorder(GgufFile file) : file_(std::move(file)) {}
  void record(const Projection& projection, std::uint32_t first, LayerQueries* into) const;

  GgufFile file_;
  ModelSpec spec_;
  Weights weights_;
  Workers workers_;
  const CpuTable* cpu_ = nullptr;
  Model model_;
  std::vector<int> tokens_;
  std::unique_ptr<KvCache> cache_;
  LayerScratch scratch_;
  RowState rows_;
  std::vector<LayerQueries> traced_;
};

Result<std::unique_ptr<QueryRecorder>> QueryRecorder::open(const QueryTraceOptions& options) {
  TL_TRY_ASSIGN(GgufFile file, GgufFile::open(options.model));
  std::unique_ptr<QueryRecorder> made(new QueryRecorder(std::move(file)));
  QueryRecorder& r = *made;
  TL_TRY_ASSIGN(r.spec_, ModelSpec::read(r.file_, EngineOptions{}));
  TL_TRY_ASSIGN(r.weights_, Weights::read(r.file_, r.spec_));
  TL_TRY_ASSIGN(r.cpu_, choose_cpu_table("auto"));
  TL_TRY_ASSIGN(const Tokenizer tokenizer, Tokenizer::create(r.file_));
  std::string text;
  for (const std::string& path : options.texts) {
    std::ifstream file_of_text(path);
    if (!file_of_text) return fail(ErrorCode::not_found, "there is no text '", path, "'");
    text.append(std::istreambuf_iterator<char>(file_of_text), {});
  }
  TL_TRY_ASSIGN(r.tokens_, tokenizer.encode(text, ParseSpecial::no, AddSpecial::no));
  const std::uint64_t wanted = std::uint64_t{options.prompt} * options.prompts;
  if (r.tokens_.size() < wanted)
    return fail(ErrorCode::not_found, "the texts have ", r.tokens_.size(), " tokens, not ", wanted);

  r.model_ = {&r.spec_, &r.weights_, {&r.workers_, r.cpu_}};
  CacheOptions cache;
  cache.layers = r.spec_.layers;
  cache.max_positions = options.prompt;
  TL_TRY_ASSIGN(r.cache_, KvCache::create(cache, 0, "auto"));
  TL_TRY_ASSIGN(r.scratch_, LayerScratch::create(r.model_, kChunkPositions));
  TL_TRY_ASSIGN(r.rows_, RowState::create(r.spec_, options.prompt));
  for (const std::uint32_t l : options.layers) {
    if (l >= r.spec_.layers.size())
      return fail(ErrorCode::invalid_argument, "there is no layer ", l);
    const LayerSpec& s = r.spec_.layers[l];
    LayerQueries layer;
    layer.layer = l;
    layer.kv_heads = s.kv_heads;
    layer.rows = static_cast<std::uint32_t>(wanted);
    layer.shape = {s.q_heads / s.kv_heads, s.key_dim, s.value_dim};
    layer.records.resize(std::size_t{s.kv_heads} * wanted * layer.width());
    layer.queries.resize(std::size_t{s.q_heads} * wanted * s.key_dim);
    r.traced_.push_back(std::move(layer));
  }
  return made;
}

void QueryRecorder::record(const Projection& projection, std::uint32_t first,
                           LayerQueries* into) const {
  const LayerSpec& s = spec_.layers[into->layer];
  const std::uint32_t dim = s.key_dim, group = into->shape.heads;
  workers_.parallel(projection.k.rows(), 64, [&](std::size_t from, std::size_t to) {
    std::vector<float> cosine, sine, key(dim);
    for (std::size_t p = from; p < to; ++p) {
      cosine.clear();
      sine.clear();
      for (const float frequency : s.rope.inverse_frequency) {
        const double angle = static_cast<double>(p) * frequency;
        cosine.push_back(static_cast<float>(std::cos(angle)) * s.rope.magnitude);
        sine.push_back(static_cast<float>(std::sin(angle)) * s.rope.magnitude);
      }
      const auto rotate = [&](float* head) {
        if (!cosine.empty())
          cpu_->dense.rope(cosine.data(), sine.data(), cosine.size(), s.rope.pairs, head);
      };
      for (std::uint32_t h = 0; h < s.kv_heads; ++h) {
        const std::size_t row = std::size_t{h} * into->rows + first + p;
        std::copy_n(projection.k.row(p) + std::size_t{h} * dim, dim, key.data());
        rotate(key.data());
        f16* record = &into->records[row * into->width()];
        cpu_->dense.to_half(key.data(), dim, record);
        cpu_->dense.to_half(projection.v.row(p) + std::size_t{h} * s.value_dim, s.value_dim,
                            record + dim);
        float* query = &into->queries[row * group * dim];
        std::copy_n(projection.q.row(p) + std::size_t{h} * group * dim, group * dim, query);
        for (std::uint32_t g = 0; g < group; ++g) rotate(query + g * dim);
        cpu_->dense.scale(s.scale, group * dim, query);
      }
    }
  });
}

Status QueryRecorder::read(std::span<const int> tokens, std::uint32_t first) {
  const auto count = static_cast<std::uint32_t>(tokens.size());
  TL_TRY_ASSIGN(const Timeline timeline, cache_->start());
  std::vector<Token> at;
  for (std::uint32_t p = 0; p < count; ++p) at.push_back({timeline.id(), p});
  LayerWork work(model_, &scratch_);
  const MatView<float> hidden = rows_.hidden(count);
  // Never committed: what comes after the last traced layer is nobody's business.
  TL_TRY_ASSIGN(const PendingRows pending, PendingRows::begin(cache_.get(), at, Pass::prefill));
  work.embed(tokens, hidden);
  const auto chunks = [&](const auto& body) -> Status {
    for (std::uint32_t from = 0; from < count; from += kChunkPositions)
      TL_TRY(body(from, std::min(kChunkPositions, count - from)));
    return {};
  };
  std::uint32_t last = 0;
  for (const LayerQueries& layer : traced_) last = std::max(last, layer.layer);
  for (std::uint32_t l = 0; l <= last; ++l) {
    const LayerId id{l};
    const Projection all = rows_.projection(spec_.layers[l], count);
    const MatView<float> mixed = rows_.mixed(spec_.layers[l], count);
    TL_TRY(chunks([&](auto from, auto n) {
      return work.project(
          id, hidden.rows_from(from, n),
          {all.q.rows_from(from, n), all.k.rows_from(from, n), all.v.rows_from(from, n)});
    }));
    for (LayerQueries& layer : traced_)
      if (layer.layer == l) record(all, first, &layer);
    if (l == last) break;
    TL_TRY(cache_->append(id, all.k, all.v));
    TL_TRY(cache_->attend(id, all.q, mixed));
    TL_TRY(chunks([&](auto from, auto n) {
      return work.finish(id, mixed.rows_from(from, n), hidden.rows_from(from, n));
    }));
  }
  return {};
}

}  // namespace

Result<std::vector<LayerQueries>> trace_queries(const QueryTraceOptions& options) {
  TL_TRY_ASSIGN(const auto recorder, QueryRecorder::open(options));
  for (std::uint32_t p = 0; p < options.prompts; ++p)
    TL_TRY(recorder->read(
        std::span(recorder->tokens()).subspan(std::size_t{p} * options.prompt, options.prompt),
        p * options.prompt));
  return recorder->take();
}

}  // namespace thermocline::test
