#include "tests/support/fuzz_entries.h"

#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <string_view>

#include "kernels/base/utf8.h"
#include "runtime/model/gguf.h"
#include "runtime/model/pre_tokenizer.h"
#include "runtime/model/tokenizer.h"
#include "tests/support/gguf_writer.h"
#include "tests/support/tiny_vocab.h"

namespace thermocline::test {
namespace {

bool valid_utf8(std::string_view text) { return find_invalid_utf8(text) == text.npos; }

void check_refusal(const Error& error) {
  TL_CHECK(!error.message.empty());
  TL_CHECK(error.message.find('\n') == std::string::npos);
  TL_CHECK(error.message.size() < 4096);
}

enum class Trip : bool { lossy, exact };

// Encodes and decodes, whole and as a stream. Exact: the text comes back.
void check_text(const Tokenizer& tokenizer, std::string_view text, Trip trip) {
  for (ParseSpecial parse : {ParseSpecial::no, ParseSpecial::yes}) {
    const auto tokens = tokenizer.encode(text, parse, AddSpecial::no);
    if (!tokens) {
      TL_CHECK(trip == Trip::lossy);
      check_refusal(tokens.error());
      continue;
    }
    for (std::int32_t token : *tokens) {
      TL_CHECK(tokenizer.contains(token));
      if (parse == ParseSpecial::no) TL_CHECK(!tokenizer.is_control(token) || trip == Trip::lossy);
    }
    const auto decoded = tokenizer.decode(*tokens, ShowSpecial::yes);
    TL_CHECK(decoded.has_value());
    const bool spaced = parse == ParseSpecial::yes && tokenizer.strips_leading_space();
    if (trip == Trip::exact && !spaced) TL_CHECK(*decoded == text);
    Detokenizer stream(tokenizer, Detokenizer::At::start, ShowSpecial::yes);
    std::string shown;
    for (std::int32_t token : *tokens) {
      const std::string piece = stream.push(token);
      TL_CHECK(valid_utf8(piece));
      shown += piece;
    }
    shown += stream.flush();
    TL_CHECK(valid_utf8(shown));
    if (valid_utf8(*decoded)) TL_CHECK(shown == *decoded);
  }
}

Tokenizer make(const GgufWriter& writer) {
  const Bytes bytes = writer.bytes();
  const auto file = GgufFile::parse(bytes, "tiny");
  TL_CHECK(file.has_value());
  auto tokenizer = Tokenizer::create(*file);
  TL_CHECK(tokenizer.has_value());
  return std::move(*tokenizer);
}

const Tokenizer& tiny_bpe(std::size_t number) {
  static std::map<std::size_t, Tokenizer> made;
  const std::size_t spec = number % pre_tokenizers().size();
  if (const auto found = made.find(spec); found != made.end()) return found->second;
  TinyBpe vocabulary;
  vocabulary.pre = pre_tokenizers()[spec].names.front();
  GgufWriter writer;
  add_tokenizer(vocabulary, &writer);
  return made.emplace(spec, make(writer)).first->second;
}

const Tokenizer& tiny_spm() {
  static const Tokenizer tokenizer = [] {
    GgufWriter writer;
    add_tokenizer(TinySpm{}, &writer);
    return make(writer);
  }();
  return tokenizer;
}

// Spellings as the input has them, with a merge for every two that make a third.
void try_vocabulary(std::string_view input, bool scores) {
  const std::size_t end = std::min(input.find('\0'), input.size());
  std::string_view lines = input.substr(0, end);
  const std::string_view text = input.substr(std::min(end + 1, input.size()));
  std::vector<std::string> tokens, merges;
  while (!lines.empty() && tokens.size() < 64) {
    const std::size_t line = std::min(lines.find('\n'), lines.size());
    tokens.emplace_back(lines.substr(0, line));
    lines.remove_prefix(std::min(line + 1, lines.size()));
  }
  for (const std::string& a : tokens)
    for (const std::string& b : tokens)
      if (std::find(tokens.begin(), tokens.end(), a + b) != tokens.end())
        merges.push_back(a + " " + b);
  std::vector<float> values;
  std::vector<std::int32_t> types;
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    values.push_back(-static_cast<float>(tokens[i].size() * 7 % 5));
    const bool byte = tokens[i].starts_with("<0x");
    const bool user = tokens[i].starts_with("[");
    types.push_back(byte ? 6 : user ? 4 : tokens[i].starts_with("<") ? 3 : 1);
  }
  GgufWriter writer;
  writer.add_string("tokenizer.ggml.model", scores ? "llama" : "gpt2");
  writer.add_strings("tokenizer.ggml.tokens", tokens).add_i32s("tokenizer.ggml.token_type", types);
  writer.add_f32s("tokenizer.ggml.scores", values).add_strings("tokenizer.ggml.merges", merges);
  writer.add_bool("tokenizer.ggml.add_bos_token", false);
  const Bytes bytes = writer.bytes();
  const auto file = GgufFile::parse(bytes, "made");
  TL_CHECK(file.has_value());
  const auto tokenizer = Tokenizer::create(*file);
  if (!tokenizer) return check_refusal(tokenizer.error());
  check_text(*tokenizer, text, Trip::lossy);
}

void try_file(std::span<const std::byte> input) {
  const auto file = GgufFile::parse(input, "fuzz");
  if (!file) return check_refusal(file.error());
  const auto tokenizer = Tokenizer::create(*file);
  if (!tokenizer) return check_refusal(tokenizer.error());
  check_text(*tokenizer, "Hello, w\xc3\xb6rld 123\n\n  <s>\xff", Trip::lossy);
  for (std::int32_t t = 0; t < static_cast<std::int32_t>(tokenizer->size()); ++t)
    (void)tokenizer->bytes(t, ShowSpecial::yes);
}

// Reads every byte, so that a sanitizer sees a span that is not the file's.
void touch(std::span<const std::byte> bytes) {
  unsigned sum = 0;
  for (std::byte b : bytes) sum += static_cast<unsigned>(b);
  volatile unsigned sink = sum;
  (void)sink;
}

}  // namespace

void fuzz_gguf(std::span<const std::byte> input) {
  const auto file = GgufFile::parse(input, "fuzz");
  const auto header = GgufFile::parse(input, "fuzz", GgufFile::Extent::header);
  TL_CHECK(header || !file);
  if (!header) check_refusal(header.error());
  if (!file) return check_refusal(file.error());
  TL_CHECK(header->tensors().size() == file->tensors().size());
  for (const GgufValue& value : file->metadata()) {
    touch(value.bytes);
    TL_CHECK(file->find(value.key) == &value);
    TL_CHECK(GgufFile::show(value).find('\n') == std::string::npos);
    (void)file->get<std::uint32_t>(value.key);
    (void)file->get<std::int8_t>(value.key);
    (void)file->get<double>(value.key);
    (void)file->get<bool>(value.key);
    (void)file->get<std::string_view>(value.key);
    (void)file->get_array<std::string_view>(value.key);
    (void)file->get_array<float>(value.key);
    (void)file->get_array<std::int32_t>(value.key);
  }
  for (const TensorInfo& tensor : file->tensors()) {
    touch(tensor.data);
    TL_CHECK(tensor.data.size() == tensor.view().bytes());
    TL_CHECK(tensor.offset % file->alignment() == 0);
    TL_CHECK(tensor.data.data() >= input.data());
    TL_CHECK(tensor.data.data() + tensor.data.size() <= input.data() + input.size());
  }
}

void fuzz_tokenizer(std::span<const std::byte> input) {
  if (input.size() < 2) return;
  const std::string_view text(reinterpret_cast<const char*>(input.data()), input.size());
  switch (static_cast<unsigned>(input[0])) {
    case 0: {
      const auto number = static_cast<std::size_t>(input[1]);
      const bool characters = tiny_bpe(number).pre() == "gemma4";  // has no byte tokens here
      check_text(tiny_bpe(number), text.substr(2), characters ? Trip::lossy : Trip::exact);
      break;
    }
    case 1: {
      // U+2581 in a text is what a space becomes: the one character that does not come back.
      const bool marked = text.find("\xe2\x96\x81") != std::string_view::npos;
      check_text(tiny_spm(), text.substr(1), marked ? Trip::lossy : Trip::exact);
      break;
    }
    case 2:
      try_vocabulary(text.substr(1), false);
      break;
    case 3:
      try_vocabulary(text.substr(1), true);
      break;
    default:
      try_file(input.subspan(1));
  }
}

}  // namespace thermocline::test
