// thermocline methods: what can be named with --method.
#include <cstdio>

#include "tools/thermocline/command.h"
#include "tools/thermocline/flags.h"
#include "tools/thermocline/json_output.h"
#include "tools/thermocline/printable.h"
#include "tools/thermocline/statistics.h"

namespace thermocline {
namespace {

namespace po = boost::program_options;
using Json = nlohmann::ordered_json;

}  // namespace

Result<Exit> run_methods(const std::vector<std::string>& arguments) {
  std::string directory, json;
  CommandLine line(
      "methods", "[options]",
      "Lists the methods that can be named with --method, and three facts that say how "
      "each composes: the order in which it stores rows, what it watches, and whether "
      "it keeps a copy of every key in memory. Then the codecs that keys.compress and "
      "values.compress of a method can name, and -ctk and -ctv, which call raw f16.");
  auto add = line.group("Options").add_options();
  add("method-dir", po::value(&directory)->value_name("DIR"),
      "where they are (the installed ones)");
  add("json", po::value(&json)->value_name("FILE"), "write them as JSON; -: to stdout");
  TL_TRY_ASSIGN(const CommandLine::Outcome outcome, line.parse(arguments));
  if (outcome == CommandLine::Outcome::helped) return Exit::success;

  TL_TRY(check_method_directory(directory));
  TL_TRY_ASSIGN(JsonOutput output, JsonOutput::open(json));
  TL_TRY_ASSIGN(const std::vector<MethodLine> methods, list_methods(method_directory(directory)));
  Json list = Json::array();
  for (const MethodLine& m : methods) {
    list.push_back(Json{{"name", m.name},
                        {"summary", m.summary},
                        {"path", m.path},
                        {"order", m.order},
                        {"watches", m.watches},
                        {"keys_in_memory", m.keys_in_memory}});
    if (json == "-") continue;
    std::printf("%-19s %s\n%19s order: %s; watches: %s; keys in memory: %s\n%19s %s\n",
                printable(m.name).c_str(), printable(m.summary).c_str(), "", m.order.c_str(),
                m.watches.c_str(), m.keys_in_memory ? "yes" : "no", "", printable(m.path).c_str());
  }
  Json codecs = Json::array();
  if (json != "-")
    std::printf(
        "\ncodecs, for keys.compress and values.compress, and for -ctk and -ctv, which call "
        "raw f16\n");
  for (const CodecLine& codec : list_codecs()) {
    codecs.push_back(
        Json{{"name", codec.name}, {"summary", codec.summary}, {"parameters", codec.parameters}});
    if (json == "-") continue;
    std::string more;
    for (const std::string& name : codec.parameters) more += (more.empty() ? "; " : ", ") + name;
    std::printf("%-19s %s%s\n", codec.name.c_str(), codec.summary.c_str(), more.c_str());
  }
  TL_TRY(output.write(
      json_text(Json{{"schema", "thermocline/methods/2"}, {"methods", list}, {"codecs", codecs}})));
  return Exit::success;
}

}  // namespace thermocline
