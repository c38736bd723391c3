// What indexes of keys find, and what they touch for it: recall of a query's hundred best keys over
// the share of keys and the bytes that were looked at, on keys and queries of a model that reads
// real texts (tests/support/query_trace.h).
//
//   index_bench MODEL LAYERS HEADS ROWS PROMPT SAMPLE QUERIES TEXT...
//
//   LAYERS, HEADS  lists such as 4,13,22: which of the model's
//   ROWS           keys: of ROWS / PROMPT prompts of PROMPT tokens each, cut from the texts
//   SAMPLE         of every so many positions the queries are shown to the graphs
//   QUERIES        how many positions are asked of; their queries lie in the last sixteenth of a
//                  prompt, of which nothing is shown
//
// Checked: graphs and codes at their widest find nine tenths of the best.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <numeric>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "retrieval/index/block_index.h"
#include "retrieval/index/faiss_index.h"
#include "retrieval/index/graph.h"
#include "retrieval/index/kmeans.h"
#include "retrieval/index/pq.h"
#include "tests/support/query_trace.h"

namespace thermocline::test {
namespace {

constexpr std::size_t kBest = 100;

double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// One KV head's keys, and who asks.
struct Head {
  const LayerQueries* layer = nullptr;
  std::uint32_t head = 0;
  std::vector<std::uint32_t> asked;              // rows
  std::vector<std::vector<std::uint32_t>> best;  // [asked][query head]: ascending
  const f16* keys() const { return layer->key(head, 0); }
};

// What one setting of an index found, summed over the queries.
struct Found {
  double recall = 0, share = 0, bytes = 0;
  std::vector<double> microseconds;  // of each walk or scan; empty: not measured
  std::size_t queries = 0;
};

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

void find_best(const CpuTable& cpu, const Workers& workers, Head* of) {
  const LayerQueries& layer = *of->layer;
  of->best.resize(of->asked.size() * layer.shape.heads);
  workers.parallel(of->asked.size(), 1, [&](std::size_t first, std::size_t last) {
    std::vector<float> score(std::size_t{layer.shape.heads} * layer.rows);
    for (std::size_t i = first; i < last; ++i) {
      cpu.sketch.dot_rows(RowFormat::f16, reinterpret_cast<const std::byte*>(of->keys()),
                          layer.shape.key_dim * sizeof(f16), layer.rows, layer.shape.key_dim,
                          layer.query(of->head, of->asked[i]), static_cast<int>(layer.shape.heads),
                          score.data(), layer.rows);
      for (std::size_t h = 0; h < layer.shape.heads; ++h)
        of->best[i * layer.shape.heads + h] =
            best_of(score.data() + h * layer.rows, layer.rows, kBest);
    }
  });
}

double recall(const std::vector<std::uint32_t>& best, std::vector<std::uint32_t> found) {
  std::sort(found.begin(), found.end());
  std::vector<std::uint32_t> both;
  std::set_intersection(best.begin(), best.end(), found.begin(), found.end(),
                        std::back_inserter(both));
  return static_cast<double>(both.size()) / static_cast<double>(best.size());
}

void print(const std::string& name, Found found) {
  const auto n = static_cast<double>(found.queries);
  std::printf("| %s | %.3f | %.2f | %.0f |", name.c_str(), found.recall / n, 100 * found.share / n,
              found.bytes / n / 1024);
  if (!found.microseconds.empty()) {  // the median: whoever shares the machine delays some
    std::sort(found.microseconds.begin(), found.microseconds.end());
    std::printf(" %.0f", found.microseconds[found.microseconds.size() / 2]);
  }
  std::printf(" |\n");
  std::fflush(stdout);
}

class Study {
 public:
  Study(const CpuTable& cpu, const Workers& workers, std::uint32_t prompt, std::uint32_t sample)
      : cpu_(cpu), workers_(workers), prompt_(prompt), sample_(sample) {}

  // The lowest of the recalls that graphs and codes have at their widest.
  double run(const std::vector<Head>& heads) {
    std::printf("| index | recall@100 | keys touched %% | KiB a KV head | us a KV head |\n");
    std::printf("|---|---|---|---|---|\n");
    // Of a graph of all keys a query's hundred best are a smaller share than of a segment: it has
    // longer lists, and more links to follow.
    const GraphOptions of_all{.degree = 32, .own = 8, .neighbours = 100};
    graphs("one graph", heads, heads[0].layer->rows, true, of_all);
    graphs("graphs of segments", heads, kSegmentRows, true, {});
    graphs("one graph of keys alone", heads, heads[0].layer->rows, false, of_all);
    clusters(heads);
    codes("product quantisation 8 x 8 bits",
          BlockIndex(std::make_unique<PqCode>(PqOptions{}, cpu_)), heads);
    if (!check_faiss()) return lowest_;
    for (const std::uint32_t probes : {2, 4, 8, 16})
      library("FAISS IVF, a segment each, " + std::to_string(probes) + " probes of lists of 64",
              FaissIvf({.probes = probes}, cpu_), heads);
    library("FAISS IVFPQ, a segment each, 8 probes", FaissIvfPq({.probes = 8}, cpu_), heads);
    for (const std::uint32_t beam : {128, 512})
      library("FAISS HNSW, a segment each, beam " + std::to_string(beam) + ", at least",
              FaissHnsw({.beam = beam}, cpu_), heads);
    return lowest_;
  }

 private:
  struct Built {
    std::vector<std::vector<std::byte>> record;
    std::vector<KeyGraph> graphs;
  };

  std::vector<float> sample(const Head& of, std::uint32_t from, std::uint32_t to) const {
    const LayerQueries& layer = *of.layer;
    std::vector<float> queries;
    for (std::uint32_t r = from; r < to; ++r) {
      if (r % prompt_ >= prompt_ - prompt_ / 16 || r % sample_ != 0) continue;
      const float* q = layer.query(of.head, r);
      queries.insert(queries.end(), q, q + layer.shape.heads * layer.shape.key_dim);
    }
    return queries;
  }

  Built build(const Head& of, std::uint32_t rows, bool watched, const GraphOptions& options) const {
    Built built;
    const LayerQueries& layer = *of.layer;
    for (std::uint32_t first = 0; first < layer.rows; first += rows) {
      const std::uint32_t count = std::min(rows, layer.rows - first);
      const GraphShape shape{count, layer.shape.key_dim, options.degree};
      built.record.emplace_back(shape.bytes());
      const KeyGraph graph(shape, built.record.back().data());
      std::copy_n(layer.key(of.head, first), std::size_t{count} * shape.key_dim, graph.key(0));
      std::vector<float> queries;
      if (watched) queries = sample(of, first, first + count);
      link_keys(queries.data(), queries.size() / shape.key_dim, options, cpu_, workers_, graph);
      built.graphs.push_back(graph);
    }
    return built;
  }

  void graphs(const std::string& name, const std::vector<Head>& heads, std::uint32_t rows,
              bool watched, const GraphOptions& options) {
    std::vector<Built> built;
    const double start = seconds();
    for (const Head& head : heads) built.push_back(build(head, rows, watched, options));
    const double took = (seconds() - start) / static_cast<double>(heads.size());
    double widest = 0;
    for (const bool together : {true, false})
      for (const std::uint32_t beam : {100, 150, 250, 400}) {
        Found found;
        for (std::size_t i = 0; i < heads.size(); ++i)
          for (std::size_t q = 0; q < heads[i].asked.size(); ++q)
            walk(heads[i], built[i], q, beam, together, &found);
        print(name + (together ? ", heads together" : ", each head") + ", beam " +
                  std::to_string(beam),
              found);
        widest = std::max(widest, found.recall / static_cast<double>(found.queries));
      }
    std::printf("| (%s: %.1f s a KV head to build) | | | | |\n", name.c_str(), took);
    lowest_ = std::min(lowest_, widest);
  }

  void walk(const Head& head, const Built& built, std::size_t q, std::uint32_t beam, bool together,
            Found* found) {
    const LayerQueries& layer = *head.layer;
    const float* query = layer.query(head.head, head.asked[q]);
    const std::uint32_t heads = layer.shape.heads, at_once = together ? heads : 1;
    std::vector<std::uint32_t> touched;
    double took = 0;
    for (std::uint32_t h = 0; h < heads; h += at_once) {
      const double start = seconds();
      walk_graphs({built.graphs, query + h * layer.shape.key_dim, static_cast<int>(at_once), beam},
                  cpu_, &walk_);
      took += seconds() - start;
      found->bytes += static_cast<double>(walk_.touched.size()) * layer.shape.key_dim * 2 +
                      static_cast<double>(walk_.link_bytes);
      touched.insert(touched.end(), walk_.touched.begin(), walk_.touched.end());
      std::vector<float> score(walk_.touched.size());
      for (std::uint32_t g = 0; g < at_once; ++g) {
        for (std::size_t i = 0; i < score.size(); ++i) score[i] = walk_.score[i * at_once + g];
        std::vector<std::uint32_t> best;
        for (const std::uint32_t i : best_of(score.data(), score.size(), kBest))
          best.push_back(walk_.touched[i]);
        found->recall += recall(head.best[q * heads + h + g], std::move(best)) / heads;
      }
    }
    found->microseconds.push_back(took * 1e6);
    std::sort(touched.begin(), touched.end());
    touched.erase(std::unique(touched.begin(), touched.end()), touched.end());
    found->share += static_cast<double>(touched.size()) / layer.rows;
    ++found->queries;
  }

  // Clusters of about 64 keys in an inverted file: the best of them by their mean key, whole.
  void clusters(const std::vector<Head>& heads) {
    constexpr std::size_t kKeys = 64;
    struct Lists {
      std::vector<std::uint32_t> cluster;
      std::vector<f16> mean;
      std::vector<std::uint32_t> rows;
    };
    std::vector<Lists> built;
    for (const Head& head : heads) {
      const LayerQueries& layer = *head.layer;
      const std::size_t dim = layer.shape.key_dim, n = layer.rows, count = (n + kKeys - 1) / kKeys;
      std::vector<float> key(n * dim), mean(dim), direction(n * dim);
      cpu_.dense.from_half(head.keys(), n * dim, key.data());
      for (std::size_t i = 0; i < n * dim; ++i) mean[i % dim] += key[i] / static_cast<float>(n);
      for (std::size_t r = 0; r < n; ++r) {
        float squares = 1e-12f;
        for (std::size_t d = 0; d < dim; ++d) {
          direction[r * dim + d] = key[r * dim + d] - mean[d];
          squares += direction[r * dim + d] * direction[r * dim + d];
        }
        for (std::size_t d = 0; d < dim; ++d) direction[r * dim + d] /= std::sqrt(squares);
      }
      Lists lists{std::vector<std::uint32_t>(n), std::vector<f16>(count * dim),
                  std::vector<std::uint32_t>(count)};
      kmeans(direction.data(), n, dim, count, {}, cpu_.nearest, workers_, lists.cluster);
      std::vector<float> sum(count * dim);
      for (std::size_t r = 0; r < n; ++r) {
        ++lists.rows[lists.cluster[r]];
        for (std::size_t d = 0; d < dim; ++d) sum[lists.cluster[r] * dim + d] += key[r * dim + d];
      }
      for (std::size_t c = 0; c < count; ++c)
        for (std::size_t d = 0; d < dim; ++d)
          sum[c * dim + d] /= static_cast<float>(std::max(1u, lists.rows[c]));
      cpu_.dense.to_half(sum.data(), sum.size(), lists.mean.data());
      built.push_back(std::move(lists));
    }
    for (const double share : {0.005, 0.01, 0.02, 0.04, 0.08, 0.2}) {
      Found found;
      for (std::size_t i = 0; i < heads.size(); ++i) {
        const LayerQueries& layer = *heads[i].layer;
        const std::size_t dim = layer.shape.key_dim, count = built[i].rows.size();
        const std::uint32_t group = layer.shape.heads;
        for (std::size_t q = 0; q < heads[i].asked.size(); ++q) {
          std::vector<float> score(count * group);
          cpu_.sketch.dot_rows(
              RowFormat::f16, reinterpret_cast<const std::byte*>(built[i].mean.data()),
              dim * sizeof(f16), count, dim, layer.query(heads[i].head, heads[i].asked[q]),
              static_cast<int>(group), score.data(), count);
          std::vector<std::uint8_t> any(count);
          for (std::uint32_t h = 0; h < group; ++h) {
            std::vector<std::uint32_t> order(count);
            std::iota(order.begin(), order.end(), 0);
            std::sort(order.begin(), order.end(),
                      [&](auto a, auto b) { return score[h * count + a] > score[h * count + b]; });
            std::vector<std::uint8_t> taken(count);
            double rows = 0;
            for (const std::uint32_t c : order) {
              if (rows >= share * layer.rows) break;
              rows += built[i].rows[c];
              taken[c] = any[c] = 1;
            }
            double hits = 0;
            for (const std::uint32_t r : heads[i].best[q * group + h])
              hits += taken[built[i].cluster[r]];
            found.recall += hits / static_cast<double>(heads[i].best[q * group + h].size()) / group;
          }
          double touched = static_cast<double>(count);
          for (std::size_t c = 0; c < count; ++c) touched += any[c] * built[i].rows[c];
          found.share += touched / layer.rows;
          found.bytes += touched * static_cast<double>(dim) * 2;
          ++found.queries;
        }
      }
      print("clusters of 64 and their means, " + std::to_string(share).substr(0, 5) +
                " of the keys a head",
            found);
    }
  }

  struct Formed {
    std::vector<Formation> formations;  // of each segment
    std::vector<const SegmentIndex*> segments;
  };
  Formed form(const KeyIndex& index, const Head& of) const {
    const LayerQueries& layer = *of.layer;
    Formed made;
    for (std::uint32_t first = 0; first < layer.rows; first += kSegmentRows) {
      const RawRows rows{{RowFormat::f16, RowFormat::f16, layer.shape.key_dim * 2, 0},
                         1,
                         first,
                         std::min(kSegmentRows, layer.rows - first),
                         reinterpret_cast<const std::byte*>(layer.key(of.head, first)),
                         0};
      auto formed = index.form({LayerId{0}, layer.shape, rows}, workers_);
      TL_CHECK(formed.has_value());
      made.formations.push_back(std::move(*formed));
      made.segments.push_back(made.formations.back().index.get());
    }
    return made;
  }

  // Codes of all keys, then the exact scores of the best by their codes.
  void codes(const std::string& name, const KeyIndex& index, const std::vector<Head>& heads) {
    std::vector<Formed> formed;
    for (const Head& head : heads) formed.push_back(form(index, head));
    for (const std::size_t looked : {100, 200, 400, 1000, 4000}) {
      Found found;
      for (std::size_t i = 0; i < heads.size(); ++i) {
        const LayerQueries& layer = *heads[i].layer;
        const std::uint32_t group = layer.shape.heads;
        std::vector<float> score(std::size_t{group} * layer.rows);
        for (std::size_t q = 0; q < heads[i].asked.size(); ++q) {
          const double bytes = ask(index, formed[i], heads[i], q,
                                   static_cast<std::uint32_t>(looked), &score, &found);
          std::vector<std::uint32_t> touched;
          for (std::uint32_t h = 0; h < group; ++h) {
            const auto of = best_of(score.data() + std::size_t{h} * layer.rows, layer.rows, looked);
            found.recall += recall(heads[i].best[q * group + h], of) / group;
            touched.insert(touched.end(), of.begin(), of.end());
          }
          std::sort(touched.begin(), touched.end());
          touched.erase(std::unique(touched.begin(), touched.end()), touched.end());
          found.share += static_cast<double>(touched.size()) / layer.rows;
          found.bytes += bytes + static_cast<double>(touched.size()) * layer.shape.key_dim * 2;
        }
      }
      print(name + ", then " + std::to_string(looked) + " exact", found);
      if (looked == 4000)
        lowest_ = std::min(lowest_, found.recall / static_cast<double>(found.queries));
    }
  }

  // What an index of FAISS returns. Its keys are floats, and each query head looks by itself.
  void library(const std::string& name, const KeyIndex& index, const std::vector<Head>& heads) {
    Found found;
    const double start = seconds();
    double took = 0;
    for (const Head& head : heads) {
      const Formed formed = form(index, head);
      took = (seconds() - start) / static_cast<double>(heads.size());
      const LayerQueries& layer = *head.layer;
      const std::uint32_t group = layer.shape.heads;
      std::vector<float> score(std::size_t{group} * layer.rows);
      for (std::size_t q = 0; q < head.asked.size(); ++q) {
        const double bytes = ask(index, formed, head, q, kBest, &score, &found);
        for (std::uint32_t h = 0; h < group; ++h)
          found.recall +=
              recall(head.best[q * group + h],
                     best_of(score.data() + std::size_t{h} * layer.rows, layer.rows, kBest)) /
              group;
        found.share += bytes / sizeof(float) / layer.shape.key_dim / layer.rows / group;
        found.bytes += bytes;
      }
    }
    print(name + " (" + std::to_string(took).substr(0, 4) + " s to build)", found);
  }

  double ask(const KeyIndex& index, const Formed& formed, const Head& head, std::size_t q,
             std::uint32_t wanted, std::vector<float>* score, Found* found) {
    const LayerQueries& layer = *head.layer;
    const double start = seconds();
    const std::uint64_t bytes = index.score(
        {0, layer.shape, layer.query(head.head, head.asked[q]), formed.segments, wanted}, &scratch_,
        score->data(), layer.rows);
    found->microseconds.push_back((seconds() - start) * 1e6);
    ++found->queries;
    return static_cast<double>(bytes);
  }

  const CpuTable& cpu_;
  const Workers& workers_;
  std::uint32_t prompt_, sample_;
  GraphWalk walk_;
  KeyScratch scratch_;
  double lowest_ = 1;
};

std::vector<std::uint32_t> numbers(const char* list) {
  std::vector<std::uint32_t> out;
  std::stringstream in(list);
  for (std::string one; std::getline(in, one, ',');)
    out.push_back(static_cast<std::uint32_t>(std::atoi(one.c_str())));
  return out;
}

int run(int argc, char** argv) {
  if (argc < 9) {
    std::fprintf(stderr, "index_bench MODEL LAYERS HEADS ROWS PROMPT SAMPLE QUERIES TEXT...\n");
    return 2;
  }
  const Workers workers;
  const CpuTable& cpu = **choose_cpu_table("auto");
  QueryTraceOptions options;
  options.model = argv[1];
  options.layers = numbers(argv[2]);
  options.prompt = static_cast<std::uint32_t>(std::atoi(argv[5]));
  options.prompts = static_cast<std::uint32_t>(std::atoi(argv[4])) / options.prompt;
  options.texts.assign(argv + 8, argv + argc);
  const auto traced = trace_queries(options);
  if (!traced) {
    std::fprintf(stderr, "%s\n", traced.error().message.c_str());
    return 1;
  }
  std::mt19937 random(1);
  std::vector<Head> heads;
  for (const LayerQueries& layer : *traced)
    for (const std::uint32_t head : numbers(argv[3])) {
      Head of{&layer, head, {}, {}};
      for (int q = 0; q < std::atoi(argv[7]); ++q)
        of.asked.push_back(static_cast<std::uint32_t>(random() % options.prompts + 1) *
                               options.prompt -
                           1 - static_cast<std::uint32_t>(random() % (options.prompt / 16)));
      find_best(cpu, workers, &of);
      heads.push_back(std::move(of));
    }
  std::printf("%u keys of %u prompts, layers %s, KV heads %s, %s queries each\n\n",
              (*traced)[0].rows, options.prompts, argv[2], argv[3], argv[7]);
  Study study(cpu, workers, options.prompt, static_cast<std::uint32_t>(std::atoi(argv[6])));
  return study.run(heads) >= 0.9 ? 0 : 1;
}

}  // namespace
}  // namespace thermocline::test

int main(int argc, char** argv) { return thermocline::test::run(argc, argv); }
