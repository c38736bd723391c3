// What a run cost, for people (stderr) and for programs (JSON).
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "runtime/thermocline.h"
#include "tools/thermocline/generation.h"

namespace thermocline {

// Everything that the statistics of one run are made of.
struct RunRecord {
  std::string command, method;
  const ModelInfo* model = nullptr;
  std::uint32_t context = 0;
  std::uint64_t seed = 0;
  double load_ms = 0;
  Generation generation;
  MemoryPlan memory;
  std::vector<RankReport> ranks;
  std::optional<DiskReadCost> disk_read_cost;
  std::vector<std::string> notes;
  std::string error;  // why it ended early, "" if it did not
};

// A share of two counts, 0 of nothing.
double share_of(std::uint64_t part, std::uint64_t whole);

enum class Detail : std::uint8_t { brief, full };

void print_statistics(const RunRecord& record, Detail detail);
nlohmann::ordered_json statistics_json(const RunRecord& record);

void print_notes(std::span<const std::string> notes);
void print_memory_plan(const MemoryPlan& plan, Detail detail);
nlohmann::ordered_json memory_json(const MemoryPlan& plan);
nlohmann::ordered_json model_json(const ModelInfo& model);
nlohmann::ordered_json build_json();
// As text, with a newline; bytes that are not UTF-8 are replaced.
std::string json_text(const nlohmann::ordered_json& value);

}  // namespace thermocline
