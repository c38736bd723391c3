#include "runtime/model/pre_tokenizer.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <string>

#include "kernels/base/utf8.h"

namespace thermocline {
namespace {

using Names = std::string_view;

// The patterns are those of the models' own tokenizer.json files, \s being Unicode's white space.
#define TL_CONTRACTIONS "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
#define TL_SPACES R"(|\s*[\r\n]+|\s+(?!\S)|\s+)"
#define TL_LETTERS R"([^\r\n\p{L}\p{N}]?\p{L}+)"
#define TL_UPPER R"([\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}])"
#define TL_LOWER R"([\p{Ll}\p{Lm}\p{Lo}\p{M}])"

constexpr std::string_view kGpt2 =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S))";
constexpr std::string_view kLlama3 =
    TL_CONTRACTIONS "|" TL_LETTERS R"(|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*)" TL_SPACES;
constexpr std::string_view kQwen2 =
    TL_CONTRACTIONS "|" TL_LETTERS R"(|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*)" TL_SPACES;
constexpr std::string_view kQwen35 = TL_CONTRACTIONS
    R"(|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*)" TL_SPACES;
constexpr std::string_view kTekken =
    R"([^\r\n\p{L}\p{N}]?)" TL_UPPER "*" TL_LOWER R"(+|[^\r\n\p{L}\p{N}]?)" TL_UPPER "+" TL_LOWER
    R"(*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*)" TL_SPACES;
constexpr std::string_view kGpt4o =
    R"([^\r\n\p{L}\p{N}]?)" TL_UPPER "*" TL_LOWER "+" TL_CONTRACTIONS
    R"(?|[^\r\n\p{L}\p{N}]?)" TL_UPPER "+" TL_LOWER "*" TL_CONTRACTIONS
    R"(?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*)" TL_SPACES;
constexpr std::string_view kDeepseek3Words =
    R"re([!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+)re"
    R"(| ?[\p{P}\p{S}]+[\r\n]*)" TL_SPACES;
// Ranges that Unicode normalization would change are written as numbers.
constexpr std::string_view kDeepseekLetters =
    R"(\s?[A-Za-z\x{00B5}À-ÖØ-öø-ƺƼ-ƿ\x{01C4}-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-\x{03F5}Ϸ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-)"
    R"(Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-\x{1F7D}ᾀ-ᾴᾶ-ᾼ\x{1FBE}ῂ-ῄῆ-ῌῐ-\x{1FD3}ῖ-)"
    R"(\x{1FDB}ῠ-Ῥῲ-ῴῶ-ῼ\x{2102}\x{2107}\x{210A}-\x{2113}\x{2115}\x{2119}-\x{211D}\x{2124})"
    R"(\x{2126}\x{2128}\x{212A}-\x{212D}\x{212F}-\x{2134}\x{2139}\x{213C}-\x{213F}\x{2145}-)"
    R"(\x{2149}ⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿ\x{FB00}-\x{FB06}\x{FB13}-\x{FB17}\x{FF21}-)"
    R"(\x{FF3A}\x{FF41}-\x{FF5A}\x{10400}-\x{1044F}\x{104B0}-\x{104D3}\x{104D8}-\x{104FB})"
    R"(\x{10C80}-\x{10CB2}\x{10CC0}-\x{10CF2}\x{118A0}-\x{118DF}\x{1E900}-\x{1E943}]+)";

#undef TL_CONTRACTIONS
#undef TL_SPACES
#undef TL_LETTERS
#undef TL_UPPER
#undef TL_LOWER

constexpr Names kGpt2Names[] = {"gpt-2",   "phi-2",   "mpt",      "olmo",
                                "jais",    "mellum",  "trillion", "granite-docling",
                                "exaone4", "gigachat"};
constexpr std::string_view kGpt2Patterns[] = {kGpt2};

constexpr Names kSmollmNames[] = {"smollm",    "starcoder", "refact",    "command-r",
                                  "codeshell", "exaone",    "minerva-7b"};
constexpr std::string_view kSmollmPatterns[] = {R"(\p{N})", kGpt2};

constexpr Names kLlama3Names[] = {"llama-bpe", "llama3",  "llama-v3", "falcon3",
                                  "falcon-h1", "pixtral", "lfm2"};
constexpr std::string_view kLlama3Patterns[] = {kLlama3};
constexpr Names kGlmNames[] = {"glm4"};
constexpr Names kPlainLlama3Names[] = {"smaug-bpe", "dbrx", "chatglm-bpe"};

constexpr Names kQwen2Names[] = {"qwen2", "deepseek-r1-qwen", "stablelm2", "megrez", "hunyuan"};
constexpr std::string_view kQwen2Patterns[] = {kQwen2};
constexpr Names kQwen35Names[] = {"qwen35"};
constexpr std::string_view kQwen35Patterns[] = {kQwen35};

constexpr Names kTekkenNames[] = {"tekken"};
constexpr std::string_view kTekkenPatterns[] = {kTekken};
constexpr Names kGpt4oNames[] = {"gpt-4o", "llama4"};
constexpr std::string_view kGpt4oPatterns[] = {kGpt4o};

constexpr Names kDeepseekLlmNames[] = {"deepseek-llm"};
constexpr std::string_view kDeepseekLlmPatterns[] = {
    R"([\r\n])",
    kDeepseekLetters,
    R"(\s?[!-/:-~！-／：-～‘-‟　-。]+)",
    R"(\s+$)",
    R"([一-龥ࠀ-一가-퟿]+)",
    R"(\p{N}+)",
};
constexpr Names kDeepseekCoderNames[] = {"deepseek-coder"};
constexpr std::string_view kDeepseekCoderPatterns[] = {
    R"([\r\n])", R"(\s?\p{L}+)", R"(\s?\p{P}+)", R"([一-龥ࠀ-一가-퟿]+)", R"(\p{N})",
};
constexpr Names kDeepseek3Names[] = {"deepseek-v3", "hunyuan-dense"};
constexpr std::string_view kDeepseek3Patterns[] = {R"(\p{N}{1,3})", R"([一-龥぀-ゟ゠-ヿ]+)",
                                                   kDeepseek3Words};

constexpr Names kFalconNames[] = {"falcon"};
constexpr std::string_view kFalconPatterns[] = {R"([\p{P}\$\+<=>\^~\|`]+)", kGpt2,
                                                R"([0-9][0-9][0-9])"};

// Files from before tokenizer.ggml.pre existed.
constexpr Names kDefaultNames[] = {"default"};
constexpr std::string_view kDefaultPatterns[] = {R"([\p{P}\$\+<=>\^~\|]+)", kGpt2, R"(\p{N}+)",
                                                 R"([0-9][0-9][0-9])"};

constexpr Names kLinesNames[] = {"gemma4"};
constexpr std::string_view kLinesPatterns[] = {R"([^\n]+|\n+)"};

constexpr PreTokenizerSpec kSpecs[] = {
    {kGpt2Names, kGpt2Patterns},
    {kSmollmNames, kSmollmPatterns},
    {kLlama3Names, kLlama3Patterns, true, true},
    {kGlmNames, kLlama3Patterns, true},
    {kPlainLlama3Names, kLlama3Patterns},
    {kQwen2Names, kQwen2Patterns},
    {kQwen35Names, kQwen35Patterns},
    {kTekkenNames, kTekkenPatterns, true, true},
    {kGpt4oNames, kGpt4oPatterns},
    {kDeepseekLlmNames, kDeepseekLlmPatterns},
    {kDeepseekCoderNames, kDeepseekCoderPatterns},
    {kDeepseek3Names, kDeepseek3Patterns},
    {kFalconNames, kFalconPatterns},
    {kDefaultNames, kDefaultPatterns},
    {kLinesNames, kLinesPatterns, false, true},
};

// PCRE2's own \s has U+180E, which Unicode no longer counts as white space, and Rust never matched.
std::string unicode_spaces(std::string_view pattern) {
  std::string out;
  for (std::size_t i = 0; i < pattern.size(); ++i) {
    const bool escape = pattern[i] == '\\' && i + 1 < pattern.size();
    if (escape && pattern[i + 1] == 's') {
      out += "\\p{White_Space}";
    } else if (escape && pattern[i + 1] == 'S') {
      out += "\\P{White_Space}";
    } else {
      out += pattern.substr(i, escape ? 2 : 1);
    }
    if (escape) ++i;
  }
  return out;
}

struct FreeCode {
  void operator()(pcre2_code* code) const { pcre2_code_free(code); }
};
struct FreeMatch {
  void operator()(pcre2_match_data* match) const { pcre2_match_data_free(match); }
};

// The longest stretch from `at` that is valid (or is not) throughout.
std::size_t stretch_end(std::string_view text, std::size_t at, bool valid) {
  while (at < text.size()) {
    const Utf8Step step = utf8_step(text.substr(at));
    if ((step.kind == Utf8Step::Kind::character) != valid) break;
    at += step.bytes;
  }
  return at;
}

}  // namespace

std::span<const PreTokenizerSpec> pre_tokenizers() { return kSpecs; }

const PreTokenizerSpec* find_pre_tokenizer(std::string_view name) {
  for (const PreTokenizerSpec& spec : kSpecs)
    if (std::find(spec.names.begin(), spec.names.end(), name) != spec.names.end()) return &spec;
  return nullptr;
}

struct PreTokenizer::Pattern {
  std::unique_ptr<pcre2_code, FreeCode> code;
};

struct PreTokenizer::Scratch {
  std::vector<std::unique_ptr<pcre2_match_data, FreeMatch>> match;  // one a pattern
  std::vector<std::string_view> from, to;
};

PreTokenizer::PreTokenizer() = default;
PreTokenizer::PreTokenizer(PreTokenizer&&) noexcept = default;
PreTokenizer& PreTokenizer::operator=(PreTokenizer&&) noexcept = default;
PreTokenizer::~PreTokenizer() = default;

Result<PreTokenizer> PreTokenizer::create(std::span<const std::string_view> patterns) {
  PreTokenizer out;
  for (std::string_view pattern : patterns) {
    const std::string text = unicode_spaces(pattern);
    int error = 0;
    PCRE2_SIZE at = 0;
    pcre2_code* code =
        pcre2_compile(reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(),
                      PCRE2_UTF | PCRE2_UCP | PCRE2_DOLLAR_ENDONLY, &error, &at, nullptr);
    if (code == nullptr) {
      PCRE2_UCHAR message[256] = {};
      pcre2_get_error_message(error, message, sizeof(message));
      return fail(ErrorCode::unsupported, "this PCRE2 cannot read the pattern ", text, " at ", at,
                  ": ", reinterpret_cast<const char*>(message), ": version 10.40 is needed");
    }
    out.patterns_.push_back({std::unique_ptr<pcre2_code, FreeCode>(code)});
    // Where the system forbids new code the interpreter does, an order slower.
    pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);
  }
  return out;
}

Status PreTokenizer::split_valid(std::string_view text, EncodeStop* stop, Scratch* scratch,
                                 std::vector<std::string_view>* words) const {
  scratch->from.assign(1, text);
  for (std::size_t p = 0; p < patterns_.size(); ++p) {
    const pcre2_code* code = patterns_[p].code.get();
    pcre2_match_data* match = scratch->match[p].get();
    scratch->to.clear();
    for (std::string_view piece : scratch->from) {
      const auto subject = reinterpret_cast<PCRE2_SPTR>(piece.data());
      std::size_t done = 0, at = 0;
      while (at < piece.size()) {
        TL_TRY(stop->check());
        int found =
            pcre2_match(code, subject, piece.size(), at, PCRE2_NO_UTF_CHECK, match, nullptr);
        if (found == PCRE2_ERROR_JIT_STACKLIMIT)
          found = pcre2_match(code, subject, piece.size(), at, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT,
                              match, nullptr);
        if (found == PCRE2_ERROR_NOMATCH) break;
        if (found < 0)
          return fail(ErrorCode::exhausted, "cutting a text of ", piece.size(),
                      " bytes into words: PCRE2 gave up (", found, "): encode it in parts");
        const PCRE2_SIZE* span = pcre2_get_ovector_pointer(match);
        if (span[0] > done) scratch->to.push_back(piece.substr(done, span[0] - done));
        if (span[1] > span[0]) scratch->to.push_back(piece.substr(span[0], span[1] - span[0]));
        TL_CHECK(span[1] > at);  // no pattern of the table matches nothing
        done = at = span[1];
      }
      if (done < piece.size()) scratch->to.push_back(piece.substr(done));
    }
    std::swap(scratch->from, scratch->to);
  }
  words->insert(words->end(), scratch->from.begin(), scratch->from.end());
  return {};
}

Status PreTokenizer::split(std::string_view text, EncodeStop* stop,
                           std::vector<std::string_view>* words) const {
  Scratch scratch;
  for (const Pattern& pattern : patterns_) {
    scratch.match.emplace_back(pcre2_match_data_create_from_pattern(pattern.code.get(), nullptr));
    if (scratch.match.back() == nullptr)
      return fail(ErrorCode::exhausted, "no memory for cutting a text into words");
  }
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t valid = stretch_end(text, at, true);
    if (valid > at) TL_TRY(split_valid(text.substr(at, valid - at), stop, &scratch, words));
    const std::size_t invalid = stretch_end(text, valid, false);
    if (invalid > valid) words->push_back(text.substr(valid, invalid - valid));
    at = invalid;
  }
  return {};
}

}  // namespace thermocline
