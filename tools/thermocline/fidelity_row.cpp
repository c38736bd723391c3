#include "tools/thermocline/fidelity_row.h"

#include <algorithm>
#include <cmath>

#include "tools/thermocline/interval.h"
#include "tools/thermocline/spread.h"
#include "tools/thermocline/statistics.h"

namespace thermocline {
namespace {

using Json = nlohmann::ordered_json;

constexpr double kNearTop = 0.1;  // nats: a pick that full attention rates this near its own best

// In place of what a row has of the same names.
void set_divergence(const std::vector<double>& steps, Json* row) {
  const Interval interval = bootstrap_of_mean(steps);
  (*row)["kl_mean"] = mean_of(steps);
  (*row)["kl_low"] = interval.low;
  (*row)["kl_high"] = interval.high;
  (*row)["kl_median"] = percentile(steps, 0.5);
  (*row)["kl_p99"] = percentile(steps, 0.99);
  (*row)["kl_max"] = percentile(steps, 1);
}

// Of means over tokens.
void set_perplexity(double full_nll, double nll, Json* row) {
  (*row)["nll_full"] = full_nll;
  (*row)["nll"] = nll;
  (*row)["ppl_full"] = std::exp(full_nll);
  (*row)["ppl"] = std::exp(nll);
}

// Where keys or values are sums of a few vectors: how many, and what of the squares that holds;
// null of other methods, since all rows have the same numbers.
void set_ranks(std::span<const RankReport> ranks, Json* row) {
  (*row)["captured"] = nullptr;
  if (ranks.empty()) return;
  std::vector<double> captured;
  for (const RankReport& of : ranks) captured.push_back(of.captured);
  (*row)["captured"] = mean_of(captured);
  for (const RankReport& of : ranks) {
    (*row)[of.side + "_rank_by_layer"].push_back(of.rank);
    (*row)[of.side + "_captured_by_layer"].push_back(of.captured);
  }
}

// The mean of numbers, of lists of the same length element by element; else what all say alike.
// null: they have nothing in common, as where one was watched and has no speed, or is too short a
// text to have ranks.
Json mean_of_column(const std::vector<Json>& values) {
  const auto all = [&](const auto& is) { return std::all_of(values.begin(), values.end(), is); };
  const Json& first = values.front();
  if (all([&](const Json& value) { return value == first; })) return first;
  if (all([](const Json& value) { return value.is_number(); })) {
    std::vector<double> numbers;
    for (const Json& value : values) numbers.push_back(value.get<double>());
    return mean_of(numbers);
  }
  if (all([&](const Json& value) { return value.is_array() && value.size() == first.size(); })) {
    Json means = Json::array();
    for (std::size_t i = 0; i < first.size(); ++i) {
      std::vector<Json> elements;
      for (const Json& value : values) elements.push_back(value[i]);
      means.push_back(mean_of_column(elements));
    }
    return means;
  }
  return {};
}

}  // namespace

Json fidelity_row(const Passage& passage, const std::string& method, const Comparison& comparison) {
  std::vector<double> divergences;
  double same = 0, near = 0, full_nll = 0, nll = 0;
  for (const StepFidelity& step : comparison.steps) {
    divergences.push_back(step.divergence);
    same += step.same_top ? 1 : 0;
    near += step.regret <= kNearTop ? 1 : 0;
    full_nll += step.full_nll;
    nll += step.other_nll;
  }
  const CacheReport& cost = comparison.cost;
  const auto count = static_cast<double>(std::max<std::size_t>(comparison.steps.size(), 1));
  const auto a_step = [&](std::uint64_t bytes) { return static_cast<double>(bytes) / count; };
  const auto rate = [&](double ms) { return ms > 0 ? count / ms * 1e3 : 0; };
  const std::uint64_t rows = cost.device_bytes_read + cost.host_bytes_read + cost.disk_bytes_read;
  Json row{{"text", passage.text->name},
           {"depth", passage.depth},
           {"method", method},
           {"steps", comparison.steps.size()}};
  set_divergence(divergences, &row);
  row.update(Json{{"top1", same / count}, {"top1_near", near / count}});
  set_perplexity(full_nll / count, nll / count, &row);
  row.update(Json{{"read", share_of(rows + cost.index_bytes_read, comparison.held_bytes)},
                  {"rows_read", share_of(cost.rows_read, cost.rows_held)},
                  {"index_read", share_of(cost.index_bytes_read, comparison.held_bytes)},
                  {"row_bytes", a_step(rows)},
                  {"index_bytes", a_step(cost.index_bytes_read)},
                  {"disk_bytes", a_step(cost.disk_bytes_read)},
                  {"tokens_per_s", rate(comparison.step_ms)},
                  {"tokens_per_s_full", rate(comparison.full_ms)},
                  {"kl_steps", divergences}});
  set_ranks(comparison.ranks, &row);
  return row;
}

void set_mass(Json* row) {
  std::vector<double> shares;
  std::size_t lowest = 0;
  double low = 2;
  const Json& by_layer = row->at("mass_by_layer");
  for (std::size_t l = 0; l < by_layer.size(); ++l) {
    if (!by_layer[l].is_number()) continue;
    shares.push_back(by_layer[l].get<double>());
    if (shares.back() >= low) continue;
    low = shares.back();
    lowest = l;
  }
  if (shares.empty()) return;
  const double mean = mean_of(shares);
  (*row)["mass"] = mean;
  (*row)["mass_lowest"] = low;
  (*row)["lowest_layer"] = lowest;
}

std::string mean_title(std::size_t rows) { return "mean of " + std::to_string(rows); }

Json mean_row(std::span<const Json> rows) {
  Json mean{{"text", mean_title(rows.size())}};
  std::vector<double> divergences;
  double nll = 0, full_nll = 0;
  for (const auto& [name, value] : rows.front().items()) {
    std::vector<Json> values;
    for (const Json& row : rows) values.push_back(row.value(name, Json()));
    if (Json of_all = mean_of_column(values); name != "text" && !of_all.is_null())
      mean[name] = std::move(of_all);
  }
  for (const Json& row : rows) {
    const auto steps = row.at("kl_steps").get<std::vector<double>>();
    divergences.insert(divergences.end(), steps.begin(), steps.end());
    const auto count = static_cast<double>(steps.size());
    nll += count * row.at("nll").get<double>();
    full_nll += count * row.at("nll_full").get<double>();
  }
  mean["kl_steps"] = divergences;
  mean["steps"] = divergences.size();
  if (const auto mass = mean.find("mass_by_layer"); mass != mean.end() && mass->is_array())
    set_mass(&mean);
  // Of all tokens together.
  set_divergence(divergences, &mean);
  const auto count = static_cast<double>(std::max<std::size_t>(divergences.size(), 1));
  set_perplexity(full_nll / count, nll / count, &mean);
  return mean;
}

RowColumns fidelity_row_columns() {
  return {{"text", "method"}, {"depth", "kl_mean", "kl_max", "nll_full", "nll"}, {"kl_steps"}};
}

std::vector<std::string> fidelity_columns() {
  return {"text",      "depth",     "method",     "kl_mean",      "kl_low",           "kl_high",
          "kl_median", "kl_p99",    "top1",       "top1_near",    "ppl_full",         "ppl",
          "read",      "rows_read", "index_read", "tokens_per_s", "tokens_per_s_full"};
}

}  // namespace thermocline
