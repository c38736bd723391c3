#include "runtime/method.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <set>
#include "retrieval/index/faiss_index.h"
#include "runtime/thermocline.h"
#include "tests/support/temporary_folder.h"

namespace thermocline {
namespace {

namespace fs = std::filesystem;

const std::string kMethods = std::string(THERMOCLINE_SOURCE_DIR) + "/configs/methods";
const CpuTable& cpu() { return **choose_cpu_table("auto"); }

Result<Method> load(const std::string& name, const std::vector<std::string>& overrides = {}) {
  return load_method(name, kMethods, overrides, cpu());
}

// A directory with one file, bad.conf.
class MethodFile : public ::testing::Test {
 protected:
  std::string path() const { return directory_ + "/bad.conf"; }
  Result<Method> read(const std::string& text) {
    std::ofstream(path()) << text;
    return load_method("bad", directory_, {}, cpu());
  }
  // The one-line error that names the file and all of `parts`.
  void refuses(const std::string& text, ErrorCode code, std::initializer_list<const char*> parts) {
    const auto method = read(text);
    ASSERT_FALSE(method) << text;
    const std::string& message = method.error().message;
    EXPECT_EQ(method.error().code, code) << message;
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
    EXPECT_NE(message.find(path()), std::string::npos) << message;
    for (const char* part : parts) EXPECT_NE(message.find(part), std::string::npos) << message;
  }

  const test::TemporaryFolder temporary_{"methods"};
  const std::string directory_ = temporary_.path();
};

TEST(Methods, EveryFileLoadsAndSaysWhatItIs) {
  const auto names = method_names(kMethods);
  ASSERT_GE(names.size(), 3u);
  for (const std::string& name : names) {
    const auto method = load(name);
    if (name.starts_with("faiss_") && !check_faiss()) {
      ASSERT_FALSE(method);
      EXPECT_EQ(method.error().code, ErrorCode::unsupported);
      EXPECT_NE(method.error().message.find("not built with FAISS"), std::string::npos);
      continue;
    }
    ASSERT_TRUE(method) << method.error().message;
    EXPECT_EQ(method->name, name);
    EXPECT_FALSE(method->summary.empty()) << name;
    EXPECT_TRUE(method->compress.keys && method->compress.values && method->retain &&
                method->select && method->place);
    const auto by_path = load(kMethods + "/" + name + ".conf");
    ASSERT_TRUE(by_path);
    EXPECT_EQ(by_path->summary, method->summary);
  }
}

TEST(Methods, TheFilesSayWhatTheyAreKnownFor) {
  EXPECT_EQ(load("exact")->select->name(), "everything");
  EXPECT_EQ(load("sketch")->select->name(), "sketch");
  EXPECT_EQ(load("streaming")->retain->name(), "steady");
  EXPECT_FALSE(load("streaming")->retain->keeps());
  EXPECT_EQ(load("streaming")->recent, 2000u);
}

TEST(Methods, EachSideHasItsOwnCodec) {
  const auto method = load("sketch", {"keys.compress=int8"});
  ASSERT_TRUE(method) << method.error().message;
  EXPECT_EQ(method->compress.keys->name(), "int8");
  EXPECT_EQ(method->compress.values->name(), "raw");
}

TEST(Methods, OverridesWinAndTheLastOneMost) {
  const auto method = load(
      "sketch", {"steady.seal=100", "steady.sink = 7", "steady.seal=128", "select.share=1e-2"});
  ASSERT_TRUE(method) << method.error().message;
  EXPECT_EQ(method->seal, 128u);
  EXPECT_EQ(method->sink, 7u);
  EXPECT_EQ(method->recent, 16u);
}

TEST(Methods, RowsLeaveTheTailOnAGridThatBeginsAfterTheSinks) {
  const auto method = load("exact", {"steady.sink=3", "steady.recent=10", "steady.seal=100"});
  ASSERT_TRUE(method);
  EXPECT_EQ(method->seal_rows(), 128u);
  EXPECT_EQ(method->cell_rows(), 8192u);
  const std::vector<std::pair<std::uint32_t, std::uint32_t>> tails = {
      {0, 3}, {13, 3}, {140, 3}, {141, 131}, {268, 131}, {269, 259}, {100013, 99971}};
  for (const auto& [length, begin] : tails) EXPECT_EQ(method->tail_begin(length), begin) << length;
  EXPECT_EQ(load("exact", {"steady.seal=192"})->cell_rows(), 8064u);
  EXPECT_EQ(load("exact", {"steady.seal=8192"})->cell_rows(), 8192u);
}

TEST(Methods, WhatIsMisspeltIsNamedWithWhatIsKnown) {
  struct Case {
    std::string method;
    std::vector<std::string> overrides;
    ErrorCode code;
    std::vector<const char*> parts;
  };
  const auto bad = ErrorCode::invalid_argument;
  for (const Case& c : std::vector<Case>{
           {"sketsch", {}, ErrorCode::not_found, {"sketsch", "known: ", "exact, ", "sketch, "}},
           {"./exact.conf", {}, ErrorCode::not_found, {"./exact.conf"}},
           {"", {}, ErrorCode::not_found, {"known: ", "exact, "}},
           {"../methods/exact", {}, ErrorCode::not_found, {"../methods/exact"}},
           {"sketch", {"select.shares=1"}, bad, {"select.shares", "select.share", "steady.seal"}},
           {"exact", {"keys.flavour=3"}, bad, {"keys.flavour", "keys.compress", "retain.keep"}},
           {"exact", {"place.share=1"}, bad, {"place.share", "place.rows", "select.share"}},
           {"sketch", {"share=0.1"}, bad, {"share", "select.share"}},
           {"sketch", {"base=exact"}, bad, {"'base=exact'", "name that method itself"}},
           {"sketch", {"select.share"}, bad, {"select.share"}},
           {"sketch", {""}, bad, {"section.name=value"}},
           {"sketch", {"# nothing"}, bad, {"section.name=value"}},
           {"sketch", {"select.share=0.1\nselect.share=0.2"}, bad, {"one line"}},
           {"sketch", {"select.share=1.5"}, bad, {"select.share", "1.5", "0 to 1"}},
           {"sketch", {"select.share=-0.1"}, bad, {"select.share", "-0.1"}},
           {"sketch", {"select.share=nan"}, bad, {"select.share", "nan"}},
           {"sketch", {"select.share=2%"}, bad, {"select.share", "2%"}},
           {"sketch", {"select.share="}, bad, {"select.share"}},
           {"sketch", {"select.min_rows=0"}, bad, {"select.min_rows", "0"}},
           {"sketch", {"select.cluster=3"}, bad, {"select.cluster", "4 to 256"}},
           {"sketch", {"select.bits=3"}, bad, {"bits = 3", "1, 2, 4 or 16"}},
           {"oracle_estimate", {"select.bits=8"}, bad, {"bits = 8", "1, 2, 4 or 16"}},
           {"ladder4",
            {"select.bits=16"},
            ErrorCode::unsupported,
            {"bits = 16", "coded = 0, not 0.1"}},
           {"sketch", {"select.share=auto"}, bad, {"select.share = 'auto'", "0 to 1"}},
           {"shadowkv", {"keys.rank=automatic"}, bad, {"keys.rank", "0.001 to 1, nor auto"}},
           {"sketch", {"select.cluster=16.5"}, bad, {"select.cluster", "whole number"}},
           {"sketch", {"select.cluster=1e300"}, bad, {"select.cluster"}},
           {"oracle", {"select.group=most"}, bad, {"select.group", "most", "sum, max, vote"}},
           {"oracle", {"select.group=1"}, bad, {"select.group", "sum, max, vote"}},
           {"oracle", {"select.block=16"}, bad, {"select.block", "flat", "bounds"}},
           {"quest", {"select.estimate=0.1"}, bad, {"bounds", "estimate", "summary"}},
           {"tokenselect", {"select.similarity=2"}, bad, {"select.similarity", "-1 to 1"}},
           {"tokenselect", {"select.reuse=often"}, bad, {"select.reuse", "never, similar"}},
           {"retroinfer",
            {"select.reuse=similar"},
            ErrorCode::unsupported,
            {"select.estimate = 0.232", "select.reuse = never", "select.layers = each"}},
           {"louiskv",
            {"select.layers=share"},
            ErrorCode::unsupported,
            {"select.layers = share", "position order", "clusters"}},
           {"sketch", {"select.reuse=similar"}, bad, {"select.reuse", "sketch", "flat"}},
           {"exact", {"steady.seal=63"}, bad, {"steady.seal", "64 to 8192"}},
           {"exact", {"steady.recent=0"}, bad, {"steady.recent"}},
           {"exact", {"steady.sink=-1"}, bad, {"steady.sink"}},
           {"exact", {"steady.sink=99999999999999999999"}, bad, {"steady.sink"}},
           {"exact", {"select.by=anything"}, bad, {"select.by", "everything, nothing, sketch"}},
           {"exact", {"keys.compress=int3"}, bad, {"keys.compress", "int3", "raw, int8"}},
           {"exact", {"values.compress=int3"}, bad, {"values.compress", "int3", "raw, int8"}},
           {"exact", {"retain.keep=some"}, bad, {"retain.keep", "all, steady"}},
           {"exact", {"place.rows=moon"}, bad, {"place.rows", "spill, lowest, host"}},
           {"exact", {"place.run=far"}, bad, {"place.run", "far", "near, fetch"}},
           {"streaming",
            {"place.run=fetch"},
            ErrorCode::unsupported,
            {"retain.keep = steady", "place.run = near", "place.run = fetch"}},
           {"snapkv", {"retain.pool=6"}, bad, {"snapkv", "pool = 6", "odd"}},
           {"h2o", {"retain.window=6"}, bad, {"retain.window", "h2o", "snapkv"}},
           {"exact", {"retain.share=0.1"}, bad, {"retain.share", "all", "snapkv"}},
           {"tidaldecode",
            {"retain.keep=h2o"},
            ErrorCode::unsupported,
            {"retain.keep = h2o", "select.layers = each", "select.layers = share"}},
           {"sketch",
            {"select.value_bits=4"},
            ErrorCode::unsupported,
            {"'select.value_bits=4'", "no effect where select.coded = 0", "leave it out"}},
           {"sketch", {"select.most_coded=5"}, ErrorCode::unsupported, {"where select.coded = 0"}},
           {"ladder2",
            {"select.coded=0", "select.value_bits=4"},
            ErrorCode::unsupported,
            {"'select.value_bits=4'", "where select.coded = 0"}},
           {"oracle",
            {"select.similarity=0.8"},
            ErrorCode::unsupported,
            {"no effect where select.reuse = never"}},
           {"oracle",
            {"select.choose_in=1"},
            ErrorCode::unsupported,
            {"no effect where select.layers = each"}},
           {"oracle",
            {"select.choose_again_in=1"},
            ErrorCode::unsupported,
            {"no effect where select.layers = each"}},
           {"retrieval_attention",
            {"select.share=0.1"},
            ErrorCode::unsupported,
            {"no effect where select.rows = 300", "give another select.rows"}},
           {"tidaldecode",
            {"select.choose_in=1"},
            ErrorCode::unsupported,
            {"select.choose_in = 1", "select.dense_layers = 2"}},
           {"tidaldecode",
            {"select.choose_in=13"},
            bad,
            {"choose_again_in = 13", "not after select.choose_in = 13"}},
           {"snapkv",
            {"retain.rows=30", "retain.share=0.1"},
            ErrorCode::unsupported,
            {"'retain.share=0.1'", "no effect where retain.rows = 30"}},
           {"retrieval_attention", {"select.own=15"}, bad, {"'select.own=15'", "own = 15"}},
           {"moments",
            {"select.mass=0.5", "select.group_blocks=8"},
            ErrorCode::unsupported,
            {"'select.group_blocks=8'", "mass = 0.5"}},
           {"quest", {"select.rows=2e9"}, bad, {"select.rows", "0 to 16777216"}},
           {"exact", {"select.share=0.1"}, bad, {"select.share", "everything", "sketch"}},
           {"exact", {"retain.keep=steady"}, ErrorCode::unsupported, {"retain.keep", "select.by"}},
           {"streaming",
            {"select.by=sketch"},
            ErrorCode::unsupported,
            {"retain.keep", "sketch"}}}) {
    const auto method = load(c.method, c.overrides);
    const std::string what =
        c.method + " with " + (c.overrides.empty() ? "nothing" : c.overrides[0]);
    ASSERT_FALSE(method) << what;
    EXPECT_EQ(method.error().code, c.code) << what << ": " << method.error().message;
    EXPECT_EQ(method.error().message.find('\n'), std::string::npos) << method.error().message;
    for (const char* part : c.parts)
      EXPECT_NE(method.error().message.find(part), std::string::npos)
          << what << ": " << method.error().message;
  }
}

// A file's parameters may come to nothing by what is said over it, as of a ladder without codes.
TEST(Methods, WhatAFileSaysMayBeWithoutEffectByAnOverride) {
  for (const auto& [method, over] :
       std::vector<std::pair<std::string, std::string>>{{"ladder2", "select.coded=0"},
                                                        {"tokenselect", "select.reuse=never"},
                                                        {"tidaldecode", "select.layers=each"},
                                                        {"h2o", "retain.rows=30"},
                                                        {"oracle", "select.rows=100"}}) {
    const auto loaded = load(method, {over});
    EXPECT_TRUE(loaded) << method << ", " << over << ": " << loaded.error().message;
  }
  EXPECT_TRUE(load("oracle", {"select.share=0.1", "select.rows=100"})) << "the last one most";
  EXPECT_FALSE(load("oracle", {"select.rows=100", "select.share=0.1"}));
}

TEST(Methods, AnOverrideThatIsWrongIsBlamedAndNotTheFile) {
  for (const char* wrong : {"select.share=7", "select.by=anything", "steady.seal=1"}) {
    const auto method = load("sketch", {wrong});
    ASSERT_FALSE(method);
    EXPECT_NE(method.error().message.find("'" + std::string(wrong) + "'"), std::string::npos)
        << method.error().message;
  }
}

TEST(Methods, SayWhetherTheirSelectorKeepsEveryKey) {
  const std::set<std::string> keep = {"faiss_hnsw",      "faiss_ivf",           "oracle",
                                      "oracle_estimate", "retrieval_attention", "tidaldecode",
                                      "tokenselect"};
  const auto lines = list_methods(kMethods);
  ASSERT_TRUE(lines) << lines.error().message;
  std::set<std::string> listed;
  for (const MethodLine& line : *lines) {
    listed.insert(line.name);
    if (line.name.starts_with("faiss_") && !check_faiss()) continue;
    EXPECT_EQ(line.keys_in_memory, keep.contains(line.name)) << line.name;
  }
  for (const std::string& name : keep) EXPECT_TRUE(listed.contains(name)) << name;
}

TEST(Methods, AreAttendedWhereRowsAreUnlessTheySayThatTheyAreFetched) {
  const std::set<std::string> fetched = {"shadowkv", "shadowkv_int4", "shadowkv_int8"};
  for (const std::string& name : method_names(kMethods))
    if (const auto method = load(name)) {
      EXPECT_EQ(method->fetches(), fetched.contains(name)) << name;
    }
  EXPECT_FALSE(load("sketch", {"place.run=near"})->fetches());
  EXPECT_TRUE(load("sketch", {"place.run=fetch"})->fetches());
}

TEST_F(MethodFile, IsRefusedByNameLineAndKnownWords) {
  const auto bad = ErrorCode::invalid_argument;
  refuses("[select]\nby = sketch\nrereads = 8\n", bad, {"select.rereads", "select.share"});
  refuses("[select]\nby = sketch\nchunk = 8\n", bad, {"select.chunk", "sketch", "landmarks"});
  refuses("[selects]\nby = sketch\n", bad, {"selects.by", "select.by"});
  refuses("by = sketch\n", bad, {"'by'", "select.by"});
  refuses("[select]\nby = sketch\nby = everything\n", bad, {"select.by", "twice"});
  refuses("[select]\nby = sketch\nshare = 0.1\n[steady]\n[select]\nshare = 0.2\n", bad,
          {"select.share", "twice"});
  refuses("[select]\nby\n", bad, {"by"});
  refuses("[select]\nby = sketch\nshare = much\n", bad, {"select.share", "much"});
  refuses("[keys]\ncompress = svd\n", bad, {"keys.compress", "svd", "raw"});
  refuses("[values]\ncompress = svd\n", bad, {"svd", "raw"});
  refuses("[retain]\nkeep = steady\n", ErrorCode::unsupported, {"retain.keep", "select.by"});
  refuses("[keys]\nbalance = keys\n", bad, {"keys.balance", "queries"});
  refuses("[select]\nby = moments\ngroup_blocks = 16\nmass = 0.9\n", ErrorCode::unsupported,
          {"moments: mass = 0.9", "without a score", "mass = 0"});
  refuses("[select]\nby = graph\nmass = 0.9\n", ErrorCode::unsupported, {"graph: mass = 0.9"});
  refuses("[select]\nby = graph\ndegree = 8\nown = 7\n", ErrorCode::invalid_argument,
          {"graph: own = 7", "the 8 links", "6 or less"});
  refuses("[select]\nby = moments\ncandidates = 4\n", ErrorCode::unsupported,
          {"select.candidates has no effect where select.group_blocks = 0"});
  refuses(std::string("\x00\xff\x7f", 3), bad, {});
}

// It says what is different, and is the same method as one that says it all.
TEST_F(MethodFile, MayBeWrittenOverAnother) {
  const auto write = [&](const std::string& name, const std::string& text) {
    std::ofstream(directory_ + "/" + name + ".conf") << text;
  };
  write("whole",
        "summary = all of it\n[keys]\ncompress = int8\n[select]\nby = sketch\nshare = 0.1\n");
  const auto method =
      read("base = whole\nsummary = less\n[select]\nshare = 0.2\n[steady]\nsink = 9\n");
  ASSERT_TRUE(method) << method.error().message;
  EXPECT_EQ(method->name, "bad");
  EXPECT_EQ(method->summary, "less");
  EXPECT_EQ(method->sink, 9u);
  EXPECT_EQ(method->choices,
            "keys.compress=int8, select.by=sketch, select.share=0.2, steady.sink=9");
  EXPECT_EQ(method->compress.keys->name(), "int8");
  EXPECT_EQ(read("base = whole\n")->summary, "all of it");
  const std::string over = "steady.sink=8";
  EXPECT_EQ(load_method("bad", directory_, {&over, 1}, cpu())->sink, 8u);

  const auto bad = ErrorCode::invalid_argument;
  refuses("base = nowhere\n", bad, {"base = 'nowhere'", "is no method of the same folder"});
  refuses("base =\n", bad, {"base = ''", "is no method of the same folder"});
  for (const char* path : {"base = ./whole\n", "base = whole.conf\n"})
    refuses(path, bad, {"whole", "is no method of the same folder"});
  refuses("base = bad\n", bad, {"base = 'bad'", "has itself a base, 'bad'"});
  write("second", "base = bad\n");
  refuses("base = second\n", bad, {"base = 'second'", "has itself a base, 'bad'"});
  refuses("base = whole\nbase = second\n", bad, {"base", "twice"});
  refuses("[keys]\nbase = whole\n", bad, {"keys.base", "known: summary, base"});
  // What the base says is wrong there, and what does not go with it names both.
  write("second", "[keys]\ncompress = svd\n");
  const auto of_base = read("base = second\n");
  ASSERT_FALSE(of_base);
  EXPECT_NE(of_base.error().message.find("second.conf: keys.compress = 'svd'"), std::string::npos);
  write("second", "[keys]\ncompress = lowrank\nrank = 0.2\n");
  refuses("base = second\n[keys]\ncompress = int8\n", bad, {"second.conf: keys.rank", "int8"});
}

// Whose folder it names a file from; and a session is of what that says.
TEST_F(MethodFile, MayNameAFileBesideIt) {
  const std::string roles = "[select]\nby = roles\nheads = heads.txt\n";
  refuses(roles, ErrorCode::io, {"heads.txt"});
  std::ofstream(directory_ + "/heads.txt") << "0 0 1\n0 1 0\n";
  const auto method = read(roles);
  ASSERT_TRUE(method) << method.error().message;
  EXPECT_EQ(method->select->facts().watches, Watched::nothing);
  std::ofstream(directory_ + "/heads.txt") << "0 0 1\n0 1 1\n";
  const auto other = read(roles);
  ASSERT_TRUE(other);
  EXPECT_NE(other->choices, method->choices);
  const auto by_override = load("duoattention", {"select.heads=" + directory_ + "/heads.txt"});
  ASSERT_TRUE(by_override) << by_override.error().message;
  refuses(roles + "far = 0.5\n", ErrorCode::unsupported,
          {"select.far has no effect where select.heads is a file"});
  std::ofstream(directory_ + "/heads.txt") << "0 0 1\n0 1\n";
  refuses(roles, ErrorCode::invalid_argument, {"heads.txt:2", "'0 1'"});
}

TEST_F(MethodFile, AnEmptyOneIsFullAttention) {
  const auto method = read("# nothing but a comment\n\n");
  ASSERT_TRUE(method) << method.error().message;
  EXPECT_EQ(method->select->name(), "everything");
  EXPECT_EQ(method->name, "bad");
}

TEST_F(MethodFile, IsRefusedWhereItCannotBeRead) {
  EXPECT_EQ(load_method("bad", directory_, {}, cpu()).error().code, ErrorCode::not_found);
  fs::create_directory(path());
  EXPECT_EQ(load_method(path(), "", {}, cpu()).error().code, ErrorCode::not_found);
  EXPECT_EQ(method_names(directory_ + "/nowhere").size(), 0u);
}

}  // namespace
}  // namespace thermocline
