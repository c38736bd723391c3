#include "runtime/model/tokenizer.h"

#include <algorithm>

#include "kernels/base/utf8.h"
#include "runtime/model/encode_stop.h"
#include "runtime/model/gguf.h"
#include "runtime/model/quoted.h"
#include "runtime/model/special_tokens.h"
#include "runtime/model/text_encoder.h"
#include "runtime/model/vocabulary.h"

namespace thermocline {

// Behind a pointer, so that what refers to the vocabulary stays valid when the Tokenizer moves.
struct Tokenizer::Parts {
  explicit Parts(Vocabulary words)
      : vocabulary(std::move(words)),
        always(vocabulary, SpecialTokens::Which::user_defined),
        all(vocabulary, SpecialTokens::Which::all) {}

  void spell_tokens();
  // Appends the tokens of a text, special ones as `special` knows them.
  Status encode(std::string_view text, const SpecialTokens& special, EncodeStop* stop,
                Encoded* out) const;

  Vocabulary vocabulary;
  SpecialTokens always, all;
  std::unique_ptr<const TextEncoder> encoder;
  std::string bytes;                  // what every token stands for, one after another
  std::vector<std::uint32_t> starts;  // into bytes, size() + 1
  bool adds_bos = false, adds_eos = false;
};

void Tokenizer::Parts::spell_tokens() {
  starts.reserve(vocabulary.size() + 1);
  starts.push_back(0);
  for (std::int32_t t = 0; t < static_cast<std::int32_t>(vocabulary.size()); ++t) {
    const std::string_view name = vocabulary.name(t);
    switch (vocabulary.type(t)) {
      case TokenType::normal:
      case TokenType::unused:
        encoder->append_bytes(name, &bytes);
        break;
      case TokenType::byte: {
        const auto& tokens = vocabulary.byte_tokens;
        const auto found = std::find(tokens.begin(), tokens.end(), t);
        bytes.push_back(static_cast<char>(found - tokens.begin()));
        break;
      }
      case TokenType::user_defined:
      case TokenType::control:
      case TokenType::unknown:
        bytes += name;
        break;
    }
    starts.push_back(static_cast<std::uint32_t>(bytes.size()));
  }
}

Status Tokenizer::Parts::encode(std::string_view text, const SpecialTokens& special,
                                EncodeStop* stop, Encoded* out) const {
  for (std::size_t at = 0; at < text.size();) {
    TL_TRY(stop->check());
    const SpecialTokens::Match next = special.find(text, at);
    const std::size_t left_out = out->bytes_left_out;
    if (next.at > at) TL_TRY(encoder->encode(text.substr(at, next.at - at), stop, out));
    // A space that has no token either was counted as its mark, which is longer.
    out->bytes_left_out = std::min(out->bytes_left_out, left_out + (next.at - at));
    if (next.token != kNoToken) out->tokens.push_back(next.token);
    at = next.at + next.bytes;
  }
  return {};
}

Tokenizer::Tokenizer(std::unique_ptr<const Parts> parts) : parts_(std::move(parts)) {}
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;
Tokenizer::~Tokenizer() = default;

Result<Tokenizer> Tokenizer::create(const GgufFile& file) {
  TL_TRY_ASSIGN(const auto model, file.get<std::string_view>("tokenizer.ggml.model"));
  // "gemma4" is Gemma 4's tokenizer; no architecture of ours has it yet (text_encoder.h).
  const bool bpe = model == "gpt2" || model == "gemma4";
  if (!bpe && model != "llama")
    return fail(ErrorCode::unsupported, file.name(), ": tokenizer.ggml.model is ", quoted(model),
                ", this build knows gpt2, llama and gemma4");
  TL_TRY_ASSIGN(auto vocabulary, Vocabulary::read(file));
  auto parts = std::make_unique<Parts>(std::move(vocabulary));
  TL_TRY_ASSIGN(parts->encoder,
                bpe ? make_bpe(file, parts->vocabulary) : make_spm(file, parts->vocabulary));
  parts->spell_tokens();
  const Vocabulary& words = parts->vocabulary;
  parts->adds_bos = words.add_bos.value_or(parts->encoder->adds_bos());
  parts->adds_eos = words.add_eos.value_or(false);
  if (parts->adds_bos && !words.bos)
    return fail(ErrorCode::corrupt, file.name(),
                ": texts begin with BOS, but there is no tokenizer.ggml.bos_token_id");
  if (parts->adds_eos && !words.eos)
    return fail(ErrorCode::corrupt, file.name(),
                ": texts end with EOS, but there is no tokenizer.ggml.eos_token_id");
  return Tokenizer(std::move(parts));
}

Result<std::vector<std::int32_t>> Tokenizer::encode(std::string_view text, ParseSpecial parse,
                                                    AddSpecial add, const StopAsked& asked,
                                                    std::size_t* left_out) const {
  const Parts& p = *parts_;
  EncodeStop stop(asked);
  Encoded out;
  if (add == AddSpecial::yes && p.adds_bos) out.tokens.push_back(*p.vocabulary.bos);
  TL_TRY(p.encode(text, parse == ParseSpecial::yes ? p.all : p.always, &stop, &out));
  if (add == AddSpecial::yes && p.adds_eos) out.tokens.push_back(*p.vocabulary.eos);
  if (left_out) *left_out = out.bytes_left_out;
  return std::move(out.tokens);
}

Result<std::vector<std::int32_t>> Tokenizer::encode(std::span<const TextPiece> pieces,
                                                    AddSpecial add, const StopAsked& asked,
                                                    std::size_t* left_out) const {
  const Parts& p = *parts_;
  EncodeStop stop(asked);
  Encoded out;
  if (add == AddSpecial::yes && p.adds_bos) out.tokens.push_back(*p.vocabulary.bos);
  std::string run;  // since the last control token, of any pieces
  for (const TextPiece& piece : pieces) {
    std::size_t done = 0;
    if (piece.parse == ParseSpecial::yes)
      for (std::size_t at = 0; at < piece.text.size();) {
        TL_TRY(stop.check());
        const SpecialTokens::Match next = p.all.find(piece.text, at);
        at = next.at + next.bytes;
        // User-defined tokens are found in any text: with the run, which may go on.
        if (next.token == kNoToken || p.vocabulary.type(next.token) == TokenType::user_defined)
          continue;
        run.append(piece.text, done, next.at - done);
        TL_TRY(p.encode(run, p.always, &stop, &out));
        run.clear();
        out.tokens.push_back(next.token);
        done = at;
      }
    run.append(piece.text, done);
  }
  TL_TRY(p.encode(run, p.always, &stop, &out));
  if (add == AddSpecial::yes && p.adds_eos) out.tokens.push_back(*p.vocabulary.eos);
  if (left_out) *left_out = out.bytes_left_out;
  return std::move(out.tokens);
}

Result<std::string> Tokenizer::decode(std::span<const std::int32_t> tokens,
                                      ShowSpecial show) const {
  std::string out;
  bool strip = strips_leading_space();
  for (std::int32_t token : tokens) {
    if (!contains(token))
      return fail(ErrorCode::invalid_argument, "token ", token, " is not one of the ", size(),
                  " of the vocabulary");
    const std::string_view text = bytes(token, show);
    const bool strips = strip && text.starts_with(' ');
    out += text.substr(strips ? 1 : 0);
    if (!text.empty()) strip = false;
  }
  return out;
}

std::size_t Tokenizer::size() const { return parts_->vocabulary.size(); }

std::string_view Tokenizer::bytes(std::int32_t token, ShowSpecial show) const {
  TL_CHECK(contains(token));
  if (show == ShowSpecial::no && is_control(token)) return "";
  const auto i = static_cast<std::size_t>(token);
  return std::string_view(parts_->bytes)
      .substr(parts_->starts[i], parts_->starts[i + 1] - parts_->starts[i]);
}

std::string_view Tokenizer::name(std::int32_t token) const {
  TL_CHECK(contains(token));
  return parts_->vocabulary.name(token);
}

std::optional<std::int32_t> Tokenizer::find(std::string_view name) const {
  const std::int32_t token = parts_->vocabulary.find(name);
  return token == kNoToken ? std::nullopt : std::optional(token);
}

std::optional<std::int32_t> Tokenizer::bos() const { return parts_->vocabulary.bos; }
std::optional<std::int32_t> Tokenizer::eos() const { return parts_->vocabulary.eos; }
std::optional<std::int32_t> Tokenizer::eot() const { return parts_->vocabulary.eot; }

bool Tokenizer::is_control(std::int32_t token) const {
  return contains(token) && !parts_->vocabulary.ordinary(token);
}
bool Tokenizer::is_end(std::int32_t token) const {
  return std::binary_search(ends().begin(), ends().end(), token);
}
std::span<const std::int32_t> Tokenizer::ends() const { return parts_->vocabulary.ends; }

bool Tokenizer::adds_bos() const { return parts_->adds_bos; }
bool Tokenizer::adds_eos() const { return parts_->adds_eos; }
std::string_view Tokenizer::kind() const { return parts_->encoder->kind(); }
std::string_view Tokenizer::pre() const { return parts_->encoder->pre(); }
bool Tokenizer::strips_leading_space() const { return parts_->encoder->adds_space_prefix(); }

Detokenizer::Detokenizer(const Tokenizer& tokenizer, At at, ShowSpecial show)
    : tokenizer_(&tokenizer),
      show_(show),
      strip_space_(at == At::start && tokenizer.strips_leading_space()) {}

std::string Detokenizer::push(std::int32_t token) {
  if (!tokenizer_->contains(token)) return "";
  std::string_view text = tokenizer_->bytes(token, show_);
  if (text.empty()) return "";
  if (strip_space_ && text.front() == ' ') text.remove_prefix(1);
  strip_space_ = false;
  held_ += text;
  std::string out;
  std::size_t at = 0;
  while (at < held_.size()) {
    const std::string_view rest = std::string_view(held_).substr(at);
    const Utf8Step step = utf8_step(rest);
    if (step.kind == Utf8Step::Kind::incomplete) break;
    out +=
        step.kind == Utf8Step::Kind::character ? rest.substr(0, step.bytes) : kReplacementCharacter;
    at += step.bytes;
  }
  held_.erase(0, at);
  return out;
}

std::string Detokenizer::flush() {
  strip_space_ = false;
  if (held_.empty()) return "";
  held_.clear();
  return std::string(kReplacementCharacter);
}

}  // namespace thermocline
