#include "retrieval/select/head_map.h"

#include <algorithm>
#include <charconv>
#include <fstream>
#include <iterator>
#include <optional>

#include "tiers/io/checksum.h"
#include "tiers/record.h"

namespace thermocline {
namespace {

constexpr std::size_t kMostBytes = std::size_t{1} << 20;
constexpr std::uint32_t kMostLayers = 1024, kMostHeads = 1024;
constexpr std::uint8_t kUnsaid = 2;

// The next word of a line; empty: there is none.
std::string_view take_word(std::string_view* line) {
  constexpr std::string_view kBlank = " \t\r";
  line->remove_prefix(std::min(line->find_first_not_of(kBlank), line->size()));
  const std::string_view word = line->substr(0, line->find_first_of(kBlank));
  line->remove_prefix(word.size());
  return word;
}

// What a message shows of untrusted text.
std::string shown(std::string_view text) {
  std::string out;
  for (const char c : text.substr(0, 40)) out += c >= ' ' && c <= '~' ? c : '?';
  return out + (text.size() > 40 ? "..." : "");
}

std::optional<std::uint32_t> number(std::string_view word, std::uint32_t end) {
  std::uint32_t value = 0;
  const auto [last, error] = std::from_chars(word.data(), word.data() + word.size(), value);
  if (error != std::errc{} || last != word.data() + word.size() || value >= end) return {};
  return value;
}

}  // namespace

Result<HeadMap> HeadMap::read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string text(kMostBytes + 1, '\0');
  if (!file || !(file.read(text.data(), static_cast<std::streamsize>(text.size())) || file.eof()))
    return fail(ErrorCode::io, "head map '", path, "' cannot be read");
  text.resize(static_cast<std::size_t>(file.gcount()));
  return parse(text, path);
}

Result<HeadMap> HeadMap::parse(std::string_view text, const std::string& name) {
  if (text.size() > kMostBytes)
    return fail(ErrorCode::invalid_argument, name, ": more than the ", kMostBytes,
                " bytes that a head map may have");
  HeadMap map;
  map.name_ = name;
  for (std::uint32_t number_of_line = 1; !text.empty(); ++number_of_line) {
    const std::string_view whole = text.substr(0, text.find('\n'));
    text.remove_prefix(std::min(text.size(), whole.size() + 1));
    std::string_view line = whole.substr(0, whole.find('#'));
    const std::string_view first = take_word(&line);
    if (first.empty()) continue;
    const auto layer = number(first, kMostLayers);
    const auto head = number(take_word(&line), kMostHeads);
    const auto role = number(take_word(&line), 2);
    if (!layer || !head || !role || !take_word(&line).empty())
      return fail(ErrorCode::invalid_argument, name, ":", number_of_line, ": '", shown(whole),
                  "' is not a layer below ", kMostLayers, ", a head below ", kMostHeads,
                  " and a role, 0 or 1");
    if (map.roles_.size() <= *layer) map.roles_.resize(*layer + 1);
    std::vector<std::uint8_t>& of_layer = map.roles_[*layer];
    if (of_layer.size() <= *head) of_layer.resize(*head + 1, kUnsaid);
    if (of_layer[*head] != kUnsaid)
      return fail(ErrorCode::invalid_argument, name, ":", number_of_line, ": layer ", *layer,
                  ", head ", *head, " has a line already");
    of_layer[*head] = static_cast<std::uint8_t>(*role);
  }
  for (std::size_t l = 0; l < map.roles_.size(); ++l) {
    const std::vector<std::uint8_t>& of_layer = map.roles_[l];
    const auto unsaid = std::find(of_layer.begin(), of_layer.end(), kUnsaid);
    if (unsaid != of_layer.end())
      return fail(ErrorCode::invalid_argument, name, ": layer ", l, " has no line for head ",
                  unsaid - of_layer.begin(), ", and one for head ", of_layer.size() - 1);
  }
  if (map.roles_.empty()) return fail(ErrorCode::invalid_argument, name, ": it names no head");
  return map;
}

std::string HeadMap::fingerprint() const {
  RecordWriter values;
  for (const std::vector<std::uint8_t>& of_layer : roles_)
    values.list(std::span<const std::uint8_t>(of_layer));
  return checksum_text(page_checksum(values.bytes(), 0));
}

}  // namespace thermocline
