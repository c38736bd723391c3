// thermocline inspect: what a model file holds, and whether it can be run.
#include <cstdio>

#include "tools/thermocline/command.h"
#include "tools/thermocline/flags.h"
#include "tools/thermocline/json_output.h"
#include "tools/thermocline/printable.h"
#include "tools/thermocline/size.h"
#include "tools/thermocline/statistics.h"

namespace thermocline {
namespace {

namespace po = boost::program_options;
using Json = nlohmann::ordered_json;
using Pairs = std::vector<std::pair<std::string, std::string>>;

// Neighbouring layers that are alike, in a line: "layers 0-29: 9 query heads ...".
std::string describe(const LayerSpec& layer) {
  return std::to_string(layer.q_heads) + " query heads, " + std::to_string(layer.kv_heads) +
         " KV heads of " + std::to_string(layer.key_dim) + " + " + std::to_string(layer.value_dim) +
         (layer.window == 0 ? ", full attention"
                            : ", sliding window of " + std::to_string(layer.window));
}

void print_layers(std::span<const LayerSpec> layers) {
  std::size_t first = 0;
  for (std::size_t l = 1; l <= layers.size(); ++l) {
    if (l < layers.size() && describe(layers[l]) == describe(layers[first])) continue;
    const std::string range =
        std::to_string(first) + (l - 1 > first ? "-" + std::to_string(l - 1) : "");
    std::printf("  %-8s %s\n", range.c_str(), describe(layers[first]).c_str());
    first = l;
  }
}

// Long values (vocabularies, templates) are cut to a line.
void print_pairs(const char* title, const Pairs& pairs, Detail detail) {
  constexpr std::size_t kShown = 80;
  std::printf("\n%s (%zu)\n", title, pairs.size());
  for (const auto& [key, value] : pairs) {
    std::string text = value;
    if (detail == Detail::brief && text.size() > kShown) {
      std::size_t end = kShown;
      while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xc0u) == 0x80u) --end;
      text = text.substr(0, end) + " ... (" + format_count(value.size()) + " bytes)";
    }
    std::printf("  %-44s %s\n", printable(key).c_str(), printable(text).c_str());
  }
}

Json pairs_json(const Pairs& pairs) {
  Json json = Json::object();
  for (const auto& [key, value] : pairs) json[key] = value;
  return json;
}

void print_model(const Engine& engine) {
  const ModelInfo& model = engine.model();
  std::printf("  parameters: %s\n  weights: %s (%s)\n", format_count(model.parameters).c_str(),
              format_size(model.weight_bytes).c_str(), model.weight_types.c_str());
  std::printf("  vocabulary: %s tokens\n  context: %s positions\n  chat template: %s\n",
              format_count(model.vocabulary).c_str(), format_count(model.context).c_str(),
              model.has_chat_template ? "yes" : "none");
  std::printf("  KV cache: %s a token", format_size(model.kv_bytes_per_token).c_str());
  for (const std::uint64_t tokens : {8192u, 32768u, 131072u, 1048576u})
    std::printf("%s%s at %llu Ki", tokens == 8192 ? "; " : ", ",
                format_size(model.kv_bytes_per_token * tokens).c_str(),
                static_cast<unsigned long long>(tokens / 1024));
  std::printf("\n\nlayers (%u)\n", model.layers);
  print_layers(engine.layers());
}

// `engine`: null where the file cannot be run.
void print_file(const ModelFile& file, const Engine* engine, Detail detail) {
  const auto said = [](const std::string& text) {
    return text.empty() ? std::string("not said") : printable(text);
  };
  std::printf("%s\n  supported: %s\n  file: GGUF version %u, %s\n", printable(file.path).c_str(),
              engine != nullptr ? "yes" : "no", file.version, format_size(file.bytes).c_str());
  std::printf("  name: %s\n  architecture: %s\n", said(file.name).c_str(),
              said(file.architecture).c_str());
  if (engine != nullptr) print_model(*engine);
  print_pairs("metadata", file.metadata, detail);
  print_pairs("tensors", file.tensors, detail);
}

void add_model(const Engine& engine, Json* json) {
  Json layers = Json::array();
  for (const LayerSpec& layer : engine.layers())
    layers.push_back(Json{{"q_heads", layer.q_heads},
                          {"kv_heads", layer.kv_heads},
                          {"key_dim", layer.key_dim},
                          {"value_dim", layer.value_dim},
                          {"window", layer.window}});
  (*json)["model"] = model_json(engine.model());
  (*json)["chat_template"] = engine.model().has_chat_template;
  (*json)["layers"] = layers;
}

// Why a file cannot be run comes last, after all that it says of itself.
Result<Exit> inspect(const ModelFlags& flags, const std::string& json_path, Detail detail) {
  TL_TRY(flags.engine_options());
  TL_TRY_ASSIGN(JsonOutput output, JsonOutput::open(json_path));
  const Result<ModelFile> file = read_model_file(flags.model);
  const Result<std::unique_ptr<Engine>> engine = flags.open();
  if (!engine && engine.error().code == ErrorCode::invalid_argument)
    return tl::unexpected(engine.error());
  Json json{{"schema", "thermocline/inspect/1"},
            {"path", flags.model},
            {"supported", engine.has_value()}};
  if (!engine) json["reason"] = engine.error().message;
  if (engine) add_model(**engine, &json);
  if (file) {
    if (json_path != "-") print_file(*file, engine ? engine->get() : nullptr, detail);
    json["gguf_version"] = file->version;
    json["bytes"] = file->bytes;
    json["architecture"] = file->architecture;
    json["name"] = file->name;
    json["metadata"] = pairs_json(file->metadata);
    json["tensors"] = pairs_json(file->tensors);
  }
  TL_TRY(output.write(json_text(json)));
  if (engine) return Exit::success;
  std::fflush(stdout);  // before what stderr says
  return tl::unexpected(engine.error());
}

}  // namespace

Result<Exit> run_inspect(const std::vector<std::string>& arguments) {
  ModelFlags flags;
  std::string json;
  bool verbose = false;
  std::vector<std::string> files;
  CommandLine line(
      "inspect", "FILE.gguf [options]",
      "Prints a model file's facts, metadata and tensors, the size of its KV cache, and "
      "whether it can be run here. Of one that cannot, what can be read of it, and why: exit code "
      "1.");
  line.accept_positional(&files, 1);
  flags.add_to(&line);
  auto add = line.group("Output").add_options();
  add("json", po::value(&json)->value_name("FILE"),
      "write all of it as JSON; -: to stdout instead");
  add("verbose,v", po::bool_switch(&verbose), "whole texts, however long");
  TL_TRY_ASSIGN(const CommandLine::Outcome outcome, line.parse(arguments));
  if (outcome == CommandLine::Outcome::helped) return Exit::success;
  if (!files.empty() && !flags.model.empty())
    return fail(ErrorCode::invalid_argument, "-m and '", files.front(), "': one file at a time");
  if (!files.empty()) flags.model = files.front();
  return inspect(flags, json, verbose ? Detail::full : Detail::brief);
}

}  // namespace thermocline
