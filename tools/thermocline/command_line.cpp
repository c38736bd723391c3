#include "tools/thermocline/command_line.h"

#include <algorithm>
#include <cstdio>

#include "tools/thermocline/suggestion.h"

namespace thermocline {
namespace {

namespace po = boost::program_options;

constexpr std::size_t kHelpColumn = 30, kHelpWidth = 96;

// Words of `text` in lines of kHelpWidth, all but the first indented by `indent`.
std::string wrap(const std::string& text, std::size_t indent) {
  std::string out;
  std::size_t column = indent;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = std::min(text.find(' ', at), text.size());
    const std::string word = text.substr(at, end - at);
    if (column > indent && column + 1 + word.size() > kHelpWidth) {
      out += "\n" + std::string(indent, ' ');
      column = indent;
    } else if (column > indent) {
      out += ' ';
      ++column;
    }
    out += word;
    column += word.size();
    at = end + 1;
  }
  return out;
}

// "-ub, --ubatch-size N"
std::string names_of(const po::option_description& option) {
  const std::string long_name = "--" + option.long_name();
  std::string short_name =
      option.canonical_display_name(po::command_line_style::allow_dash_for_short);
  if (short_name == long_name || short_name == option.long_name()) short_name.clear();
  for (const auto& [two_letters, name] : two_letter_options())
    if (name == long_name) short_name = two_letters;
  std::string text = short_name.empty() ? "    " + long_name : short_name + ", " + long_name;
  if (option.semantic()->max_tokens() > 0) text += " " + option.semantic()->name();
  return "  " + text;
}

}  // namespace

const std::vector<std::pair<std::string, std::string>>& two_letter_options() {
  static const std::vector<std::pair<std::string, std::string>> names{
      {"-ub", "--ubatch-size"},   {"-ngl", "--gpu-layers"},    {"-ctk", "--cache-type-k"},
      {"-ctv", "--cache-type-v"}, {"-fa", "--flash-attn"},     {"-nkvo", "--no-kv-offload"},
      {"-mg", "--main-gpu"},      {"-sys", "--system-prompt"}, {"-npl", "--parallel"}};
  return names;
}

CommandLine::CommandLine(std::string name, std::string usage, std::string about)
    : name_(std::move(name)), usage_(std::move(usage)), about_(std::move(about)) {}

po::options_description& CommandLine::group(const std::string& title) {
  for (Group& one : groups_)
    if (one.title == title) return one.options;
  return groups_.emplace_back(Group{title, {}}).options;
}

void CommandLine::accept_positional(std::vector<std::string>* values, std::size_t most) {
  positional_ = values;
  most_positional_ = most;
}

Result<CommandLine::Outcome> CommandLine::parse(const std::vector<std::string>& arguments) {
  std::vector<std::string> words = arguments;
  for (std::string& word : words) {
    if (word == "-h" || word == "--help") {
      print_help();
      return Outcome::helped;
    }
    for (const auto& [two_letters, name] : two_letter_options())
      if (word == two_letters) word = name;
  }
  std::vector<std::string> rest;
  po::options_description all, hidden;
  for (const Group& one : groups_) all.add(one.options);
  hidden.add_options()("help,h", "")("arguments", po::value(&rest));
  all.add(hidden);
  po::positional_options_description positional;
  positional.add("arguments", -1);
  try {
    // Without allow_guess: a shortened name works today and means something else tomorrow.
    const int style = po::command_line_style::unix_style & ~po::command_line_style::allow_guessing;
    po::store(po::command_line_parser(words).options(all).positional(positional).style(style).run(),
              given_);
    po::notify(given_);
  } catch (const po::unknown_option& error) {
    TL_TRY(unknown_option(error.get_option_name()));
  } catch (const po::error& error) {
    return fail(ErrorCode::invalid_argument, error.what());
  }
  if (rest.size() > most_positional_)
    return fail(ErrorCode::invalid_argument, "'", rest[most_positional_],
                "' is an argument too many: values follow their option, as in -p 'text'");
  if (positional_ != nullptr) *positional_ = std::move(rest);
  return Outcome::run;
}

Status CommandLine::unknown_option(const std::string& option) const {
  std::vector<std::string> known{"--help"};
  for (const Group& one : groups_)
    for (const auto& each : one.options.options()) known.push_back("--" + each->long_name());
  for (const auto& [two_letters, name] : two_letter_options()) {
    const bool ours = std::find(known.begin(), known.end(), name) != known.end();
    if (ours) known.push_back(two_letters);
  }
  const std::string word = option.starts_with("-") ? option : "--" + option;
  return fail(ErrorCode::invalid_argument, "there is no option ", word, suggestion(word, known));
}

void CommandLine::print_help() const {
  std::printf("usage: thermocline %s %s\n\n%s\n", name_.c_str(), usage_.c_str(),
              wrap(about_, 0).c_str());
  for (const Group& one : groups_) {
    std::printf("\n%s:\n", one.title.c_str());
    for (const auto& option : one.options.options()) {
      std::string names = names_of(*option);
      if (names.size() + 2 > kHelpColumn)
        names += "\n" + std::string(kHelpColumn, ' ');
      else
        names.resize(kHelpColumn, ' ');
      std::printf("%s%s\n", names.c_str(), wrap(option->description(), kHelpColumn).c_str());
    }
  }
}

}  // namespace thermocline
