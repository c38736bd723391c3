#include "runtime/method.h"

#include <algorithm>
#include <boost/program_options.hpp>
#include <charconv>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <sstream>

#include "retrieval/select/everything.h"
#include "retrieval/select/nothing.h"
#include "retrieval/select/sketch.h"
#include "runtime/thermocline.h"
#include "tiers/codec/int8.h"
#include "tiers/codec/raw.h"

namespace thermocline {
namespace {

namespace fs = std::filesystem;
namespace po = boost::program_options;

// A method's values, and who gave each, the file or an override: so that every error names its
// cause and the parameter.
class Parameters {
 public:
  struct Given {
    std::string text, source;
  };
  Parameters(std::string file, std::map<std::string, Given> values)
      : file_(std::move(file)), values_(std::move(values)) {}

  std::string text(const std::string& key, const std::string& otherwise) const {
    const auto found = values_.find(key);
    return found == values_.end() ? otherwise : found->second.text;
  }
  bool has(const std::string& key) const { return values_.count(key) != 0; }
  const std::string& source(const std::string& key) const {
    const auto found = values_.find(key);
    return found == values_.end() ? file_ : found->second.source;
  }

  Result<double> number(const std::string& key, double otherwise, double least, double most) const {
    const auto found = values_.find(key);
    if (found == values_.end()) return otherwise;
    const std::string& text = found->second.text;
    double value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc{} || end != text.data() + text.size() || !(value >= least) ||
        !(value <= most))
      return fail(ErrorCode::invalid_argument, source(key), ": ", key, " = '", text,
                  "' is not a number from ", least, " to ", most);
    return value;
  }
  Result<std::uint32_t> integer(const std::string& key, std::uint32_t otherwise,
                                std::uint32_t least, std::uint32_t most) const {
    TL_TRY_ASSIGN(const double value, number(key, otherwise, least, most));
    if (value != std::floor(value))
      return fail(ErrorCode::invalid_argument, source(key), ": ", key, " = ", value,
                  " is not a whole number");
    return static_cast<std::uint32_t>(value);
  }

 private:
  std::string file_;
  std::map<std::string, Given> values_;
};

// The parameters of one choice, which lie in its question's section.
class Section {
 public:
  Section(const Parameters& all, std::string_view name) : all_(all), name_(name) {}

  std::string key(std::string_view parameter) const { return name_ + "." + std::string(parameter); }
  Result<double> number(std::string_view parameter, double otherwise, double least,
                        double most) const {
    return all_.number(key(parameter), otherwise, least, most);
  }
  Result<std::uint32_t> integer(std::string_view parameter, std::uint32_t otherwise,
                                std::uint32_t least, std::uint32_t most) const {
    return all_.integer(key(parameter), otherwise, least, most);
  }

 private:
  const Parameters& all_;
  std::string name_;
};

// A shelf: the choices that can be named for one of the four questions, and what each may be given
// beside its name. A new codec, retainer, selector or placer is its file and a line here.
template <typename Made>
struct Choice {
  std::string_view name;
  std::vector<std::string_view> parameters;
  Result<std::unique_ptr<Made>> (*make)(const Section&, const CpuTable&);
};
template <typename Made>
using Shelf = std::vector<Choice<Made>>;

template <typename Made, typename Base>
Result<std::unique_ptr<Base>> make_plain(const Section&, const CpuTable&) {
  return std::make_unique<Made>();
}

Result<std::unique_ptr<Selector>> make_sketch_selector(const Section& given, const CpuTable& cpu) {
  SketchOptions options;
  TL_TRY_ASSIGN(options.share, given.number("share", options.share, 0, 1));
  TL_TRY_ASSIGN(options.min_rows, given.integer("min_rows", options.min_rows, 1, 1u << 20));
  TL_TRY_ASSIGN(options.cluster, given.integer("cluster", options.cluster, 4, 256));
  TL_TRY_ASSIGN(options.reach, given.number("reach", options.reach, 0, 100));
  TL_TRY_ASSIGN(options.candidates, given.number("candidates", options.candidates, 1, 1000));
  TL_TRY_ASSIGN(auto made, SketchSelector::create(options, cpu));
  return std::unique_ptr<Selector>(std::move(made));
}

const Shelf<Codec>& codecs() {
  static const Shelf<Codec> shelf = {{"raw", {}, make_plain<RawCodec, Codec>},
                                     {"int8", {}, make_plain<Int8Codec, Codec>}};
  return shelf;
}
const Shelf<Retainer>& retainers() {
  static const Shelf<Retainer> shelf = {{"all", {}, make_plain<KeepAll, Retainer>},
                                        {"steady", {}, make_plain<KeepSteady, Retainer>}};
  return shelf;
}
const Shelf<Selector>& selectors() {
  static const Shelf<Selector> shelf = {
      {"everything", {}, make_plain<EverythingSelector, Selector>},
      {"nothing", {}, make_plain<NothingSelector, Selector>},
      {"sketch", {"share", "min_rows", "cluster", "reach", "candidates"}, make_sketch_selector}};
  return shelf;
}
const Shelf<Placer>& placers() {
  static const Shelf<Placer> shelf = {{"lowest", {}, make_plain<HomeLowest, Placer>},
                                      {"host", {}, make_plain<HomeHost, Placer>}};
  return shelf;
}

// Calls visit(section, question, shelf) for each question that a method answers.
template <typename Visit>
void for_questions(const Visit& visit) {
  visit("keys", "compress", codecs());
  visit("values", "compress", codecs());
  visit("retain", "keep", retainers());
  visit("select", "by", selectors());
  visit("place", "rows", placers());
}

template <typename Made>
std::string names_of(const Shelf<Made>& shelf) {
  std::string names;
  for (const auto& choice : shelf) names += (names.empty() ? "" : ", ") + std::string(choice.name);
  return names;
}

// The choice that `section.question` names; unsaid, the shelf's first.
template <typename Made>
Result<std::unique_ptr<Made>> choose(const Parameters& parameters, const CpuTable& cpu,
                                     std::string_view section_name, std::string_view question,
                                     const Shelf<Made>& shelf) {
  const Section section(parameters, section_name);
  const std::string key = section.key(question);
  const std::string name = parameters.text(key, std::string(shelf.front().name));
  const auto choice =
      std::find_if(shelf.begin(), shelf.end(), [&](const auto& one) { return one.name == name; });
  if (choice == shelf.end())
    return fail(ErrorCode::invalid_argument, parameters.source(key), ": ", key, " = '", name,
                "' is not known; known: ", names_of(shelf));
  for (const auto& other : shelf)
    for (const std::string_view p : other.parameters) {
      const bool ours = std::count(choice->parameters.begin(), choice->parameters.end(), p) > 0;
      if (!ours && parameters.has(section.key(p)))
        return fail(ErrorCode::invalid_argument, parameters.source(section.key(p)), ": ",
                    section.key(p), " has no meaning for ", key, " = ", name, " (it belongs to ",
                    other.name, ")");
    }
  return choice->make(section, cpu);
}

po::options_description known_parameters() {
  po::options_description known;
  const auto add = [&](const std::string& name) {
    known.add_options()(name.c_str(), po::value<std::string>());
  };
  for (const char* name : {"summary", "place.run", "steady.sink", "steady.recent", "steady.seal"})
    add(name);
  for_questions([&](const std::string& section, const char* question, const auto& shelf) {
    std::set<std::string_view> names = {question};  // choices of a shelf may share a parameter
    for (const auto& choice : shelf)
      names.insert(choice.parameters.begin(), choice.parameters.end());
    for (const std::string_view name : names) add(section + "." + std::string(name));
  });
  return known;
}

std::string known_list() {
  const po::options_description known = known_parameters();
  std::string list;
  for (const auto& option : known.options())
    list += (list.empty() ? "" : ", ") + option->long_name();
  return list;
}

Result<std::map<std::string, Parameters::Given>> read_values(const std::string& source,
                                                             std::istream& text) {
  std::map<std::string, Parameters::Given> values;
  try {
    const auto parsed = po::parse_config_file(text, known_parameters());
    for (const auto& option : parsed.options) {
      if (values.count(option.string_key))
        return fail(ErrorCode::invalid_argument, source, ": ", option.string_key,
                    " is given twice");
      values[option.string_key] = {option.value.empty() ? "" : option.value[0], source};
    }
  } catch (const po::unknown_option& unknown) {
    return fail(ErrorCode::invalid_argument, source, ": '", unknown.get_option_name(),
                "' is not a parameter; known: ", known_list());
  } catch (const po::error& error) {
    return fail(ErrorCode::invalid_argument, source, ": ", error.what());
  }
  return values;
}

Result<std::string> find_file(const std::string& name, const std::string& directory) {
  std::error_code ignored;
  if (name.find('/') != std::string::npos || name.ends_with(".conf")) {
    if (fs::is_regular_file(name, ignored)) return name;
    return fail(ErrorCode::not_found, "there is no method file '", name, "'");
  }
  const std::string path = directory + "/" + name + ".conf";
  if (fs::is_regular_file(path, ignored)) return path;
  std::string names;
  for (const std::string& known : method_names(directory))
    names += (names.empty() ? "" : ", ") + known;
  return fail(ErrorCode::not_found, "there is no method '", name, "' in ", directory,
              "; known: ", names.empty() ? "none" : names);
}

}  // namespace

std::string find_method_directory() {
  std::error_code ignored;
  for (const char* directory : {THERMOCLINE_SOURCE_METHODS, THERMOCLINE_INSTALLED_METHODS})
    if (fs::is_directory(directory, ignored)) return directory;
  return THERMOCLINE_INSTALLED_METHODS;
}

std::vector<std::string> method_names(const std::string& directory) {
  std::vector<std::string> names;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(directory, error))
    if (entry.path().extension() == ".conf") names.push_back(entry.path().stem().string());
  std::sort(names.begin(), names.end());
  return names;
}

Result<Method> load_method(const std::string& name_or_path, const std::string& directory,
                           std::span<const std::string> overrides, const CpuTable& cpu) {
  TL_TRY_ASSIGN(const std::string path,
                find_file(name_or_path, directory.empty() ? find_method_directory() : directory));
  std::ifstream file(path);
  if (!file) return fail(ErrorCode::io, "method file '", path, "' cannot be read");
  TL_TRY_ASSIGN(auto values, read_values(path, file));
  for (const std::string& override_text : overrides) {
    if (override_text.find('\n') != std::string::npos)
      return fail(ErrorCode::invalid_argument,
                  "an override of a method is one line, section.name=value, not several");
    if (override_text.find('=') == std::string::npos)
      return fail(ErrorCode::invalid_argument, "'", override_text,
                  "' is not of the form section.name=value");
    std::istringstream line(override_text);
    TL_TRY_ASSIGN(const auto more, read_values("'" + override_text + "'", line));
    if (more.empty())
      return fail(ErrorCode::invalid_argument, "'", override_text,
                  "' is not of the form section.name=value");
    for (const auto& [key, value] : more) values[key] = value;
  }
  const Parameters parameters(path, std::move(values));

  Method method;
  method.name = fs::path(path).stem().string();
  method.summary = parameters.text("summary", "");
  TL_TRY_ASSIGN(method.compress.keys, choose(parameters, cpu, "keys", "compress", codecs()));
  TL_TRY_ASSIGN(method.compress.values, choose(parameters, cpu, "values", "compress", codecs()));
  TL_TRY_ASSIGN(method.retain, choose(parameters, cpu, "retain", "keep", retainers()));
  TL_TRY_ASSIGN(method.select, choose(parameters, cpu, "select", "by", selectors()));
  TL_TRY_ASSIGN(method.place, choose(parameters, cpu, "place", "rows", placers()));
  if (parameters.text("place.run", "fetch") != "fetch")
    return fail(ErrorCode::unsupported, parameters.source("place.run"), ": place.run = '",
                parameters.text("place.run", ""), "' is not known; known: fetch");
  TL_TRY_ASSIGN(method.sink, parameters.integer("steady.sink", method.sink, 0, 1024));
  TL_TRY_ASSIGN(method.recent, parameters.integer("steady.recent", method.recent, 1, 65536));
  TL_TRY_ASSIGN(method.seal,
                parameters.integer("steady.seal", method.seal, kBlockRows, kSegmentRows));
  if (method.retain->name() == "steady" && method.select->facts().name != "nothing")
    return fail(ErrorCode::unsupported, path,
                ": retain.keep = steady leaves nothing to select, so "
                "it goes with select.by = nothing, not ",
                method.select->facts().name);
  return method;
}

Result<std::vector<MethodLine>> list_methods(const std::string& asked) {
  const std::string directory = asked.empty() ? find_method_directory() : asked;
  TL_TRY_ASSIGN(const CpuTable* cpu, choose_cpu_table("auto"));
  const std::vector<std::string> names = method_names(directory);
  if (names.empty())
    return fail(ErrorCode::not_found, "there are no methods in '", directory,
                "': name the folder that holds exact.conf");
  std::vector<MethodLine> lines;
  for (const std::string& name : names) {
    TL_TRY_ASSIGN(const Method method, load_method(name, directory, {}, *cpu));
    const SelectorFacts facts = method.select->facts();
    lines.push_back({name, method.summary, directory + "/" + name + ".conf", facts.order,
                     facts.watches, facts.keys_in_memory ? "yes" : "no"});
  }
  return lines;
}

}  // namespace thermocline
