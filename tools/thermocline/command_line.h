// The command line of one subcommand: groups of options that parse, explain themselves and guess
// what a misspelt one meant. Boost.Program_options does the parsing.
#pragma once

#include <boost/program_options.hpp>
#include <deque>
#include <string>
#include <vector>

#include "kernels/base/error.h"

namespace thermocline {

class CommandLine {
 public:
  // `usage` is what follows the command's name; `about`, a few sentences for --help.
  CommandLine(std::string name, std::string usage, std::string about);

  // The group of this title to add options to; groups are shown in the order of the first calls.
  boost::program_options::options_description& group(const std::string& title);
  // Accepts arguments without a dash into `values`, at most `most`.
  void accept_positional(std::vector<std::string>* values, std::size_t most);

  enum class Outcome { run, helped };
  // Fills in the variables that the options are bound to, or prints --help to stdout.
  Result<Outcome> parse(const std::vector<std::string>& arguments);

  // Whether the option was given, by its long name without dashes. After parse().
  bool given(const std::string& name) const {
    return given_.count(name) > 0 && !given_[name].defaulted();  // as a switch that was not is
  }

 private:
  struct Group {
    std::string title;
    boost::program_options::options_description options;
  };

  void print_help() const;
  Status unknown_option(const std::string& option) const;

  std::string name_, usage_, about_;
  std::deque<Group> groups_;
  std::vector<std::string>* positional_ = nullptr;
  std::size_t most_positional_ = 0;
  boost::program_options::variables_map given_;
};

// Options of two letters and one dash, which llama.cpp has and Boost has not: {"-ub",
// "--ubatch-size"}.
const std::vector<std::pair<std::string, std::string>>& two_letter_options();

}  // namespace thermocline
