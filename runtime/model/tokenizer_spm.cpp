// SentencePiece's BPE: of all neighbours that together are a token, those with the highest score
// merge first; what never becomes a token is spelled in byte tokens.
#include <algorithm>
#include <bitset>
#include <optional>

#include "kernels/base/utf8.h"
#include "runtime/model/gguf.h"
#include "runtime/model/quoted.h"
#include "runtime/model/text_encoder.h"
#include "runtime/model/vocabulary.h"

namespace thermocline {
namespace {

class SpmEncoder final : public TextEncoder {
 public:
  SpmEncoder(const Vocabulary& vocabulary, bool space_prefix)
      : vocabulary_(vocabulary), space_prefix_(space_prefix) {
    for (std::int32_t t = 0; t < static_cast<std::int32_t>(vocabulary.size()); ++t) {
      const std::string_view name = vocabulary.name(t);
      for (std::size_t at = name.find(kSpaceMark, 1); at != std::string_view::npos;
           at = name.find(kSpaceMark, at + 1))
        joins_mark_[static_cast<unsigned char>(name[at - 1])] = true;
    }
  }

  std::string_view kind() const override { return "spm"; }
  std::string_view pre() const override { return ""; }
  bool adds_bos() const override { return true; }
  bool adds_space_prefix() const override { return space_prefix_; }
  void append_bytes(std::string_view name, std::string* out) const override {
    append_unmarked(name, out);
  }

  Status encode(std::string_view text, EncodeStop* stop, Encoded* out) const override {
    std::string marked;
    marked.reserve(text.size() + text.size() / 2 + kSpaceMark.size());
    if (space_prefix_) marked += kSpaceMark;
    append_marked(text, &marked);
    if (marked.size() > INT32_MAX)
      return fail(ErrorCode::exhausted, "a text of ", text.size(),
                  " bytes is too long to encode at once: encode it in parts");
    Work work{stop};
    for (std::size_t at = 0; at < marked.size();) {
      const std::size_t end = word_end(marked, at);
      work.text = std::string_view(marked).substr(at, end - at);
      seed(&work);
      TL_TRY(merge(&work));
      TL_TRY(emit(work, out));
      at = end;
    }
    return {};
  }

 private:
  struct Symbol {
    std::int32_t previous, next;  // -1 at the ends
    std::int32_t start, bytes;    // of the text; 0 bytes once it is part of its neighbour
  };
  struct Pair {
    float score;
    std::int32_t left, bytes;
  };
  struct Later {  // the highest score first, of equal ones the leftmost
    bool operator()(const Pair& a, const Pair& b) const {
      return a.score != b.score ? a.score < b.score : a.left > b.left;
    }
  };
  struct Work {
    EncodeStop* stop;
    std::string_view text = {};
    std::vector<Symbol> symbols = {};
    std::vector<Pair> pairs = {};  // a heap by Later
  };

  // Where a merge can never cross: before a mark that follows a byte which no token has before one.
  // Words are the same tokens as the whole, and small enough to stay in cache.
  std::size_t word_end(std::string_view text, std::size_t start) const {
    for (std::size_t at = text.find(kSpaceMark, start + 1); at != std::string_view::npos;
         at = text.find(kSpaceMark, at + 1))
      if (!joins_mark_[static_cast<unsigned char>(text[at - 1])]) return at;
    return text.size();
  }

  static std::size_t index(std::int32_t i) { return static_cast<std::size_t>(i); }

  // Control tokens are nothing that a text may spell.
  std::int32_t token_of(std::string_view text) const {
    const std::int32_t token = vocabulary_.find(text);
    return token != kNoToken && vocabulary_.ordinary(token) ? token : kNoToken;
  }

  void seed(Work* work) const {
    work->symbols.clear();
    for (std::size_t at = 0; at < work->text.size();) {
      const std::size_t bytes = utf8_step(work->text.substr(at)).bytes;
      const auto i = static_cast<std::int32_t>(work->symbols.size());
      work->symbols.push_back(
          {i - 1, i + 1, static_cast<std::int32_t>(at), static_cast<std::int32_t>(bytes)});
      at += bytes;
    }
    if (work->symbols.empty()) return;
    work->symbols.back().next = -1;
    for (std::size_t i = 0; i + 1 < work->symbols.size(); ++i)
      if (const auto pair = pair_at(static_cast<std::int32_t>(i), *work))
        work->pairs.push_back(*pair);
    std::make_heap(work->pairs.begin(), work->pairs.end(), Later());
  }

  std::optional<Pair> pair_at(std::int32_t left_index, const Work& work) const {
    if (left_index < 0) return std::nullopt;
    const Symbol& left = work.symbols[index(left_index)];
    if (left.next < 0) return std::nullopt;
    const std::int32_t bytes = left.bytes + work.symbols[index(left.next)].bytes;
    const std::int32_t token = token_of(work.text.substr(index(left.start), index(bytes)));
    if (token == kNoToken) return std::nullopt;
    return Pair{vocabulary_.score(token), left_index, bytes};
  }

  void push_pair(std::int32_t left, Work* work) const {
    const auto pair = pair_at(left, *work);
    if (!pair) return;
    work->pairs.push_back(*pair);
    std::push_heap(work->pairs.begin(), work->pairs.end(), Later());
  }

  Status merge(Work* work) const {
    while (!work->pairs.empty()) {
      TL_TRY(work->stop->check());
      const Pair pair = work->pairs.front();
      std::pop_heap(work->pairs.begin(), work->pairs.end(), Later());
      work->pairs.pop_back();
      Symbol& left = work->symbols[index(pair.left)];
      if (left.bytes == 0 || left.next < 0) continue;
      Symbol& right = work->symbols[index(left.next)];
      if (left.bytes + right.bytes != pair.bytes) continue;  // one of them has grown since
      left.bytes = pair.bytes;
      left.next = right.next;
      right.bytes = 0;
      if (left.next >= 0) work->symbols[index(left.next)].previous = pair.left;
      push_pair(left.previous, work);
      push_pair(pair.left, work);
    }
    return {};
  }

  Status emit(const Work& work, Encoded* out) const {
    for (std::int32_t i = work.symbols.empty() ? -1 : 0; i >= 0; i = work.symbols[index(i)].next) {
      TL_TRY(work.stop->check());
      const Symbol& symbol = work.symbols[index(i)];
      const std::string_view text = work.text.substr(index(symbol.start), index(symbol.bytes));
      if (const std::int32_t token = token_of(text); token != kNoToken) {
        out->tokens.push_back(token);
        continue;
      }
      for (std::size_t b = 0; b < text.size(); ++b) {
        const std::int32_t byte = vocabulary_.byte_tokens[static_cast<unsigned char>(text[b])];
        if (byte != kNoToken) {
          out->tokens.push_back(byte);
        } else if (vocabulary_.unknown) {
          out->tokens.push_back(*vocabulary_.unknown);
          out->bytes_left_out += text.size() - b;
          break;  // one for the whole character
        } else {
          return fail(ErrorCode::corrupt, "the vocabulary cannot spell ", quoted(text),
                      ": it has neither byte tokens nor an unknown token");
        }
      }
    }
    return {};
  }

  const Vocabulary& vocabulary_;
  bool space_prefix_;
  std::bitset<256> joins_mark_;  // bytes that stand before a mark in some token
};

}  // namespace

Result<std::unique_ptr<const TextEncoder>> make_spm(const GgufFile& file,
                                                    const Vocabulary& vocabulary) {
  if (!vocabulary.has_scores())
    return fail(ErrorCode::not_found, file.name(),
                ": has no metadata \"tokenizer.ggml.scores\", which a SentencePiece vocabulary "
                "needs: convert the model again");
  TL_TRY_ASSIGN(const bool prefix, file.get_or<bool>("tokenizer.ggml.add_space_prefix", true));
  return std::make_unique<SpmEncoder>(vocabulary, prefix);
}

}  // namespace thermocline
