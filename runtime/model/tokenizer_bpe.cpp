// BPE by the file's list of merges. Pieces are numbers: tokens by their id, and spellings that the
// merges mention and the vocabulary lacks by numbers after it, so merging never touches text.
#include <algorithm>
#include <array>
#include <optional>
#include <queue>
#include <unordered_map>

#include "kernels/base/utf8.h"
#include "runtime/model/gguf.h"
#include "runtime/model/merge_table.h"
#include "runtime/model/pre_tokenizer.h"
#include "runtime/model/quoted.h"
#include "runtime/model/text_encoder.h"
#include "runtime/model/vocabulary.h"

namespace thermocline {
namespace {

// GPT-2's alphabet: every byte as a printable character, so that tokens can be written as text.
// Printable Latin-1 stands for itself, the other 68 bytes for U+0100 onwards, in order.
class ByteAlphabet {
 public:
  ByteAlphabet() {
    std::uint32_t next = 0x100;
    bytes_.fill(-1);
    for (std::uint32_t b = 0; b < 256; ++b) {
      const bool plain = (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b != 0xad);
      codes_[b] = plain ? b : next++;
      bytes_[codes_[b]] = static_cast<std::int16_t>(b);
    }
  }
  std::uint32_t code(unsigned char byte) const { return codes_[byte]; }
  // -1: the character stands for no byte.
  int byte(std::uint32_t code) const { return code < bytes_.size() ? bytes_[code] : -1; }

 private:
  std::array<std::uint32_t, 256> codes_{};
  std::array<std::int16_t, 0x144> bytes_{};
};

const ByteAlphabet& byte_alphabet() {
  static const ByteAlphabet alphabet;
  return alphabet;
}

enum class Spelling : std::uint8_t { bytes, characters };  // "gpt2", "gemma4"

class BpeEncoder final : public TextEncoder {
 public:
  BpeEncoder(const Vocabulary& vocabulary, Spelling spelling, std::string pre,
             const PreTokenizerSpec& spec, PreTokenizer splitter, std::size_t merges)
      : vocabulary_(vocabulary),
        spelling_(spelling),
        pre_(std::move(pre)),
        spec_(spec),
        splitter_(std::move(splitter)),
        merges_(merges) {
    for (std::size_t b = 0; b < byte_pieces_.size(); ++b) {
      std::string text;
      append_utf8(byte_alphabet().code(static_cast<unsigned char>(b)), &text);
      byte_pieces_[b] = piece(text);
    }
  }

  std::string_view kind() const override { return "bpe"; }
  std::string_view pre() const override { return pre_; }
  bool adds_bos() const override { return spec_.adds_bos; }
  bool adds_space_prefix() const override { return false; }

  void add_merge(std::string_view left, std::string_view right, std::uint32_t rank) {
    const std::string whole = std::string(left) + std::string(right);
    const std::int32_t l = piece(left), r = piece(right), result = piece(whole);
    merges_.add(l, r, {rank, result});
  }

  Status encode(std::string_view text, EncodeStop* stop, Encoded* out) const override {
    std::string marked;
    if (spelling_ == Spelling::characters) {
      append_marked(text, &marked);
      text = marked;
    }
    std::vector<std::string_view> words;
    TL_TRY(splitter_.split(text, stop, &words));
    Work work{stop};
    for (std::string_view word : words) TL_TRY(encode_word(word, &work, out));
    return {};
  }

  void append_bytes(std::string_view name, std::string* out) const override {
    if (spelling_ == Spelling::characters) return append_unmarked(name, out);
    for (std::size_t at = 0; at < name.size();) {
      const Utf8Step step = utf8_step(name.substr(at));
      const int byte =
          step.kind == Utf8Step::Kind::character ? byte_alphabet().byte(step.code) : -1;
      if (byte >= 0)
        out->push_back(static_cast<char>(byte));
      else  // not of the alphabet: it can only stand for itself
        *out += name.substr(at, step.bytes);
      at += step.bytes;
    }
  }

 private:
  struct Symbol {
    std::int32_t previous, next;  // -1 at the ends
    std::int32_t piece;           // -1 once it is part of its neighbour
  };
  struct Pair {
    MergeTable::Merge merge;
    std::int32_t left;
  };
  struct Later {  // the lowest rank first, of equal ones the leftmost
    bool operator()(const Pair& a, const Pair& b) const {
      return a.merge.rank != b.merge.rank ? a.merge.rank > b.merge.rank : a.left > b.left;
    }
  };
  // Kept from word to word for its memory.
  struct Work {
    EncodeStop* stop;
    std::vector<Symbol> symbols = {};
    std::vector<Pair> pairs = {};  // a heap by Later
    std::string spelled = {};
  };

  // The number of a spelling, new if it has none.
  std::int32_t piece(std::string_view text) {
    if (const std::int32_t token = vocabulary_.find(text); token != kNoToken) return token;
    const auto next = static_cast<std::int32_t>(vocabulary_.size() + extra_.size());
    const auto [found, added] = extra_.emplace(text, next);
    if (added) extra_texts_.push_back(found->first);
    return found->second;
  }

  std::int32_t find_piece(std::string_view text) const {
    if (const std::int32_t token = vocabulary_.find(text); token != kNoToken) return token;
    const auto found = extra_.find(std::string(text));
    return found == extra_.end() ? kNoToken : found->second;
  }

  std::int32_t whole_token(std::string_view word, Work* work) const {
    std::string_view spelled = word;
    if (spelling_ == Spelling::bytes) {
      work->spelled.clear();
      for (char c : word)
        append_utf8(byte_alphabet().code(static_cast<unsigned char>(c)), &work->spelled);
      spelled = work->spelled;
    }
    const std::int32_t token = vocabulary_.find(spelled);
    return token != kNoToken && vocabulary_.ordinary(token) ? token : kNoToken;
  }

  Status seed(std::string_view word, Work* work, Encoded* out) const {
    work->symbols.clear();
    const auto add = [work](std::int32_t piece) {
      const auto index = static_cast<std::int32_t>(work->symbols.size());
      work->symbols.push_back({index - 1, index + 1, piece});
    };
    if (spelling_ == Spelling::bytes) {
      for (char c : word) add(byte_pieces_[static_cast<unsigned char>(c)]);
    } else {
      for (std::size_t at = 0; at < word.size();) {
        const std::size_t bytes = utf8_step(word.substr(at)).bytes;
        const std::int32_t known = find_piece(word.substr(at, bytes));
        if (known != kNoToken) {
          add(known);
        } else {
          // Nothing merges with a character that no spelling has: the word ends here and goes on.
          TL_TRY(merge(work));
          TL_TRY(emit(*work, out));
          work->symbols.clear();
          emit_bytes(word.substr(at, bytes), out);
        }
        at += bytes;
      }
    }
    return {};
  }

  std::optional<Pair> pair_at(std::int32_t left, std::int32_t right, const Work& work) const {
    if (left < 0 || right < 0) return std::nullopt;
    const MergeTable::Merge found =
        merges_.find(work.symbols[index(left)].piece, work.symbols[index(right)].piece);
    if (!found.exists()) return std::nullopt;
    return Pair{found, left};
  }

  void push_pair(std::int32_t left, std::int32_t right, Work* work) const {
    const auto pair = pair_at(left, right, *work);
    if (!pair) return;
    work->pairs.push_back(*pair);
    std::push_heap(work->pairs.begin(), work->pairs.end(), Later());
  }

  Status merge(Work* work) const {
    std::vector<Symbol>& symbols = work->symbols;
    if (symbols.empty()) return {};
    symbols.back().next = -1;
    for (std::size_t i = 0; i + 1 < symbols.size(); ++i)
      if (const auto pair =
              pair_at(static_cast<std::int32_t>(i), static_cast<std::int32_t>(i + 1), *work))
        work->pairs.push_back(*pair);
    std::make_heap(work->pairs.begin(), work->pairs.end(), Later());
    while (!work->pairs.empty()) {
      TL_TRY(work->stop->check());
      const Pair pair = work->pairs.front();
      std::pop_heap(work->pairs.begin(), work->pairs.end(), Later());
      work->pairs.pop_back();
      Symbol& left = symbols[index(pair.left)];
      if (left.piece < 0 || left.next < 0) continue;
      const std::int32_t right_index = left.next;
      Symbol& right = symbols[index(right_index)];
      // The pair may be another one by now; it still merges if that makes the same piece.
      if (merges_.find(left.piece, right.piece).result != pair.merge.result) continue;
      left.piece = pair.merge.result;
      left.next = right.next;
      right.piece = -1;
      if (left.next >= 0) symbols[index(left.next)].previous = pair.left;
      push_pair(left.previous, pair.left, work);
      push_pair(pair.left, left.next, work);
    }
    return {};
  }

  static std::size_t index(std::int32_t i) { return static_cast<std::size_t>(i); }

  // A byte without a token leaves no trace, as with the models' own tokenizers (SmolLM2 has none
  // for 21 of the 256, all of them control characters or never part of UTF-8).
  void emit_bytes(std::string_view bytes, Encoded* out) const {
    for (char c : bytes) {
      const auto byte = static_cast<unsigned char>(c);
      const std::int32_t token =
          spelling_ == Spelling::characters ? vocabulary_.byte_tokens[byte] : byte_pieces_[byte];
      if (is_token(token))
        out->tokens.push_back(token);
      else
        ++out->bytes_left_out;
    }
  }

  bool is_token(std::int32_t piece) const {
    return piece >= 0 && index(piece) < vocabulary_.size() && vocabulary_.ordinary(piece);
  }

  Status emit(const Work& work, Encoded* out) const {
    for (std::int32_t i = work.symbols.empty() ? -1 : 0; i >= 0; i = work.symbols[index(i)].next) {
      TL_TRY(work.stop->check());
      const std::int32_t piece = work.symbols[index(i)].piece;
      if (is_token(piece)) {
        out->tokens.push_back(piece);
        continue;
      }
      std::string bytes;
      const bool extra = index(piece) >= vocabulary_.size();
      const std::string_view text =
          extra ? extra_texts_[index(piece) - vocabulary_.size()] : vocabulary_.name(piece);
      if (spelling_ == Spelling::characters)
        bytes = text;
      else
        append_bytes(text, &bytes);
      emit_bytes(bytes, out);
    }
    return {};
  }

  Status encode_word(std::string_view word, Work* work, Encoded* out) const {
    TL_TRY(work->stop->check());
    const bool lines = spelling_ == Spelling::characters && word.front() == '\n';
    if (spec_.whole_words || lines) {
      if (const std::int32_t token = whole_token(word, work); token != kNoToken) {
        out->tokens.push_back(token);
        return {};
      }
    }
    TL_TRY(seed(word, work, out));
    TL_TRY(merge(work));
    return emit(*work, out);
  }

  const Vocabulary& vocabulary_;
  Spelling spelling_;
  std::string pre_;
  const PreTokenizerSpec& spec_;
  PreTokenizer splitter_;
  MergeTable merges_;
  std::array<std::int32_t, 256> byte_pieces_{};
  std::unordered_map<std::string, std::int32_t> extra_;
  std::vector<std::string_view> extra_texts_;  // views of extra_'s keys, by number
};

std::string known_pre_tokenizers() {
  std::string out;
  for (const PreTokenizerSpec& spec : pre_tokenizers())
    for (std::string_view name : spec.names) out += (out.empty() ? "" : " ") + std::string(name);
  return out;
}

}  // namespace

Result<std::unique_ptr<const TextEncoder>> make_bpe(const GgufFile& file,
                                                    const Vocabulary& vocabulary) {
  TL_TRY_ASSIGN(const auto model, file.get<std::string_view>("tokenizer.ggml.model"));
  const bool gemma4 = model == "gemma4";
  TL_TRY_ASSIGN(const auto pre,
                file.get_or<std::string_view>("tokenizer.ggml.pre", gemma4 ? "gemma4" : "default"));
  const PreTokenizerSpec* spec = find_pre_tokenizer(pre);
  if (spec == nullptr)
    return fail(ErrorCode::unsupported, file.name(), ": tokenizer.ggml.pre is ", quoted(pre),
                ", this build knows ", known_pre_tokenizers());
  TL_TRY_ASSIGN(auto splitter, PreTokenizer::create(spec->patterns));
  TL_TRY_ASSIGN(const auto merges, file.get_array<std::string_view>("tokenizer.ggml.merges"));
  // Each merge may name three spellings that are no tokens.
  if (vocabulary.size() + 3 * merges.size() + 256 > INT32_MAX)
    return fail(ErrorCode::corrupt, file.name(), ": tokenizer.ggml.merges has ", merges.size(),
                " elements, more than can be numbered");
  const auto spelling = pre == "gemma4" ? Spelling::characters : Spelling::bytes;
  auto encoder = std::make_unique<BpeEncoder>(vocabulary, spelling, std::string(pre), *spec,
                                              std::move(splitter), merges.size());
  for (std::size_t i = 0; i < merges.size(); ++i) {
    // A first character that is a space is a spelling, not the gap.
    const std::size_t gap = merges[i].find(' ', 1);
    if (gap == std::string_view::npos || gap + 1 == merges[i].size() ||
        merges[i].size() > kMaxTokenBytes)
      return fail(ErrorCode::corrupt, file.name(), ": tokenizer.ggml.merges: element ", i, " is ",
                  quoted(merges[i]), ", two pieces with a space between were expected");
    encoder->add_merge(merges[i].substr(0, gap), merges[i].substr(gap + 1),
                       static_cast<std::uint32_t>(i));
  }
  return encoder;
}

}  // namespace thermocline
