#include "runtime/method.h"

#include <algorithm>
#include <filesystem>
#include <set>
#include <tuple>

#include "retrieval/index/block_index.h"
#include "retrieval/index/bounds.h"
#include "retrieval/index/clusters.h"
#include "retrieval/index/faiss_index.h"
#include "retrieval/index/flat.h"
#include "retrieval/index/graph.h"
#include "retrieval/index/labels.h"
#include "retrieval/index/landmarks.h"
#include "retrieval/index/lowbit.h"
#include "retrieval/index/moments.h"
#include "retrieval/index/pq.h"
#include "retrieval/select/everything.h"
#include "retrieval/select/mapped_roles.h"
#include "retrieval/select/nothing.h"
#include "retrieval/select/ranked.h"
#include "retrieval/select/reuse.h"
#include "retrieval/select/roles.h"
#include "retrieval/select/share.h"
#include "retrieval/select/sketch.h"
#include "runtime/method_values.h"
#include "runtime/thermocline.h"
#include "tiers/codec/allotted.h"
#include "tiers/codec/bf16.h"
#include "tiers/codec/channels.h"
#include "tiers/codec/groups.h"
#include "tiers/codec/hadamard.h"
#include "tiers/codec/int8.h"
#include "tiers/codec/lowrank.h"
#include "tiers/codec/nuq.h"
#include "tiers/codec/pruned.h"
#include "tiers/codec/raw.h"
#include "tiers/codec/rotated.h"
#include "tiers/parameter.h"
#include "tiers/retain/voted.h"

namespace thermocline {
namespace {

namespace fs = std::filesystem;

template <typename Options>
std::vector<std::string_view> names_of(std::span<const Parameter<Options>> parameters) {
  std::vector<std::string_view> names;
  for (const Parameter<Options>& parameter : parameters) names.push_back(parameter.name);
  return names;
}

constexpr Parameter<Method> kSteady[] = {{"sink", &Method::sink, 0, 1024},
                                         {"recent", &Method::recent, 1, 65536},
                                         {"seal", &Method::seal, kBlockRows, kSegmentRows},
                                         {"join", &Method::join, 0, kSegmentRows / kBlockRows}};

constexpr std::string_view kRuns[] = {"near", "fetch"};
constexpr Parameter<Method> kPlace[] = {{"run", &Method::run, 0, 1, kRuns}};

constexpr std::string_view kBalances[] = {"no", "queries"};
constexpr Parameter<Method> kKeys[] = {{"balance", &Method::balance, 0, 1, kBalances}};

// A shelf: the choices that can be named for one of the four questions, and what each may be given
// beside its name. A new codec, retainer, selector or placer is its file and a line here.
template <typename Made>
struct Choice {
  std::string_view name;
  std::vector<std::string_view> parameters;
  Result<std::unique_ptr<Made>> (*make)(const MethodSection&, const CpuTable&);
  std::string_view summary = {};  // of codecs, whose names users give by themselves
};
template <typename Made>
using Shelf = std::vector<Choice<Made>>;

template <typename Made, typename Base>
Result<std::unique_ptr<Base>> make_plain(const MethodSection&, const CpuTable&) {
  return std::make_unique<Made>();
}

template <typename Made>
Choice<Codec> plain(std::string_view name, std::string_view summary) {
  return {name, {}, make_plain<Made, Codec>, summary};
}

// One that is told which of its kinds it is, and nothing else.
template <typename Made, auto kKind>
Choice<Codec> kind(std::string_view name, std::string_view summary) {
  const auto make = [](const MethodSection&, const CpuTable&) -> Result<std::unique_ptr<Codec>> {
    return std::make_unique<Made>(kKind);
  };
  return {name, {}, make, summary};
}

// What a selector finds wrong with its options, and who had the last word on them.
template <typename Made, typename... Options>
Result<Made> selected(const MethodSection& given, Result<Made> made,
                      std::span<const Parameter<Options>>... parameters) {
  if (made) return made;
  std::string_view last = "by";
  const auto look_through = [&](const auto& of_options) {
    for (const auto& parameter : of_options)
      if (given.said_after(parameter.name, last)) last = parameter.name;
  };
  (look_through(parameters), ...);
  return fail(made.error().code, given.source(last), ": ", made.error().message);
}

Result<std::unique_ptr<Selector>> make_sketch(const MethodSection& given, const CpuTable& cpu) {
  SketchOptions options;
  TL_TRY(given.read(SketchSelector::parameters(), &options));
  TL_TRY_ASSIGN(auto made, selected(given, SketchSelector::create(options, cpu),
                                    SketchSelector::parameters()));
  return std::unique_ptr<Selector>(std::move(made));
}

// What ranks, with its selections read again by later steps and layers, if that is asked for.
Result<std::unique_ptr<Selector>> read_again(const MethodSection& given,
                                             const RankedOptions& ranked,
                                             std::unique_ptr<Selector> made) {
  ReuseOptions reuse;
  TL_TRY(given.read(ReusingSelector::parameters(), &reuse));
  ShareOptions share;
  TL_TRY(given.read(SharingSelector::parameters(), &share));
  if (ranked.estimate > 0 && (reuse.reuse != kReuseNever || share.layers != kLayersEach))
    return fail(ErrorCode::unsupported, given.key("estimate"), " = ", ranked.estimate,
                " has scores of one query: it goes with ", given.key("reuse"), " = never and ",
                given.key("layers"), " = each");
  if (share.layers != kLayersEach && share.choose_in < ranked.dense_layers)
    return fail(ErrorCode::unsupported, given.key("choose_in"), " = ", share.choose_in,
                " is one of the first ", given.key("dense_layers"), " = ", ranked.dense_layers,
                ", which read everything, and so would all that share what it chose");
  TL_TRY_ASSIGN(auto reusing, ReusingSelector::wrap(std::move(made), reuse));
  return SharingSelector::wrap(std::move(reusing), share);
}

constexpr std::string_view kHeads = "heads";  // measured, or the file of a map
Result<std::unique_ptr<Selector>> make_roles(const MethodSection& given, const CpuTable& cpu) {
  if (given.text(kHeads, "measured") != "measured") {
    Result<HeadMap> map = HeadMap::read(given.path(kHeads));
    if (!map)
      return fail(map.error().code, given.source(kHeads), ": ", given.key(kHeads), ": ",
                  map.error().message);
    if (const std::string_view far = RolesSelector::parameters()[0].name;
        given.said_after(far, kHeads))
      return fail(ErrorCode::unsupported, given.source(far), ": ", given.key(far),
                  " has no effect where ", given.key(kHeads), " is a file: leave it out");
    return std::make_unique<MappedRolesSelector>(std::move(*map));
  }
  RolesOptions options;
  TL_TRY(given.read(RolesSelector::parameters(), &options));
  TL_TRY_ASSIGN(auto made, RolesSelector::create(options, cpu));
  return std::unique_ptr<Selector>(std::move(made));
}

// A selector that ranks by a key index, or by what is kept of blocks of neighbouring rows.
template <typename Kept>
Choice<Selector> ranked_by(std::string_view name) {
  std::vector<std::string_view> parameters = names_of(RankedSelector::parameters());
  for (const auto& more : {names_of(Kept::parameters()), names_of(ReusingSelector::parameters()),
                           names_of(SharingSelector::parameters())})
    parameters.insert(parameters.end(), more.begin(), more.end());
  const auto make = [](const MethodSection& given,
                       const CpuTable& cpu) -> Result<std::unique_ptr<Selector>> {
    if constexpr (requires { Kept::available(); }) TL_TRY(Kept::available());
    RankedOptions ranked;
    TL_TRY(given.read(RankedSelector::parameters(), &ranked));
    typename Kept::Options options;
    TL_TRY(given.read(Kept::parameters(), &options));
    if constexpr (requires { Kept::check(options); })
      TL_TRY(selected(given, Kept::check(options), Kept::parameters()));
    auto kept = std::make_unique<Kept>(options, cpu);
    std::unique_ptr<KeyIndex> index;
    if constexpr (std::is_base_of_v<BlockCode, Kept>)
      index = std::make_unique<BlockIndex>(std::move(kept));
    else
      index = std::move(kept);
    TL_TRY_ASSIGN(auto made, selected(given, RankedSelector::create(std::move(index), ranked, cpu),
                                      RankedSelector::parameters(), Kept::parameters()));
    return read_again(given, ranked, std::move(made));
  };
  return {name, parameters, make};
}

template <Result<std::unique_ptr<VotedRetainer>> (*kCreate)(const VotedOptions&, const CpuTable&),
          std::span<const Parameter<VotedOptions>> (*kParameters)()>
Choice<Retainer> voted(std::string_view name) {
  const auto make = [](const MethodSection& given,
                       const CpuTable& cpu) -> Result<std::unique_ptr<Retainer>> {
    VotedOptions options;
    TL_TRY(given.read(kParameters(), &options));
    TL_TRY_ASSIGN(auto made, kCreate(options, cpu));
    return std::unique_ptr<Retainer>(std::move(made));
  };
  return {name, names_of(kParameters()), make};
}

Result<std::unique_ptr<Codec>> make_lowrank(const MethodSection& given, const CpuTable&) {
  LowRankOptions options;
  TL_TRY(given.read(LowRankCodec::parameters(), &options));
  return std::make_unique<LowRankCodec>(options);
}

Result<std::unique_ptr<Codec>> make_lowrank_layers(const MethodSection& given, const CpuTable&) {
  LowRankOptions options = LowRankCodec::kOfLayers;
  TL_TRY(given.read(LowRankCodec::parameters_of_layers(), &options));
  return std::make_unique<LowRankCodec>(options);
}

template <NuqCodec::By kBy>
Result<std::unique_ptr<Codec>> make_nuq(const MethodSection& given, const CpuTable&) {
  NuqOptions options;
  TL_TRY(given.read(NuqCodec::parameters(), &options));
  return std::make_unique<NuqCodec>(kBy, options);
}

const Shelf<Codec>& codecs() {
  static const Shelf<Codec> shelf = {
      plain<RawCodec>("raw", "f16, as keys and values were appended"),
      plain<Int8Codec>("int8", "8 bits a channel, one scale a row"),
      plain<Bf16Codec>("bf16", "16 bits a channel, rounded to bf16"),
      kind<GroupCodec, RowFormat::q8_0>("q8_0", "8 bits, a scale for 32 channels"),
      kind<GroupCodec, RowFormat::q4_0>("q4_0", "4 bits, a scale for 32 channels"),
      kind<GroupCodec, RowFormat::q4_1>("q4_1",
                                        "4 bits, a scale and a least value for 32 channels"),
      kind<GroupCodec, RowFormat::iq4_nl>(
          "iq4_nl", "4 bits on levels that are dense near zero, a scale for 32 channels"),
      kind<GroupCodec, RowFormat::q5_0>("q5_0", "5 bits, a scale for 32 channels"),
      kind<GroupCodec, RowFormat::q5_1>("q5_1",
                                        "5 bits, a scale and a least value for 32 channels"),
      kind<GroupCodec, RowFormat::kivi2>(
          "kivi2", "2 bits, a scale and a least value for 32 channels: KIVI's values"),
      kind<ChannelsCodec, ChannelsCodec::Bits::two>(
          "channels2",
          "2 bits, a scale and a least value for each channel of 32 rows: KIVI's keys"),
      kind<ChannelsCodec, ChannelsCodec::Bits::four>(
          "channels4",
          "4 bits, a scale and a least value for each channel of 32 rows: KIVI's keys"),
      kind<HadamardCodec, HadamardCodec::Bits::two>(
          "hadamard2",
          "2 bits after a Hadamard rotation, 32 channels of like means together: RotateKV's keys"),
      kind<HadamardCodec, HadamardCodec::Bits::four>(
          "hadamard4",
          "4 bits after a Hadamard rotation, 32 channels of like means together: RotateKV's keys"),
      {"lowrank", names_of(LowRankCodec::parameters()), make_lowrank,
       "sums of a few vectors, all heads of a layer together: ShadowKV's keys"},
      {"lowrank_layers", names_of(LowRankCodec::parameters_of_layers()), make_lowrank_layers,
       "sums of a few vectors, all heads of several layers together: xKV's keys"},
      {"nuq4", names_of(NuqCodec::parameters()), make_nuq<NuqCodec::By::channel>,
       "4 bits on levels of the segment's own, a range a channel, outliers apart: KVQuant's keys"},
      {"nuq4_rows", names_of(NuqCodec::parameters()), make_nuq<NuqCodec::By::row>,
       "4 bits on levels of the segment's own, a range a row, outliers apart: KVQuant's values"},
      kind<PrunedCodec, PrunedCodec::Eighths::five>(
          "pruned5", "five of eight channels as they were, the others zero: ThinK's keys"),
      kind<PrunedCodec, PrunedCodec::Eighths::six>(
          "pruned6", "six of eight channels as they were, the others zero: ThinK's keys"),
      kind<AllottedCodec, AllottedCodec::Bits::two>(
          "allotted2",
          "2 bits on average, each channel as many as it is worth to scores: allot2's keys"),
      kind<AllottedCodec, AllottedCodec::Bits::three>(
          "allotted3",
          "3 bits on average, each channel as many as it is worth to scores: allot3's keys"),
      kind<AllottedCodec, AllottedCodec::Bits::four>(
          "allotted4",
          "4 bits on average, each channel as many as it is worth to scores: allot4's keys"),
      kind<RotatedCodec, RotatedCodec::Bits::two>(
          "rotated2", "2 bits after a Hadamard rotation, one scale a row: allot2's values"),
      kind<RotatedCodec, RotatedCodec::Bits::three>(
          "rotated3", "3 bits after a Hadamard rotation, one scale a row: allot3's values"),
      kind<RotatedCodec, RotatedCodec::Bits::four>(
          "rotated4", "4 bits after a Hadamard rotation, one scale a row: allot4's values")};
  return shelf;
}
const Shelf<Retainer>& retainers() {
  static const Shelf<Retainer> shelf = {
      {"all", {}, make_plain<KeepAll, Retainer>},
      {"steady", {}, make_plain<KeepSteady, Retainer>},
      voted<VotedRetainer::snapkv, VotedRetainer::snapkv_parameters>("snapkv"),
      voted<VotedRetainer::h2o, VotedRetainer::h2o_parameters>("h2o")};
  return shelf;
}
const Shelf<Selector>& selectors() {
  static const Shelf<Selector> shelf = {
      {"everything", {}, make_plain<EverythingSelector, Selector>},
      {"nothing", {}, make_plain<NothingSelector, Selector>},
      {"sketch", names_of(SketchSelector::parameters()), make_sketch},
      {"roles", {kHeads, RolesSelector::parameters()[0].name}, make_roles},
      ranked_by<FlatCode>("flat"),
      ranked_by<BoundsCode>("bounds"),
      ranked_by<MomentsCode>("moments"),
      ranked_by<LandmarksCode>("landmarks"),
      ranked_by<LabelsCode>("labels"),
      ranked_by<LowbitCode>("lowbit"),
      ranked_by<ClustersIndex>("clusters"),
      ranked_by<PqCode>("pq"),
      ranked_by<GraphIndex>("graph"),
      ranked_by<FaissIvf>("faiss_ivf"),
      ranked_by<FaissIvfPq>("faiss_ivfpq"),
      ranked_by<FaissHnsw>("faiss_hnsw")};
  return shelf;
}
const Shelf<Placer>& placers() {
  static const Shelf<Placer> shelf = {{"spill", {}, make_plain<HomeSpill, Placer>},
                                      {"lowest", {}, make_plain<HomeLowest, Placer>},
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
bool takes(const Choice<Made>& choice, std::string_view parameter) {
  return std::count(choice.parameters.begin(), choice.parameters.end(), parameter) > 0;
}

template <typename Made, typename Which>
std::string names_of(const Shelf<Made>& shelf, const Which& which) {
  std::string names;
  for (const auto& choice : shelf)
    if (which(choice)) names += (names.empty() ? "" : ", ") + std::string(choice.name);
  return names;
}

// The choice that `section.question` names; unsaid, the shelf's first.
template <typename Made>
Result<std::unique_ptr<Made>> choose(const MethodValues& values, const CpuTable& cpu,
                                     std::string_view section_name, std::string_view question,
                                     const Shelf<Made>& shelf) {
  const MethodSection section(values, section_name);
  const std::string key = section.key(question);
  const std::string name = values.text(key, std::string(shelf.front().name));
  const auto choice =
      std::find_if(shelf.begin(), shelf.end(), [&](const auto& one) { return one.name == name; });
  if (choice == shelf.end())
    return fail(ErrorCode::invalid_argument, values.source(key), ": ", key, " = '", name,
                "' is not known; known: ", names_of(shelf, [](const auto&) { return true; }));
  for (const auto& other : shelf)
    for (const std::string_view p : other.parameters) {
      if (takes(*choice, p) || !values.has(section.key(p))) continue;
      // What was said last is what a user can leave out.
      const std::string parameter = section.key(p);
      std::string advice;
      if (values.source(key) != values.source(parameter)) {
        if (values.said_after(key, parameter)) advice = values.source(key);
        if (values.said_after(parameter, key))
          advice += (advice.empty() ? "" : ", or ") + values.source(parameter);
      }
      return fail(ErrorCode::invalid_argument, values.source(parameter), ": ", parameter,
                  " has no meaning for ", key, " = ", name, " (it belongs to ",
                  names_of(shelf, [&](const auto& one) { return takes(one, p); }), ")",
                  advice.empty() ? "" : ": leave out ", advice);
    }
  return choice->make(section, cpu);
}

// The names that a file may give a value to.
std::vector<std::string> known_names() {
  std::vector<std::string> known = {"summary", "base"};
  for (const Parameter<Method>& parameter : kSteady)
    known.push_back("steady." + std::string(parameter.name));
  for (const Parameter<Method>& parameter : kPlace)
    known.push_back("place." + std::string(parameter.name));
  for (const Parameter<Method>& parameter : kKeys)
    known.push_back("keys." + std::string(parameter.name));
  for_questions([&](const std::string& section, const char* question, const auto& shelf) {
    std::set<std::string_view> names = {question};  // choices of a shelf may share a parameter
    for (const auto& choice : shelf)
      names.insert(choice.parameters.begin(), choice.parameters.end());
    for (const std::string_view name : names) known.push_back(section + "." + std::string(name));
  });
  return known;
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

// unsupported: choices that do not go together, by the names of both. A combination that it lets
// pass works.
Status check_composition(const Method& method) {
  const SelectorFacts facts = method.select->facts();
  if (method.compress.layout(kRowUnit, kRowUnit).bytes() == 0)
    return fail(ErrorCode::unsupported, "keys.compress = ", method.compress.keys->name(),
                " leaves no bytes of a row where rows are at home, so it goes with a "
                "values.compress that does, not values.compress = ",
                method.compress.values->name());
  if (!method.retain->keeps()) {
    // It seals nothing: whatever else is said of sealed rows would be ignored.
    const std::tuple<std::string_view, std::string_view, std::string_view> others[] = {
        {"select.by", method.select->name(), "nothing"},
        {"keys.compress", method.compress.keys->name(), "raw"},
        {"values.compress", method.compress.values->name(), "raw"},
        {"place.rows", method.place->name(), "spill"},
        {"place.run", kRuns[method.run], kRuns[kRunNear]},
        {"keys.balance", kBalances[method.balance], kBalances[kBalanceNo]}};
    for (const auto& [key, name, only] : others)
      if (name != only)
        return fail(ErrorCode::unsupported, "retain.keep = ", method.retain->name(),
                    " seals no rows, so it goes with ", key, " = ", only, ", not ", key, " = ",
                    name);
  }
  for (const auto& [key, codec] : {std::pair("keys.compress", method.compress.keys.get()),
                                   std::pair("values.compress", method.compress.values.get())})
    if (method.drops() && codec->fitter() && codec->fitter()->spans_heads())
      return fail(ErrorCode::unsupported, "retain.keep = ", method.retain->name(),
                  " keeps other positions in each head, so it goes with rows that are a head's "
                  "own, not ",
                  key, " = ", codec->name());
  if (facts.shares && method.drops())
    return fail(ErrorCode::unsupported, "retain.keep = ", method.retain->name(),
                " keeps other positions in each layer, so it goes with select.layers = each, not "
                "select.layers = share");
  return {};
}

}  // namespace

std::string Method::watches() const {
  std::string all;
  const auto add = [&](bool watched, const char* what) {
    if (watched) all += (all.empty() ? "" : ", ") + std::string(what);
  };
  add(select->facts().watches == Watched::queries || fits_by_queries(), "queries");
  add(retain->voters() == Voters::last, "last window");
  add(retain->voters() == Voters::all, "rows");
  return all;
}

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
  TL_TRY_ASSIGN(const MethodValues values, MethodValues::read(path, overrides, known_names()));

  Method method;
  method.name = fs::path(path).stem().string();
  method.summary = values.text("summary", "");
  method.choices = values.choices();
  TL_TRY_ASSIGN(method.compress.keys, choose(values, cpu, "keys", "compress", codecs()));
  TL_TRY_ASSIGN(method.compress.values, choose(values, cpu, "values", "compress", codecs()));
  TL_TRY_ASSIGN(method.retain, choose(values, cpu, "retain", "keep", retainers()));
  TL_TRY_ASSIGN(method.select, choose(values, cpu, "select", "by", selectors()));
  TL_TRY_ASSIGN(method.place, choose(values, cpu, "place", "rows", placers()));
  if (const std::string more = method.select->fingerprint(); !more.empty())
    method.choices += ", of which a file is " + more;
  TL_TRY(MethodSection(values, "steady").read<Method>(kSteady, &method));
  TL_TRY(MethodSection(values, "place").read<Method>(kPlace, &method));
  TL_TRY(MethodSection(values, "keys").read<Method>(kKeys, &method));
  if (Status fits = check_composition(method); !fits)
    return fail(fits.error().code, path, ": ", fits.error().message);
  return method;
}

std::vector<MethodQuestion> method_questions() {
  std::vector<MethodQuestion> questions;
  for_questions([&](const std::string& section, const std::string& question, const auto& shelf) {
    questions.push_back({section + "." + question, {}});
    for (const auto& choice : shelf) questions.back().choices.emplace_back(choice.name);
  });
  return questions;
}

Status check_method(const std::string& name, const std::string& directory,
                    std::span<const std::string> overrides) {
  TL_TRY_ASSIGN(const CpuTable* cpu, choose_cpu_table("auto"));
  TL_TRY(load_method(name, directory, overrides, *cpu));
  return {};
}

Result<std::string> watched_by(const std::string& name, const std::string& directory,
                               std::span<const std::string> overrides) {
  TL_TRY_ASSIGN(const CpuTable* const cpu, choose_cpu_table("auto"));
  TL_TRY_ASSIGN(const Method method, load_method(name, directory, overrides, *cpu));
  return method.watches();
}

std::vector<CodecLine> list_codecs() {
  std::vector<CodecLine> lines;
  for (const auto& choice : codecs()) {
    CodecLine& line = lines.emplace_back();
    line.name = choice.name;
    line.summary = choice.summary;
    line.parameters.assign(choice.parameters.begin(), choice.parameters.end());
  }
  return lines;
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
    const Result<Method> loaded = load_method(name, directory, {}, *cpu);
    if (!loaded && loaded.error().code == ErrorCode::unsupported) {
      lines.push_back({name, loaded.error().message, directory + "/" + name + ".conf", "-", "-"});
      continue;
    }
    TL_TRY(loaded);
    const Method& method = *loaded;
    const SelectorFacts facts = method.select->facts();
    const std::string watches = method.watches();
    lines.push_back({name, method.summary, directory + "/" + name + ".conf",
                     std::string(name_of(facts.order)), watches.empty() ? "nothing" : watches,
                     facts.keys_in_memory});
  }
  return lines;
}

}  // namespace thermocline
