#include "runtime/model/tokenizer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <nlohmann/json.hpp>
#include <random>
#include <sstream>

#include "kernels/base/utf8.h"
#include "runtime/model/gguf.h"
#include "runtime/model/pre_tokenizer.h"
#include "tests/support/models.h"
#include "tests/support/tiny_vocab.h"

namespace thermocline {
namespace {

using test::Bytes;
using test::GgufWriter;
using test::TinyBpe;
using test::TinySpm;
using Ids = std::vector<std::int32_t>;

Result<Tokenizer> make(const GgufWriter& writer) {
  const Bytes bytes = writer.bytes();
  TL_TRY_ASSIGN(const auto file, GgufFile::parse(bytes, "tiny.gguf"));
  return Tokenizer::create(file);
}

template <typename Vocabulary>
Tokenizer tiny(const Vocabulary& vocabulary = {}) {
  GgufWriter writer;
  add_tokenizer(vocabulary, &writer);
  auto tokenizer = make(writer);
  if (!tokenizer) ADD_FAILURE() << tokenizer.error().message;
  return std::move(*tokenizer);
}

Ids encode(const Tokenizer& tokenizer, std::string_view text, ParseSpecial parse = ParseSpecial::no,
           AddSpecial add = AddSpecial::no) {
  const auto ids = tokenizer.encode(text, parse, add);
  EXPECT_TRUE(ids) << ids.error().message;
  return ids ? *ids : Ids{};
}

std::vector<std::string> names(const Tokenizer& tokenizer, const Ids& ids) {
  std::vector<std::string> out;
  for (std::int32_t id : ids) out.emplace_back(tokenizer.name(id));
  return out;
}

std::string streamed(const Tokenizer& tokenizer, const Ids& ids) {
  Detokenizer stream(tokenizer);
  std::string out;
  for (std::int32_t id : ids) out += stream.push(id);
  return out + stream.flush();
}

using Names = std::vector<std::string>;

TEST(Bpe, MergesByRank) {
  const Tokenizer t = tiny<TinyBpe>();
  EXPECT_EQ(t.kind(), "bpe");
  EXPECT_EQ(names(t, encode(t, "hello world")), (Names{"hello", "Ġwor", "l", "d"}));
  EXPECT_EQ(names(t, encode(t, "aaaaaaa")), (Names{"aaaa", "aa", "a"}));
  EXPECT_EQ(names(t, encode(t, "   wor")), (Names{"ĠĠ", "Ġwor"}));
  EXPECT_EQ(encode(t, ""), Ids{});
}

TEST(Bpe, WordsAreCutBeforeMerging) {
  TinyBpe digits;
  digits.pre = "smollm";  // every digit by itself
  const Tokenizer alone = tiny(digits), together = tiny<TinyBpe>();
  EXPECT_EQ(names(together, encode(together, "12")), (Names{"12"}));
  EXPECT_EQ(names(alone, encode(alone, "12")), (Names{"1", "2"}));
}

// Unicode's white space, as the patterns' authors had it; PCRE2's own \s has U+180E too.
TEST(PreTokenizer, SpacesAreUnicodes) {
  constexpr std::string_view kSpaces[] = {R"(\s+)"};
  const PreTokenizer splitter = PreTokenizer::create(kSpaces).value();
  const StopAsked never;
  EncodeStop stop(never);
  const auto words = [&](std::string_view text) {
    std::vector<std::string_view> out;
    EXPECT_TRUE(splitter.split(text, &stop, &out));
    return out.size();
  };
  EXPECT_EQ(words("a b"), 3u);
  EXPECT_EQ(words("a\xc2\x85"
                  "b"),
            3u);  // U+0085
  EXPECT_EQ(words("a\xe3\x80\x80"
                  "b"),
            3u);  // U+3000
  EXPECT_EQ(words("a\xe1\xa0\x8e"
                  "b"),
            1u);  // U+180E
  EXPECT_EQ(words("a\xff"
                  "b"),
            3u);  // what is not UTF-8 stands alone
  EXPECT_EQ(words(""), 0u);
}

TEST(Bpe, SpecialTokensAreParsedOnlyWhenAsked) {
  const Tokenizer t = tiny<TinyBpe>();
  const std::string text = "<|im_start|>he<|im_end|>";
  EXPECT_EQ(names(t, encode(t, text, ParseSpecial::yes)),
            (Names{"<|im_start|>", "he", "<|im_end|>"}));
  for (std::int32_t id : encode(t, text, ParseSpecial::no)) EXPECT_FALSE(t.is_control(id));
  // A user-defined token is one always.
  EXPECT_EQ(names(t, encode(t, "he[user]", ParseSpecial::no)), (Names{"he", "[user]"}));
  EXPECT_EQ(t.decode(encode(t, text, ParseSpecial::yes)).value(), "he");
  EXPECT_EQ(t.decode(encode(t, text, ParseSpecial::yes), ShowSpecial::yes).value(), text);
}

TEST(Bpe, RolesAndEnds) {
  const Tokenizer t = tiny<TinyBpe>();
  const std::int32_t end = t.find("<|im_end|>").value();
  EXPECT_EQ(t.eos(), end);
  EXPECT_EQ(t.eot(), end);
  EXPECT_EQ(t.bos(), t.find("<|endoftext|>"));
  EXPECT_TRUE(t.is_end(end));
  EXPECT_TRUE(t.is_end(*t.bos()));  // "<|endoftext|>" ends a text whatever else it is
  EXPECT_FALSE(t.is_end(t.find("<|im_start|>").value()));
  EXPECT_FALSE(t.is_end(-1));
  EXPECT_FALSE(t.adds_bos());
  EXPECT_FALSE(t.find("no such token"));
}

TEST(Bpe, TheFrameIsTheFiles) {
  GgufWriter writer;
  add_tokenizer(TinyBpe{}, &writer);
  writer.add_bool("tokenizer.ggml.add_bos_token", true);
  writer.add_bool("tokenizer.ggml.add_eos_token", true);
  const Tokenizer t = make(writer).value();
  EXPECT_EQ(names(t, encode(t, "he", ParseSpecial::no, AddSpecial::yes)),
            (Names{"<|endoftext|>", "he", "<|im_end|>"}));
  EXPECT_EQ(names(t, encode(t, "he", ParseSpecial::no, AddSpecial::no)), (Names{"he"}));
}

TEST(Spm, MergesByScoreAndFallsBackToBytes) {
  const Tokenizer t = tiny<TinySpm>();
  EXPECT_EQ(t.kind(), "spm");
  EXPECT_EQ(names(t, encode(t, "hello world")), (Names{"▁hello", "▁wor", "ld"}));
  EXPECT_EQ(names(t, encode(t, "é€")), (Names{"▁", "é", "<0xE2>", "<0x82>", "<0xAC>"}));
  EXPECT_EQ(names(t, encode(t, "a", ParseSpecial::no, AddSpecial::yes)), (Names{"<s>", "▁", "a"}));
  // The text of a control token is no control token.
  for (std::int32_t id : encode(t, "<s></s><unk>")) EXPECT_FALSE(t.is_control(id));
  EXPECT_EQ(t.decode(encode(t, " hello")).value(), " hello");
  EXPECT_EQ(streamed(t, encode(t, " hello")), " hello");
}

TEST(Spm, WithoutBytesItSaysUnknown) {
  TinySpm vocabulary;
  vocabulary.byte_tokens = false;
  const Tokenizer t = tiny(vocabulary);
  EXPECT_EQ(names(t, encode(t, "€a")), (Names{"▁", "<unk>", "a"}));
}

TEST(Tokenizer, BytesWithoutATokenAreCounted) {
  const auto left_out = [](const Tokenizer& t, std::string_view text,
                           ParseSpecial parse = ParseSpecial::yes) {
    std::size_t bytes = 99, of_pieces = 99;
    EXPECT_TRUE(t.encode(text, parse, AddSpecial::yes, {}, &bytes));
    const std::vector<TextPiece> pieces = {{"he", parse}, {std::string(text), parse}};
    EXPECT_TRUE(t.encode(pieces, AddSpecial::yes, {}, &of_pieces));
    EXPECT_EQ(of_pieces, bytes);
    return bytes;
  };
  const Tokenizer whole = tiny<TinyBpe>(), spm = tiny<TinySpm>();
  TinyBpe lacking;
  lacking.missing = "a\xff\x80";
  TinySpm unknown;
  unknown.byte_tokens = false;
  const Tokenizer bpe = tiny(lacking), bare = tiny(unknown);
  for (const Tokenizer* t : {&whole, &spm, &bpe, &bare}) {
    EXPECT_EQ(left_out(*t, ""), 0u);
    EXPECT_EQ(left_out(*t, "hello wor"), 0u);
  }
  EXPECT_EQ(left_out(whole, "a\xff<|im_end|>"), 0u);
  EXPECT_EQ(left_out(bpe,
                     "b\xff"
                     "b\x80<|im_end|>\xff"),
            3u);
  EXPECT_EQ(names(bpe, encode(bpe,
                              "h\xff"
                              "e")),
            (Names{"h", "e"}));
  EXPECT_EQ(left_out(bpe, "aaaaaaa"), 1u);  // aaaa and aa are tokens
  // A character that the vocabulary cannot spell is one unknown token.
  EXPECT_EQ(left_out(bare, "€a"), 3u);
  EXPECT_EQ(left_out(spm, "€a"), 0u);
  // U+2581 is read as a space, which is a token.
  for (const Tokenizer* t : {&spm, &bare}) EXPECT_EQ(left_out(*t, "a▁▁a ▁"), 0u);
}

TEST(Tokenizer, RandomBytesComeBack) {
  std::mt19937 random(7);
  std::vector<Tokenizer> all;
  for (const PreTokenizerSpec& spec : pre_tokenizers()) {
    TinyBpe vocabulary;
    vocabulary.pre = spec.names.front();
    if (vocabulary.pre != "gemma4") all.push_back(tiny(vocabulary));
  }
  all.push_back(tiny<TinySpm>());
  TinySpm bare;
  bare.space_prefix = false;
  all.push_back(tiny(bare));
  for (const Tokenizer& t : all) {
    for (int round = 0; round < 200; ++round) {
      std::string text(random() % 64, '\0');
      // Half of the rounds stay near ASCII, where merges happen.
      for (char& c : text) c = static_cast<char>(random() % (round % 2 == 0 ? 256 : 128));
      ASSERT_EQ(t.decode(encode(t, text)).value(), text) << t.pre() << " round " << round;
    }
  }
}

// Emits nothing that is not valid UTF-8, and everything that is.
TEST(Detokenizer, HoldsBackIncompleteCharacters) {
  const Tokenizer t = tiny<TinyBpe>();
  Detokenizer stream(t);
  std::vector<std::string> pieces;
  for (unsigned char byte : std::string("a\xf0\x9f\x98\x80z")) pieces.push_back(stream.push(byte));
  EXPECT_EQ(pieces, (Names{"a", "", "", "", "\xf0\x9f\x98\x80", "z"}));
  // Broken: the lead of a character, then a letter; a stray continuation; an end in the middle.
  EXPECT_EQ(stream.push(0xe2), "");
  EXPECT_EQ(stream.push('b'),
            "\xef\xbf\xbd"
            "b");
  EXPECT_EQ(stream.push(0x80), "\xef\xbf\xbd");
  EXPECT_EQ(stream.push(0xf0), "");
  EXPECT_EQ(stream.push(0x9f), "");
  EXPECT_EQ(stream.flush(), "\xef\xbf\xbd");
  EXPECT_EQ(stream.flush(), "");
  EXPECT_EQ(stream.push(-1), "");
  EXPECT_EQ(stream.push(1 << 30), "");
}

TEST(Detokenizer, StreamsWhatDecodeGives) {
  const Tokenizer t = tiny<TinySpm>();
  for (const char* text : {"hello world", "é€😀 ok", " two  spaces ", "日本語", ""})
    EXPECT_EQ(streamed(t, encode(t, text)), text);
}

TEST(Tokenizer, DecodeRefusesForeignIds) {
  const Tokenizer t = tiny<TinyBpe>();
  for (std::int32_t id : {-1, static_cast<std::int32_t>(t.size()), INT32_MAX, INT32_MIN})
    EXPECT_FALSE(t.decode(Ids{id}));
}

TEST(Tokenizer, LongRunsAreNotQuadratic) {
  const Tokenizer bpe = tiny<TinyBpe>(), spm = tiny<TinySpm>();
  for (const Tokenizer* t : {&bpe, &spm}) {
    for (char c : {'a', ' ', '\n', '1', '.', '\xff'}) {
      const std::string text(1 << 18, c);
      const std::clock_t start = std::clock();
      const Ids ids = encode(*t, text);
      const double seconds = static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
      EXPECT_EQ(t->decode(ids).value(), text);
      // A tenth of a second of work, on this thread's own clock; quadratic would be minutes.
      EXPECT_LT(seconds, 30) << t->kind() << " on a run of " << static_cast<int>(c);
    }
  }
}

TEST(Tokenizer, StopsInTheMidstOfAnyText) {
  const Tokenizer bpe = tiny<TinyBpe>(), spm = tiny<TinySpm>();
  const std::pair<const char*, std::string> kinds[] = {{"words", "hello world\n"},
                                                       {"one word", "a"},
                                                       {"BPE's special tokens", "<|im_end|>"},
                                                       {"SentencePiece's", "</s>"}};
  for (const Tokenizer* t : {&bpe, &spm})
    for (const auto& [kind, piece] : kinds) {
      SCOPED_TRACE(std::string(t->kind()) + ", " + kind);
      std::string text;
      for (int i = 0; i < 20000; ++i) text += piece;
      int asked = 0, yes = 10;
      const StopAsked stop = [&] { return ++asked == yes; };
      const auto stopped = t->encode(text, ParseSpecial::yes, AddSpecial::yes, stop);
      ASSERT_FALSE(stopped);
      EXPECT_EQ(stopped.error().code, ErrorCode::cancelled);
      EXPECT_EQ(asked, yes);
      asked = 0;
      const std::vector<TextPiece> pieces = {{text, ParseSpecial::yes}, {text, ParseSpecial::no}};
      EXPECT_FALSE(t->encode(pieces, AddSpecial::yes, stop));
      EXPECT_EQ(asked, yes);
      yes = -1;
      EXPECT_EQ(t->encode(text, ParseSpecial::yes, AddSpecial::no, stop).value(),
                encode(*t, text, ParseSpecial::yes));
    }
}

// Entries are added to an otherwise sound file that lacks them.
TEST(Tokenizer, RefusesVocabulariesThatContradictThemselves) {
  const Names tokens = {"a", "b", "ab", "<s>"};
  const Ids types = {1, 1, 1, 3};
  const Names merges = {"a b"};
  const auto base = [&](std::string_view without) {
    GgufWriter w;
    const auto wanted = [&](std::string_view key) { return key != without; };
    if (wanted("model")) w.add_string("tokenizer.ggml.model", "gpt2");
    if (wanted("pre")) w.add_string("tokenizer.ggml.pre", "gpt-2");
    if (wanted("tokens")) w.add_strings("tokenizer.ggml.tokens", tokens);
    if (wanted("token_type")) w.add_i32s("tokenizer.ggml.token_type", types);
    if (wanted("merges")) w.add_strings("tokenizer.ggml.merges", merges);
    return w;
  };
  ASSERT_TRUE(make(base("")));
  struct Case {
    std::string_view without, part;
    std::function<void(GgufWriter*)> add;
  };
  const auto key = [](const char* leaf) { return std::string("tokenizer.ggml.") + leaf; };
  const auto none = [](GgufWriter*) {};
  const std::vector<Case> cases = {
      {"model", "has no metadata", none},
      {"tokens", "has no metadata", none},
      {"merges", "has no metadata", none},
      {"model", "this build knows gpt2, llama",
       [&](auto* w) { w->add_string(key("model"), "bert"); }},
      {"model", "a string was expected", [&](auto* w) { w->add_u32(key("model"), 1); }},
      {"model", "tokenizer.ggml.scores", [&](auto* w) { w->add_string(key("model"), "llama"); }},
      {"pre", "this build knows gpt-2", [&](auto* w) { w->add_string(key("pre"), "gpt-3"); }},
      {"tokens", "is empty", [&](auto* w) { w->add_strings(key("tokens"), Names{}); }},
      {"tokens", "a string was expected", [&](auto* w) { w->add_i32s(key("tokens"), types); }},
      {"tokens", "are both",
       [&](auto* w) {
         w->add_strings(key("tokens"), Names{"a", "b", "a", "c"});
       }},
      {"tokens", "the limit",
       [&](auto* w) {
         w->add_strings(key("tokens"), Names{"a", "b", "c", std::string(70000, 'x')});
       }},
      {"tokens", "special token 3",
       [&](auto* w) {
         w->add_strings(key("tokens"), Names{"a", "b", "c", std::string(2000, 'x')});
       }},
      {"token_type", "has 3 elements",
       [&](auto* w) {
         w->add_i32s(key("token_type"), Ids{1, 1, 1});
       }},
      {"token_type", "is 7",
       [&](auto* w) {
         w->add_i32s(key("token_type"), Ids{1, 1, 1, 7});
       }},
      {"token_type", "is -1",
       [&](auto* w) {
         w->add_i32s(key("token_type"), Ids{1, -1, 1, 1});
       }},
      {"token_type", "an i32 was expected",
       [&](auto* w) {
         w->add_f32s(key("token_type"), std::vector<float>{1, 1, 1, 1});
       }},
      {"token_type", "byte token 0",
       [&](auto* w) {
         w->add_i32s(key("token_type"), Ids{6, 1, 1, 1});
       }},
      {"", "has 2 elements",
       [&](auto* w) {
         w->add_f32s(key("scores"), std::vector<float>{1, 2});
       }},
      {"", "is not a number",
       [&](auto* w) {
         w->add_f32s(key("scores"), std::vector<float>{1, NAN, 1, 1});
       }},
      {"", "a number was expected", [&](auto* w) { w->add_strings(key("scores"), tokens); }},
      {"merges", "two pieces", [&](auto* w) { w->add_strings(key("merges"), Names{"ab"}); }},
      {"merges", "two pieces", [&](auto* w) { w->add_strings(key("merges"), Names{""}); }},
      {"merges", "two pieces", [&](auto* w) { w->add_strings(key("merges"), Names{"a "}); }},
      {"", "there are 4", [&](auto* w) { w->add_u32(key("bos_token_id"), 4); }},
      {"", "there are 4", [&](auto* w) { w->add_u32(key("eos_token_id"), 0xffffffffu); }},
      {"", "a u32 was expected", [&](auto* w) { w->add_i32(key("eos_token_id"), -1); }},
      {"", "a bool was expected", [&](auto* w) { w->add_u32(key("add_bos_token"), 1); }},
      {"", "no tokenizer.ggml.bos_token_id",
       [&](auto* w) { w->add_bool(key("add_bos_token"), true); }},
      {"", "no tokenizer.ggml.eos_token_id",
       [&](auto* w) { w->add_bool(key("add_eos_token"), true); }},
  };
  for (const Case& c : cases) {
    GgufWriter w = base(c.without);
    c.add(&w);
    const auto tokenizer = make(w);
    ASSERT_FALSE(tokenizer) << c.part;
    const std::string& message = tokenizer.error().message;
    EXPECT_TRUE(message.starts_with("tiny.gguf")) << message;
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
    EXPECT_NE(message.find(c.part), std::string::npos) << message;
  }
  // "<0x-1>" once indexed a table with -1.
  for (const char* name : {"<0x-1>", "<0x1>", "<0xgg>", "<0x00", "<0x000>", "<0Xff>"}) {
    GgufWriter v;
    v.add_string(key("model"), "gpt2").add_strings(key("merges"), merges);
    v.add_strings(key("tokens"), Names{"a", name}).add_i32s(key("token_type"), Ids{1, 6});
    const auto tokenizer = make(v);
    ASSERT_FALSE(tokenizer) << name;
    EXPECT_NE(tokenizer.error().message.find("byte token 1"), std::string::npos);
  }
}

// Merges of spellings that the vocabulary does not have: spelled in bytes at the end.
TEST(Bpe, SurvivesMergesWithoutTokens) {
  GgufWriter w;
  w.add_string("tokenizer.ggml.model", "gpt2").add_string("tokenizer.ggml.pre", "gpt-2");
  w.add_strings("tokenizer.ggml.tokens", Names{"a", "b", "abc"});
  w.add_strings("tokenizer.ggml.merges", Names{"a b", "ab c", "b b"});
  const Tokenizer t = make(w).value();
  EXPECT_EQ(encode(t, "ab"), (Ids{0, 1}));
  EXPECT_EQ(encode(t, "abc"), (Ids{2}));
  EXPECT_EQ(encode(t, "bb!"), (Ids{1, 1}));  // no token for "!": it leaves no trace
}

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

Result<Tokenizer> open(const std::string& path) {
  TL_TRY_ASSIGN(const auto file, GgufFile::open(path));
  return Tokenizer::create(file);
}

class Golden : public testing::TestWithParam<const char*> {};

TEST_P(Golden, EqualsTheModelsOwn) {
  const auto golden = nlohmann::json::parse(read_file(
      std::string(THERMOCLINE_SOURCE_DIR "/tests/golden/tokenizer_") + GetParam() + ".json"));
  const std::string model = golden["model"];
  const auto path = test::find_model(model);
  if (!path) GTEST_SKIP() << test::model_missing(model);
  ASSERT_EQ(std::filesystem::file_size(*path), golden["model_bytes"]) << "another file: " << *path;
  const auto tokenizer = open(*path);
  ASSERT_TRUE(tokenizer) << tokenizer.error().message;
  EXPECT_GE(golden["cases"].size(), 500u);
  for (const auto& c : golden["cases"]) {
    const std::string text = c["text"];
    const Ids plain = c["plain"];
    const Ids special = c.contains("special") ? c["special"].get<Ids>() : plain;
    EXPECT_EQ(encode(*tokenizer, text, ParseSpecial::no), plain) << text;
    EXPECT_EQ(encode(*tokenizer, text, ParseSpecial::yes), special) << text;
    // What comes back is what llama.cpp's ids stand for, except for bytes without a token.
    const std::string back = tokenizer->decode(plain, ShowSpecial::yes).value();
    if (back.size() == text.size()) {
      EXPECT_EQ(back, text);
    }
  }
}
INSTANTIATE_TEST_SUITE_P(Models, Golden, testing::Values("smollm2", "gemma3"),
                         [](const auto& param) { return std::string(param.param); });

class PeerVocabulary : public testing::TestWithParam<const char*> {};

// llama.cpp's vocabularies with texts (.inp) and their tokens (.out), taken from its source
// package.
TEST_P(PeerVocabulary, EqualsItsExpectations) {
  const auto folder = test::find_vocabs();
  if (!folder) GTEST_SKIP() << test::vocabs_missing();
  const std::string path = *folder + "/ggml-vocab-" + GetParam() + ".gguf";
  const auto tokenizer = open(path);
  ASSERT_TRUE(tokenizer) << tokenizer.error().message;
  const std::string separator = "\n__ggml_vocab_test__\n";
  const std::string input = read_file(path + ".inp");
  std::istringstream expected(read_file(path + ".out"));
  std::size_t at = 0, count = 0;
  for (std::string line; std::getline(expected, line); ++count) {
    const std::size_t end = std::min(input.find(separator, at), input.size());
    const std::string text = input.substr(at, end - at);
    std::istringstream numbers(line);
    const Ids ids{std::istream_iterator<std::int32_t>(numbers), {}};
    EXPECT_EQ(encode(*tokenizer, text), ids) << text;
    at = end + separator.size();
  }
  EXPECT_GE(count, 40u);
}
INSTANTIATE_TEST_SUITE_P(All, PeerVocabulary,
                         testing::Values("command-r", "deepseek-coder", "deepseek-llm", "falcon",
                                         "gemma-4", "gpt-2", "llama-bpe", "llama-spm", "mpt",
                                         "phi-3", "qwen2", "qwen35", "refact", "starcoder"),
                         [](const auto& param) {
                           std::string name = param.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

TEST(PeerVocabularies, OtherKindsAreRefusedByName) {
  const auto folder = test::find_vocabs();
  if (!folder) GTEST_SKIP() << test::vocabs_missing();
  for (auto [name, kind] : {std::pair{"bert-bge", "bert"}, {"nomic-bert-moe", "t5"}}) {
    const auto tokenizer = open(*folder + "/ggml-vocab-" + name + ".gguf");
    ASSERT_FALSE(tokenizer);
    EXPECT_EQ(tokenizer.error().code, ErrorCode::unsupported);
    EXPECT_NE(tokenizer.error().message.find(kind), std::string::npos) << tokenizer.error().message;
  }
}

TEST(Tokenizer, RandomBytesComeBackFromRealVocabularies) {
  const auto folder = test::find_vocabs();
  if (!folder) GTEST_SKIP() << test::vocabs_missing();
  std::mt19937 random(11);
  // These have a token for every byte.
  for (const char* name : {"gpt-2", "llama-bpe", "qwen2", "llama-spm", "command-r"}) {
    const auto tokenizer = open(*folder + "/ggml-vocab-" + name + ".gguf");
    ASSERT_TRUE(tokenizer) << tokenizer.error().message;
    for (int round = 0; round < 100; ++round) {
      std::string text(random() % 200, '\0');
      for (char& c : text) c = static_cast<char>(random());
      const Ids ids = encode(*tokenizer, text);
      ASSERT_EQ(tokenizer->decode(ids).value(), text) << name << " round " << round;
      for (std::int32_t id : ids) ASSERT_FALSE(tokenizer->is_control(id));
    }
  }
}

}  // namespace
}  // namespace thermocline
