#include "tools/thermocline/statistics.h"

#include <algorithm>
#include <cstdio>

#include "tools/thermocline/machine.h"
#include "tools/thermocline/printable.h"
#include "tools/thermocline/size.h"
#include "tools/thermocline/spread.h"

namespace thermocline {
namespace {

using Json = nlohmann::ordered_json;

std::string format_time(double ms) {
  char text[32];
  if (ms < 1000)
    std::snprintf(text, sizeof text, "%.0f ms", ms);
  else if (ms < 120e3)
    std::snprintf(text, sizeof text, "%.2f s", ms / 1e3);
  else
    std::snprintf(text, sizeof text, "%.0f min %02.0f s", std::floor(ms / 60e3),
                  std::fmod(ms / 1e3, 60.0));
  return text;
}

double per_second(double count, double ms) { return ms > 0 ? count / ms * 1e3 : 0; }

void line(const char* title, const std::string& text) {
  std::fprintf(stderr, "%-10s %s\n", title, printable(text).c_str());
}

std::string format_number(const char* format, double value) {
  char text[32];
  std::snprintf(text, sizeof text, format, value);
  return text;
}

std::string describe_stop(const Generation& g, std::uint32_t context) {
  switch (g.reason) {
    case StopReason::end_of_text:
      return "the model ended its text";
    case StopReason::length:
      return "as long as -n allows";
    case StopReason::context:
      return "the context of " + format_count(context) + " is full";
    case StopReason::stop_text:
      // Quoted, with its line breaks escaped: this is one line.
      return "ended by the stop text " +
             Json(g.stop_text).dump(-1, ' ', false, Json::error_handler_t::replace);
    case StopReason::interruption:
      return "interrupted";
    case StopReason::failure:
      return "ended by an error";
  }
  return {};
}

void print_reads(const CacheReport& decode) {
  const double steps = static_cast<double>(std::max<std::uint64_t>(decode.steps, 1));
  const auto per_token = [&](std::uint64_t bytes) {
    return format_size(static_cast<std::uint64_t>(static_cast<double>(bytes) / steps));
  };
  std::string all, of_token;
  const auto add = [&](const std::string& where, std::uint64_t bytes) {
    all += (all.empty() ? "" : ", ") + where + " " + format_size(bytes);
    of_token += (of_token.empty() ? "" : ", ") + per_token(bytes);
  };
  if (decode.device_bytes_read > 0) add("device", decode.device_bytes_read);
  add("host", decode.host_bytes_read);
  if (decode.device_bytes_fetched > 0) add("host to device", decode.device_bytes_fetched);
  add("disk", decode.disk_bytes_read);
  add("index", decode.index_bytes_read);
  line("read", all + "; a token: " + of_token);
  line("rows", format_number("%.2f", share_of(decode.rows_read, decode.rows_held) * 100) +
                   " % of those held were read (" + format_count(decode.rows_read) + " of " +
                   format_count(decode.rows_held) + ")");
}

// Rows are cached above a disk, in host memory or a GPU's; or of host memory on a GPU.
void print_cached(const CacheReport& whole, const CacheReport& decode) {
  const std::uint64_t rows = decode.row_cache_hits + decode.row_cache_misses;
  const std::string hits = format_number("%.1f", share_of(decode.row_cache_hits, rows) * 100);
  if (whole.disk_bytes_written == 0 && whole.disk_bytes_read == 0) {
    if (rows > 0) line("fetched", hits + " % of rows already on the device");
    return;
  }
  line("disk", format_size(whole.disk_bytes_written) + " written, " +
                   format_count(decode.disk_reads) + " reads, " + hits +
                   " % of rows already in memory, stalled " + format_time(decode.stall_ms));
  line("checked", format_count(whole.pages_verified) + " pages against their checksums, " +
                      format_count(whole.pages_read_again) + " read again");
}

// Of keys or values that are sums of a few vectors: how many, and what of them that holds, over
// layers. In full, each layer's.
void print_ranks(std::span<const RankReport> ranks, Detail detail) {
  for (const char* side : {"keys", "values"}) {
    std::vector<double> captured, rank, channels;
    std::uint32_t segments = 0, bases = 0;
    std::string by_layer;
    for (const RankReport& of : ranks) {
      if (of.side != side) continue;
      captured.push_back(of.captured);
      rank.push_back(of.rank);
      channels.push_back(of.channels);
      segments += of.segments;
      bases += of.bases;
      by_layer += " " + std::to_string(of.layer) +
                  (of.layers > 1 ? "x" + std::to_string(of.layers) : "") + ":" +
                  std::to_string(of.rank) + "/" + format_number("%.4f", of.captured);
    }
    if (captured.empty()) continue;
    line("rank", std::string(side) + " in " + format_number("%.1f", mean_of(rank)) + " of " +
                     format_number("%.0f", mean_of(channels)) + " numbers, which hold " +
                     format_number("%.2f", mean_of(captured) * 100) + " % of their squares (" +
                     format_number("%.2f", percentile(captured, 0) * 100) +
                     " % in the layer of least), " + format_count(bases) +
                     (bases == 1 ? " basis for " : " bases for ") +
                     format_counted(segments, "segment"));
    if (detail == Detail::full) line("by layer", by_layer.substr(1));
  }
}

Json ranks_json(std::span<const RankReport> ranks) {
  Json json = Json::array();
  for (const RankReport& of : ranks)
    json.push_back(Json{{"layer", of.layer},
                        {"layers", of.layers},
                        {"side", of.side},
                        {"rank", of.rank},
                        {"channels", of.channels},
                        {"segments", of.segments},
                        {"bases", of.bases},
                        {"captured", of.captured}});
  return json;
}

Json cost_json(const CacheReport& cost) {
  Json json;
  for (const CacheCounter& counter : cache_counters())
    std::visit([&](auto member) { json[std::string(counter.name)] = cost.*member; },
               counter.member);
  json["rows_read_share"] = share_of(cost.rows_read, cost.rows_held);
  return json;
}

// A device may have layers' weights as well.
bool of_kv_alone(const MemoryPlan& plan, const std::string& tier) {
  return tier != kWorkspace &&
         std::none_of(plan.lines.begin(), plan.lines.end(), [&](const MemoryLine& line) {
           return line.tier == tier && line.purpose == "weights";
         });
}

// Tiers in the order in which they first appear.
std::vector<std::string> tiers_of(const MemoryPlan& plan) {
  std::vector<std::string> tiers;
  for (const MemoryLine& one : plan.lines)
    if (std::find(tiers.begin(), tiers.end(), one.tier) == tiers.end()) tiers.push_back(one.tier);
  return tiers;
}

}  // namespace

double share_of(std::uint64_t part, std::uint64_t whole) {
  return whole == 0 ? 0 : static_cast<double>(part) / static_cast<double>(whole);
}

void print_statistics(const RunRecord& record, Detail detail) {
  const Generation& g = record.generation;
  std::string prompt = format_counted(g.prompt_tokens, "token");
  if (g.cached_tokens > 0) prompt += ", " + format_count(g.cached_tokens) + " of them known";
  if (g.prefilled_tokens + g.cached_tokens < g.prompt_tokens)
    prompt += ", " + format_count(g.prefilled_tokens) + " read";
  prompt += " in " + format_time(g.prefill_ms) + " (" +
            format_number("%.1f", per_second(g.prefilled_tokens, g.prefill_ms)) + " tokens/s)";
  if (!g.tokens.empty()) prompt += ", first token after " + format_time(g.first_token_ms);
  line("prompt", prompt);
  line("generated", format_counted(g.tokens.size(), "token") + " in " + format_time(g.decode_ms) +
                        " (" + format_number("%.1f", per_second(g.steps, g.decode_ms)) +
                        " tokens/s); " + describe_stop(g, record.context));
  line("method", record.method + ", context " + format_count(record.context));
  if (const ModelInfo& model = *record.model; model.device_layers > 0)
    line("layers", format_count(model.device_layers) + " of " + format_count(model.layers) +
                       (model.device_head ? " and the logits on " : " on ") + model.device);
  if (g.steps > 0) print_reads(g.decode_cost);
  print_cached(sum(g.prefill_cost, g.decode_cost), g.decode_cost);
  print_memory_plan(record.memory, detail);
  print_ranks(record.ranks, detail);
  if (detail == Detail::full) {
    const CacheReport& d = g.decode_cost;
    line("time", "loading " + format_time(record.load_ms) + ", sealing " +
                     format_time(g.prefill_cost.seal_ms + d.seal_ms) + ", decode: attending " +
                     format_time(d.attend_ms) + ", selecting " + format_time(d.select_ms) +
                     " in all threads");
    if (const auto& cost = record.disk_read_cost)
      line("disk cost", "a read " + format_number("%.1f", cost->read_us) + " us, and 1 us for " +
                            format_size(static_cast<std::uint64_t>(cost->bytes_per_us)) +
                            (cost->measured ? " (measured)" : " (assumed)"));
    line("seed", std::to_string(record.seed));
    line("peak", format_size(peak_resident_bytes()) + " resident, the mapped model included");
  }
  print_notes(record.notes);
}

void print_notes(std::span<const std::string> notes) {
  for (const std::string& note : notes) line("note", note);
}

void print_memory_plan(const MemoryPlan& plan, Detail detail) {
  for (const std::string& tier : tiers_of(plan)) {
    std::string text = format_size(plan.total(tier));
    std::string purposes;
    for (const MemoryLine& one : plan.lines) {
      if (one.tier != tier || (one.bytes == 0 && one.peak_bytes == 0)) continue;
      purposes += (purposes.empty() ? "" : ", ") + one.purpose + " " + format_size(one.bytes);
      if (detail == Detail::full && one.peak_bytes > one.bytes)
        purposes += " (peak " + format_size(one.peak_bytes) + ")";
    }
    line(tier.c_str(),
         (of_kv_alone(plan, tier) ? "KV " : "") + text + (purposes.empty() ? "" : ": " + purposes));
  }
  if (plan.allowance_bytes > 0)
    line("process", "up to " + format_size(plan.allowance_bytes) +
                        " beside it: code, stacks, the text, what segments are formed with");
}

Json memory_json(const MemoryPlan& plan) {
  Json totals = Json::object(), lines = Json::array();
  for (const std::string& tier : tiers_of(plan)) totals[tier] = plan.total(tier);
  for (const MemoryLine& one : plan.lines)
    lines.push_back(Json{{"tier", one.tier},
                         {"purpose", one.purpose},
                         {"bytes", one.bytes},
                         {"peak_bytes", one.peak_bytes}});
  Json json{{"total_bytes", totals}, {"peak_bytes", plan.peak_bytes}, {"lines", lines}};
  if (plan.allowance_bytes > 0) json["allowance_bytes"] = plan.allowance_bytes;
  return json;
}

Json model_json(const ModelInfo& model) {
  return Json{{"path", model.path},
              {"name", model.name},
              {"architecture", model.architecture},
              {"weight_types", model.weight_types},
              {"parameters", model.parameters},
              {"weight_bytes", model.weight_bytes},
              {"layers", model.layers},
              {"device_layers", model.device_layers},
              {"device_head", model.device_head},
              {"device", model.device},
              {"vocabulary", model.vocabulary},
              {"context", model.context},
              {"kv_bytes_per_token", model.kv_bytes_per_token}};
}

Json build_json() {
  const Version v = version();
  return Json{{"version", v.number}, {"commit", v.commit},           {"compiler", v.compiler},
              {"build", v.build},    {"instruction_sets", v.usable}, {"cpu", cpu_name()}};
}

Json statistics_json(const RunRecord& record) {
  const Generation& g = record.generation;
  Json json{{"schema", "thermocline/" + record.command + "/1"},
            {"build", build_json()},
            {"model", model_json(*record.model)},
            {"method", record.method},
            {"context", record.context},
            {"seed", record.seed},
            {"text", g.text},
            {"stop_reason", name_of(g.reason)},
            {"context_full", g.reason == StopReason::context},
            {"stop_text", g.stop_text},
            {"prompt_tokens", g.prompt_tokens},
            {"cached_tokens", g.cached_tokens},
            {"generated_tokens", g.tokens.size()},
            {"load_ms", record.load_ms},
            {"ttft_ms", g.first_token_ms},
            {"prefill_ms", g.prefill_ms},
            {"prefill_tokens_per_second", per_second(g.prefilled_tokens, g.prefill_ms)},
            {"decode_ms", g.decode_ms},
            {"decode_tokens_per_second", per_second(g.steps, g.decode_ms)},
            {"prefill", cost_json(g.prefill_cost)},
            {"decode", cost_json(g.decode_cost)},
            {"memory", memory_json(record.memory)},
            {"ranks", ranks_json(record.ranks)},
            {"peak_resident_bytes", peak_resident_bytes()},
            {"notes", record.notes}};
  if (const auto& cost = record.disk_read_cost)
    json["disk_read_cost"] = Json{{"read_us", cost->read_us},
                                  {"bytes_per_us", cost->bytes_per_us},
                                  {"measured", cost->measured}};
  if (!record.error.empty()) json["error"] = record.error;
  return json;
}

std::string json_text(const Json& value) {
  return value.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace thermocline
