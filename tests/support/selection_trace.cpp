#include "tests/support/selection_trace.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <iterator>
#include <memory>
#include <numeric>
#include <span>

#include "kernels/format/row.h"
#include "retrieval/select/sketch.h"
#include "runtime/model/gguf.h"
#include "runtime/model/layer.h"
#include "runtime/model/tokenizer.h"
#include "runtime/prefill.h"
#include "tests/unit/retrieval/sealed_keys.h"

namespace thermocline::test {
namespace {

// As `sketch` ships.
constexpr std::uint32_t kSinks = 4, kRecent = 16;
constexpr std::size_t kHeaviest = 1024;

// Rows that stay raw, of one KV head: keys rotated.
using RawKeys = std::vector<std::vector<float>>;

class Recorder {
 public:
  static Result<std::unique_ptr<Recorder>> open(const TraceOptions& options);
  Status prefill();
  Status decode();
  SelectionTrace take() { return std::move(trace_); }

 private:
  struct Layer {
    SealedRuns sealed;
    std::vector<RawKeys> raw;  // by KV head: sinks, then what came after the sealed rows
  };
  explicit Recorder(GgufFile file) : file_(std::move(file)) {}

  LayerId id(std::uint32_t l) const { return LayerId{l}; }
  const LayerSpec& spec(std::uint32_t l) const { return spec_.layers[l]; }
  HeadShape shape(std::uint32_t l) const {
    return {spec(l).q_heads / spec(l).kv_heads, spec(l).key_dim, spec(l).value_dim};
  }
  HeadTrace& trace(std::uint32_t l, std::uint32_t h) { return trace_.of[l * trace_.heads + h]; }
  void rotate(std::uint32_t l, std::uint32_t position, float* head) const;
  // The queries of a row, rotated and scaled.
  std::vector<float> queries(std::uint32_t l, std::uint32_t position, const float* row) const;
  Status seal(std::uint32_t l, const Projection& projection);
  void keep_raw(std::uint32_t l, std::uint32_t position, const float* keys);
  // What the selector picks, of each KV head.
  Result<std::vector<std::vector<std::uint32_t>>> choose(std::uint32_t l, std::uint32_t position,
                                                         const std::vector<float>& query);
  std::vector<AttnState> steady(std::uint32_t l, std::uint32_t head, const float* query) const;
  void weigh(std::uint32_t l, std::uint32_t head, const float* query, HeadTrace::Step* step) const;
  // The hidden state after a layer's attention.
  std::vector<float> attended(std::uint32_t l, const float* hidden, const float* mixed) const;

  TraceOptions options_;
  GgufFile file_;
  ModelSpec spec_;
  Weights weights_;
  Workers workers_;
  const CpuTable* cpu_ = nullptr;
  Model model_;
  std::vector<int> tokens_;
  std::uint32_t context_ = 0, sealed_end_ = 0;
  std::unique_ptr<KvCache> cache_;
  Timeline timeline_;
  LayerScratch scratch_;
  std::unique_ptr<SketchSelector> selector_;
  std::vector<Layer> layers_;
  SelectionTrace trace_;
};

Result<std::unique_ptr<Recorder>> Recorder::open(const TraceOptions& options) {
  TL_TRY_ASSIGN(GgufFile file, GgufFile::open(options.model));
  std::unique_ptr<Recorder> made(new Recorder(std::move(file)));
  Recorder& r = *made;
  r.options_ = options;
  TL_TRY_ASSIGN(r.spec_, ModelSpec::read(r.file_, EngineOptions{}));
  TL_TRY_ASSIGN(r.weights_, Weights::read(r.file_, r.spec_));
  TL_TRY_ASSIGN(r.cpu_, choose_cpu_table("auto"));
  TL_TRY_ASSIGN(const Tokenizer tokenizer, Tokenizer::create(r.file_));
  std::ifstream file_of_text(options.text);
  const std::string text{std::istreambuf_iterator<char>(file_of_text), {}};
  TL_TRY_ASSIGN(r.tokens_, tokenizer.encode(text, ParseSpecial::no, AddSpecial::yes));
  const std::size_t most =
      r.tokens_.size() - std::min<std::size_t>(r.tokens_.size(), options.steps);
  r.context_ = static_cast<std::uint32_t>(
      options.context == 0 ? most : std::min<std::size_t>(options.context, most));
  if (r.context_ < kSinks + kRecent + options.prompt + kBlockRows || r.context_ > kSegmentRows)
    return fail(ErrorCode::invalid_argument, options.text, ": ", r.tokens_.size(),
                " tokens are too few, or more than a segment holds");
  r.sealed_end_ = kSinks + (r.context_ - kSinks - kRecent) / kBlockRows * kBlockRows;
  for (const LayerSpec& layer : r.spec_.layers)
    if (layer.window > 0 || layer.kv_heads != r.spec_.layers[0].kv_heads)
      return fail(ErrorCode::unsupported, "only models whose layers are alike are traced");

  r.model_ = {&r.spec_, &r.weights_, {&r.workers_, r.cpu_}};
  CacheOptions cache;
  cache.layers = r.spec_.layers;
  cache.max_positions = r.context_ + options.steps;
  TL_TRY_ASSIGN(r.cache_, KvCache::create(cache, 0, "auto"));
  TL_TRY_ASSIGN(r.timeline_, r.cache_->start());
  TL_TRY_ASSIGN(r.scratch_, LayerScratch::create(r.model_, kChunkPositions));
  TL_TRY_ASSIGN(r.selector_, SketchSelector::create({}, *r.cpu_));
  r.layers_.resize(r.spec_.layers.size());
  r.trace_.layers = static_cast<std::uint32_t>(r.spec_.layers.size());
  r.trace_.heads = r.spec(0).kv_heads;
  r.trace_.rows = r.sealed_end_ - kSinks;
  r.trace_.of.resize(std::size_t{r.trace_.layers} * r.trace_.heads);
  return made;
}

void Recorder::rotate(std::uint32_t l, std::uint32_t position, float* head) const {
  const RopeSpec& rope = spec(l).rope;
  std::vector<float> cosine, sine;
  for (const float frequency : rope.inverse_frequency) {
    const double angle = static_cast<double>(position) * frequency;
    cosine.push_back(static_cast<float>(std::cos(angle)) * rope.magnitude);
    sine.push_back(static_cast<float>(std::sin(angle)) * rope.magnitude);
  }
  if (!cosine.empty())
    cpu_->dense.rope(cosine.data(), sine.data(), cosine.size(), rope.pairs, head);
}

std::vector<float> Recorder::queries(std::uint32_t l, std::uint32_t position,
                                     const float* row) const {
  std::vector<float> out(row, row + spec(l).q_heads * spec(l).key_dim);
  for (std::uint32_t h = 0; h < spec(l).q_heads; ++h)
    rotate(l, position, out.data() + h * spec(l).key_dim);
  cpu_->dense.scale(spec(l).scale, out.size(), out.data());
  return out;
}

void Recorder::keep_raw(std::uint32_t l, std::uint32_t position, const float* keys) {
  const LayerSpec& s = spec(l);
  layers_[l].raw.resize(s.kv_heads);
  for (std::uint32_t h = 0; h < s.kv_heads; ++h) {
    std::vector<float> key(keys + h * s.key_dim, keys + (h + 1) * s.key_dim);
    rotate(l, position, key.data());
    layers_[l].raw[h].push_back(std::move(key));
  }
}

// All rows between the sinks and the tail, as one segment.
Status Recorder::seal(std::uint32_t l, const Projection& projection) {
  const LayerSpec& s = spec(l);
  const RowLayout layout{RowFormat::f16, RowFormat::f16, 2 * s.key_dim, 2 * s.value_dim};
  const std::size_t width = s.key_dim + s.value_dim;
  std::vector<f16> rows(std::size_t{s.kv_heads} * trace_.rows * width);
  workers_.parallel(trace_.rows, 64, [&](std::size_t first, std::size_t last) {
    std::vector<float> key(s.key_dim);
    for (std::size_t r = first; r < last; ++r)
      for (std::uint32_t h = 0; h < s.kv_heads; ++h) {
        f16* to = rows.data() + (h * trace_.rows + r) * width;
        std::copy_n(projection.k.row(kSinks + r) + h * s.key_dim, s.key_dim, key.data());
        rotate(l, kSinks + static_cast<std::uint32_t>(r), key.data());
        cpu_->dense.to_half(key.data(), s.key_dim, to);
        cpu_->dense.to_half(projection.v.row(kSinks + r) + h * s.value_dim, s.value_dim,
                            to + s.key_dim);
      }
  });
  const RawRows raw{layout,
                    s.kv_heads,
                    kSinks,
                    trace_.rows,
                    reinterpret_cast<const std::byte*>(rows.data()),
                    std::size_t{trace_.rows} * layout.bytes()};
  const Sealing sealing{id(l), shape(l), raw};
  TL_TRY_ASSIGN(const Formation formation, selector_->form(sealing, workers_));
  layers_[l].sealed.add(sealing, formation);
  return {};
}

std::vector<AttnState> Recorder::steady(std::uint32_t l, std::uint32_t head,
                                        const float* query) const {
  const HeadShape of = shape(l);
  std::vector<AttnState> states(of.heads);
  for (std::uint32_t g = 0; g < of.heads; ++g) {
    std::vector<float> scores;
    for (const std::vector<float>& key : layers_[l].raw[head])
      scores.push_back(std::inner_product(key.begin(), key.end(), query + g * of.key_dim, 0.0f));
    states[g].max = *std::max_element(scores.begin(), scores.end());
    for (const float score : scores) states[g].sum += std::exp(score - states[g].max);
  }
  return states;
}

Result<std::vector<std::vector<std::uint32_t>>> Recorder::choose(std::uint32_t l,
                                                                 std::uint32_t position,
                                                                 const std::vector<float>& query) {
  const HeadShape of = shape(l);
  const std::uint32_t heads = spec(l).kv_heads;
  std::vector<std::vector<AttnState>> states;
  std::vector<ListQuery> lists;
  for (std::uint32_t h = 0; h < heads; ++h)
    states.push_back(steady(l, h, query.data() + std::size_t{h} * of.heads * of.key_dim));
  for (std::uint32_t h = 0; h < heads; ++h)
    lists.push_back({h, position + 1, query.data() + std::size_t{h} * of.heads * of.key_dim,
                     states[h], static_cast<std::uint32_t>(layers_[l].raw[h].size()),
                     layers_[l].sealed.runs()});
  std::vector<ReadList> read(heads);
  TL_TRY(selector_->choose({id(l), of, lists}, workers_, read));
  std::vector<std::vector<std::uint32_t>> picked(heads);
  for (std::uint32_t h = 0; h < heads; ++h)
    for (const Read& one : read[h].reads) {
      if (one.form != Form::rows) continue;
      if (one.everything) return fail(ErrorCode::invalid_argument, "everything would be read");
      for (std::uint32_t p = one.first; p < one.last; ++p)
        for (RowSet left = read[h].picks[p].rows; left != 0; left &= left - 1)
          picked[h].push_back(read[h].picks[p].block * kBlockRows +
                              static_cast<std::uint32_t>(std::countr_zero(left)));
    }
  return picked;
}

// Each row's share of the attention to all sealed rows.
void Recorder::weigh(std::uint32_t l, std::uint32_t head, const float* query,
                     HeadTrace::Step* step) const {
  const HeadShape of = shape(l);
  const Segment& segment = *layers_[l].sealed.runs()[0].rows;
  const std::byte* record = layers_[l].sealed.records(segment, head);
  std::vector<float> score(std::size_t{of.heads} * segment.rows), key(of.key_dim);
  for (std::uint32_t r = 0; r < segment.rows; ++r, record += segment.layout.bytes()) {
    cpu_->dense.from_half(record, of.key_dim, key.data());
    for (std::uint32_t g = 0; g < of.heads; ++g) {
      const float* q = query + g * of.key_dim;
      float lane[16] = {};
      for (std::uint32_t d = 0; d < of.key_dim; ++d) lane[d % 16] += key[d] * q[d];
      score[g * segment.rows + r] = std::accumulate(lane, lane + 16, 0.0f);
    }
  }
  std::vector<float> mass(segment.rows);
  for (std::uint32_t g = 0; g < of.heads; ++g) {
    float* s = score.data() + std::size_t{g} * segment.rows;
    const float max = *std::max_element(s, s + segment.rows);
    float sum = 0;
    for (std::uint32_t r = 0; r < segment.rows; ++r) sum += s[r] = std::exp(s[r] - max);
    for (std::uint32_t r = 0; r < segment.rows; ++r) mass[r] += s[r] / sum;
  }
  std::vector<std::uint32_t> order(segment.rows);
  std::iota(order.begin(), order.end(), 0);
  const std::size_t kept = std::min<std::size_t>(kHeaviest, order.size());
  std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(kept), order.end(),
                    [&](auto a, auto b) { return mass[a] > mass[b]; });
  order.resize(kept);
  step->heaviest = order;
  for (const std::uint32_t row : order) step->mass.push_back(mass[row]);
}

Status Recorder::prefill() {
  TL_TRY_ASSIGN(const RowState rows, RowState::create(spec_, context_));
  std::vector<Token> at;
  for (std::uint32_t p = 0; p < context_; ++p) at.push_back({timeline_.id(), p});
  LayerWork work(model_, &scratch_);
  const MatView<float> hidden = rows.hidden(context_);
  TL_TRY_ASSIGN(PendingRows pending, PendingRows::begin(cache_.get(), at, Pass::prefill));
  work.embed(std::span(tokens_).first(context_), hidden);
  const auto chunks = [&](const auto& body) -> Status {
    for (std::uint32_t first = 0; first < context_; first += kChunkPositions)
      TL_TRY(body(first, std::min(kChunkPositions, context_ - first)));
    return {};
  };
  for (std::uint32_t l = 0; l < trace_.layers; ++l) {
    const Projection all = rows.projection(spec(l), context_);
    const MatView<float> mixed = rows.mixed(spec(l), context_);
    TL_TRY(chunks([&](auto first, auto n) {
      return work.project(
          id(l), hidden.rows_from(first, n),
          {all.q.rows_from(first, n), all.k.rows_from(first, n), all.v.rows_from(first, n)});
    }));
    for (std::uint32_t p = 0; p < kSinks; ++p) keep_raw(l, p, all.k.row(p));
    TL_TRY(seal(l, all));
    for (std::uint32_t p = sealed_end_; p < context_; ++p) keep_raw(l, p, all.k.row(p));
    for (std::uint32_t p = context_ - options_.prompt; p < context_; ++p) {
      TL_TRY_ASSIGN(auto picked, choose(l, p, queries(l, p, all.q.row(p))));
      for (std::uint32_t h = 0; h < trace_.heads; ++h) {
        trace(l, h).prompt.emplace_back();
        trace(l, h).prompt.back().picked = std::move(picked[h]);
      }
    }
    TL_TRY(cache_->append(id(l), all.k, all.v));
    TL_TRY(cache_->attend(id(l), all.q, mixed));
    TL_TRY(chunks([&](auto first, auto n) {
      return work.finish(id(l), mixed.rows_from(first, n), hidden.rows_from(first, n));
    }));
  }
  return pending.commit();
}

std::vector<float> Recorder::attended(std::uint32_t l, const float* hidden,
                                      const float* mixed) const {
  const LayerWeights& w = weights_.layers[l];
  std::vector<float> added(spec_.width);
  workers_.parallel(spec_.width, 32, [&](std::size_t first, std::size_t last) {
    std::vector<float> weight(std::size_t{spec(l).q_heads} * spec(l).value_dim);
    for (std::size_t r = first; r < last; ++r) {
      cpu_->matvec.dequantize(w.output, r, weight.data());
      added[r] = std::inner_product(weight.begin(), weight.end(), mixed, 0.0f);
    }
  });
  if (!w.attention_post_norm.empty())
    cpu_->dense.rms_norm(added.data(), w.attention_post_norm.data(), spec_.width,
                         spec_.norm_epsilon, added.data());
  cpu_->dense.add(hidden, spec_.width, added.data());
  return added;
}

Status Recorder::decode() {
  TL_TRY_ASSIGN(const RowState rows, RowState::create(spec_, 1));
  TL_TRY_ASSIGN(const RowState guess, RowState::create(spec_, 1));
  LayerWork work(model_, &scratch_);
  const MatView<float> hidden = rows.hidden(1);
  for (std::uint32_t t = 0; t < options_.steps; ++t) {
    const Token at{timeline_.id(), context_ + t};
    TL_TRY_ASSIGN(PendingRows pending, PendingRows::begin(cache_.get(), {&at, 1}, Pass::decode));
    work.embed(std::span(tokens_).subspan(at.position, 1), hidden);
    const auto choose_guessed = [&](std::uint32_t l, MatView<float> from) {
      const Projection guessed = guess.projection(spec(l), 1);
      Status made = work.project(id(l), from, guessed);
      TL_CHECK(made.has_value());
      return choose(l, at.position, queries(l, at.position, guessed.q.row(0)));
    };
    for (std::uint32_t l = 0; l < trace_.layers; ++l) {
      const Projection projection = rows.projection(spec(l), 1);
      const MatView<float> mixed = rows.mixed(spec(l), 1);
      for (std::uint32_t h = 0; h < trace_.heads; ++h)
        if (l == 0) trace(l, h).steps.emplace_back();
      const bool below = l + 1 < trace_.layers;
      if (below) {
        TL_TRY_ASSIGN(auto guessed, choose_guessed(l + 1, hidden));
        for (std::uint32_t h = 0; h < trace_.heads; ++h) {
          trace(l + 1, h).steps.emplace_back();
          trace(l + 1, h).steps.back().guessed_before = std::move(guessed[h]);
        }
      }
      TL_TRY(work.project(id(l), hidden, projection));
      keep_raw(l, at.position, projection.k.row(0));
      const std::vector<float> query = queries(l, at.position, projection.q.row(0));
      TL_TRY_ASSIGN(auto picked, choose(l, at.position, query));
      workers_.parallel(trace_.heads, 1, [&](std::size_t first, std::size_t last) {
        for (std::size_t h = first; h < last; ++h) {
          HeadTrace::Step& step = trace(l, static_cast<std::uint32_t>(h)).steps.back();
          step.picked = std::move(picked[h]);
          weigh(l, static_cast<std::uint32_t>(h),
                query.data() + h * shape(l).heads * shape(l).key_dim, &step);
        }
      });
      TL_TRY(cache_->append(id(l), projection.k, projection.v));
      TL_TRY(cache_->attend(id(l), projection.q, mixed));
      if (below) {
        std::vector<float> between = attended(l, hidden.row(0), mixed.row(0));
        TL_TRY_ASSIGN(auto guessed,
                      choose_guessed(l + 1, MatView<float>(between.data(), 1, spec_.width)));
        for (std::uint32_t h = 0; h < trace_.heads; ++h)
          trace(l + 1, h).steps.back().guessed_between = std::move(guessed[h]);
      }
      TL_TRY(work.finish(id(l), mixed, hidden));
    }
    TL_TRY(pending.commit());
  }
  return {};
}

}  // namespace

Result<SelectionTrace> trace_selections(const TraceOptions& options) {
  TL_TRY_ASSIGN(const auto recorder, Recorder::open(options));
  TL_TRY(recorder->prefill());
  TL_TRY(recorder->decode());
  return recorder->take();
}

}  // namespace thermocline::test
