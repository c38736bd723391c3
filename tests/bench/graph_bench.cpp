// What graphs of keys find for what a walk touches: recall of a query's hundred best keys over the
// share of keys and the bytes that were looked at, of one graph of all keys and of graphs of
// segments, which a cache has. What a method's graph is worth beside others is index_bench's.
//
//   graph_bench MODEL LAYERS HEADS ROWS PROMPT SAMPLE QUERIES TEXT...     (as index_bench's)
//
// Checked: at their widest walks find nine tenths of the best.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <iterator>
#include <string>
#include <vector>

#include "retrieval/index/key_graph.h"
#include "retrieval/index/key_graph_build.h"
#include "tests/support/asked_head.h"

namespace thermocline::test {
namespace {

double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// One KV head's keys in graphs of so many rows each.
struct Built {
  std::vector<std::vector<std::byte>> records;
  std::vector<KeyGraph> graphs;
};

// What walks of one kind found, summed over the queries.
struct Found {
  double recall = 0, share = 0, bytes = 0;
  std::vector<double> microseconds;  // of each
};

double recall(const std::vector<std::uint32_t>& best, std::vector<std::uint32_t> found) {
  std::sort(found.begin(), found.end());
  std::vector<std::uint32_t> both;
  std::set_intersection(best.begin(), best.end(), found.begin(), found.end(),
                        std::back_inserter(both));
  return static_cast<double>(both.size()) / static_cast<double>(best.size());
}

void print(const std::string& name, Found found) {
  const auto n = static_cast<double>(found.microseconds.size());
  // The median: whoever shares the machine delays some.
  std::sort(found.microseconds.begin(), found.microseconds.end());
  std::printf("| %s | %.3f | %.2f | %.0f | %.0f |\n", name.c_str(), found.recall / n,
              100 * found.share / n, found.bytes / n / 1024,
              found.microseconds[found.microseconds.size() / 2]);
  std::fflush(stdout);
}

class Study {
 public:
  Study(const CpuTable& cpu, const Workers& workers, const std::vector<AskedHead>& heads)
      : cpu_(cpu), workers_(workers), heads_(heads) {}

  // The lowest of the recalls that graphs have at their widest.
  double run() {
    std::printf("| graph | recall@100 | keys touched %% | KiB a KV head | us a KV head |\n");
    std::printf("|---|---|---|---|---|\n");
    // Of a graph of all keys a query's hundred best are a smaller share than of a segment: it has
    // longer lists, and more links to follow.
    const GraphOptions of_all{.degree = 32, .own = 8, .neighbours = 100};
    const std::uint32_t all = heads_[0].layer->rows;
    return std::min({graphs("one graph", all, true, of_all),
                     graphs("graphs of segments", kSegmentRows, true, {}),
                     graphs("one graph of keys alone", all, false, of_all)});
  }

 private:
  Built build(const AskedHead& of, std::uint32_t rows, bool watched,
              const GraphOptions& options) const {
    Built built;
    const LayerQueries& layer = *of.layer;
    const RawRows keys = layer.rows_of(of.head);
    for (std::uint32_t first = 0; first < layer.rows; first += rows) {
      const std::uint32_t count = std::min(rows, layer.rows - first);
      const GraphShape shape{count, layer.shape.key_dim, options.degree};
      built.records.emplace_back(shape.bytes());
      const KeyGraph graph(shape, built.records.back().data());
      for (std::uint32_t r = 0; r < count; ++r)
        std::copy_n(keys.key(0, first + r), shape.key_dim, graph.key(r));
      std::vector<float> queries;
      if (watched) queries = of.shown(first, first + count);
      link_keys(queries.data(), queries.size() / shape.key_dim, options, cpu_, workers_, graph);
      built.graphs.push_back(graph);
    }
    return built;
  }

  double graphs(const std::string& name, std::uint32_t rows, bool watched,
                const GraphOptions& options) {
    std::vector<Built> built;
    const double start = seconds();
    for (const AskedHead& head : heads_) built.push_back(build(head, rows, watched, options));
    const double took = (seconds() - start) / static_cast<double>(heads_.size());
    double widest = 0;
    for (const bool together : {true, false})
      for (const std::uint32_t beam : {100, 150, 250, 400}) {
        Found found;
        for (std::size_t i = 0; i < heads_.size(); ++i)
          for (std::size_t q = 0; q < heads_[i].asked.size(); ++q)
            walk(heads_[i], built[i], q, beam, together, &found);
        print(name + (together ? ", heads together" : ", each head") + ", beam " +
                  std::to_string(beam),
              found);
        widest = std::max(widest, found.recall / static_cast<double>(found.microseconds.size()));
      }
    std::printf("| (%s: %.1f s a KV head to build) | | | | |\n", name.c_str(), took);
    return widest;
  }

  void walk(const AskedHead& head, const Built& built, std::size_t q, std::uint32_t beam,
            bool together, Found* found) {
    const LayerQueries& layer = *head.layer;
    const std::uint32_t heads = layer.shape.heads, at_once = together ? heads : 1;
    std::vector<std::uint32_t> touched;
    double took = 0;
    for (std::uint32_t h = 0; h < heads; h += at_once) {
      const float* query = head.query(q) + h * layer.shape.key_dim;
      const double start = seconds();
      walk_graphs({built.graphs, query, static_cast<int>(at_once), beam}, cpu_, &walk_);
      took += seconds() - start;
      found->bytes += static_cast<double>(walk_.touched.size()) * layer.shape.key_dim * 2 +
                      static_cast<double>(walk_.link_bytes);
      touched.insert(touched.end(), walk_.touched.begin(), walk_.touched.end());
      std::vector<float> score(walk_.touched.size());
      for (std::uint32_t g = 0; g < at_once; ++g) {
        for (std::size_t i = 0; i < score.size(); ++i) score[i] = walk_.score[i * at_once + g];
        std::vector<std::uint32_t> best;
        for (const std::uint32_t i : best_of(score.data(), score.size(), AskedHead::kBest))
          best.push_back(walk_.touched[i]);
        found->recall += recall(head.best[q * heads + h + g], std::move(best)) / heads;
      }
    }
    found->microseconds.push_back(took * 1e6);
    std::sort(touched.begin(), touched.end());
    touched.erase(std::unique(touched.begin(), touched.end()), touched.end());
    found->share += static_cast<double>(touched.size()) / layer.rows;
  }

  const CpuTable& cpu_;
  const Workers& workers_;
  const std::vector<AskedHead>& heads_;
  GraphWalk walk_;
};

int run(std::span<const char* const> arguments) {
  constexpr int kTexts = AskedHeadOptions::kArguments;
  if (arguments.size() < kTexts + 1) {
    std::fprintf(stderr, "graph_bench %s TEXT...\n", AskedHeadOptions::kUsage);
    return 2;
  }
  const Workers workers;
  const CpuTable& cpu = **choose_cpu_table("auto");
  const auto asked = ask_heads(
      AskedHeadOptions::of(arguments.first(kTexts), arguments.subspan(kTexts)), cpu, workers);
  if (!asked) {
    std::fprintf(stderr, "graph_bench: %s\n", asked.error().message.c_str());
    return 1;
  }
  return Study(cpu, workers, asked->heads).run() >= 0.9 ? 0 : 1;
}

}  // namespace
}  // namespace thermocline::test

int main(int argc, char** argv) {
  return thermocline::test::run({argv + 1, static_cast<std::size_t>(argc - 1)});
}
