// thermocline: one command, a subcommand a file.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "runtime/thermocline.h"
#include "tools/thermocline/command.h"
#include "tools/thermocline/interruption.h"
#include "tools/thermocline/printable.h"
#include "tools/thermocline/suggestion.h"

namespace thermocline {
namespace {

constexpr std::array kCommands{
    Command{"generate", "continue a text", run_generate},
    Command{"chat", "talk with a model", run_chat},
    Command{"inspect", "what a model file holds, and whether it can be run", run_inspect},
    Command{"sweep", "measure speed along contexts, methods and tier sizes", run_sweep},
    Command{"eval", "measure methods beside full attention on a text", run_eval},
    Command{"session", "list, show, verify and remove session files", run_session},
    Command{"methods", "the methods that can be named with --method", run_methods},
};

void print_help(std::FILE* to) {
  std::fputs(
      "usage: thermocline COMMAND [options]\n\n"
      "Decodes with contexts far larger than the fast memory.\n\n",
      to);
  for (const Command& command : kCommands)
    std::fprintf(to, "  %-10s %s\n", command.name, command.summary);
  std::fputs(
      "\n  --version  version, commit, compiler, instruction sets and the machine\n\n"
      "'thermocline COMMAND --help' lists a command's options. Exit codes: 0, 1 for a failure,\n"
      "2 for a wrong command line, 130 when interrupted (143 by SIGTERM, 129 by SIGHUP).\n",
      to);
}

void print_version() {
  const auto list = [](const std::vector<std::string>& words) {
    std::string text;
    for (const std::string& word : words) text += (text.empty() ? "" : ", ") + word;
    return text;
  };
  const Version v = version();
  const Result<std::string> machine = describe_machine();
  std::printf(
      "thermocline %s (%s)\n%s, %s\ninstruction sets: %s; usable here: %s\nCUDA kernels: %s\n"
      "machine: %s\n",
      v.number.c_str(), v.commit.c_str(), v.compiler.c_str(), v.build.c_str(),
      list(v.instruction_sets).c_str(), list(v.usable).c_str(), v.cuda ? "built" : "not built",
      machine ? machine->c_str() : machine.error().message.c_str());
}

Exit unknown_command(const std::string& word) {
  if (word.starts_with("-")) {
    std::fprintf(stderr,
                 "thermocline: a command comes first, as in 'thermocline generate %s ...'\n",
                 printable(word).c_str());
  } else {
    std::vector<std::string> names;
    for (const Command& command : kCommands) names.emplace_back(command.name);
    std::fprintf(stderr, "thermocline: there is no command '%s'%s\n", printable(word).c_str(),
                 suggestion(word, names).c_str());
  }
  std::fputs("'thermocline --help' lists the commands.\n", stderr);
  return Exit::usage;
}

Exit run(const Command& command, const std::vector<std::string>& arguments) {
  const Result<Exit> result = command.run(arguments);
  if (result) return *result;
  const Error& error = result.error();
  if (error.code == ErrorCode::cancelled && interrupted()) {
    std::fprintf(stderr, "thermocline %s: interrupted\n", command.name);
    return Exit::interrupted;
  }
  std::fprintf(stderr, "thermocline %s: %s\n", command.name, printable(error.message).c_str());
  if (error.code != ErrorCode::invalid_argument) return Exit::failure;
  std::fprintf(stderr, "'thermocline %s --help' lists the options.\n", command.name);
  return Exit::usage;
}

Exit dispatch(std::vector<std::string> words) {
  if (words.empty()) {
    print_help(stderr);
    return Exit::usage;
  }
  if (words.front() == "help" && words.size() > 1) words = {words[1], "--help"};
  const std::string& first = words.front();
  if (first == "--help" || first == "-h" || first == "help") {
    print_help(stdout);
    return Exit::success;
  }
  if (first == "--version") {
    print_version();
    return Exit::success;
  }
  const auto command = std::find_if(kCommands.begin(), kCommands.end(),
                                    [&](const Command& each) { return first == each.name; });
  if (command == kCommands.end()) return unknown_command(first);
  return run(*command, {words.begin() + 1, words.end()});
}

// A stream that we were started without: its number would go to the next file that is opened, and
// what is printed into that file. Opened the wrong way round, so that using it stays an error.
void occupy_closed_streams() {
  for (const auto& [stream, mode] :
       {std::pair{STDIN_FILENO, O_WRONLY}, {STDOUT_FILENO, O_RDONLY}, {STDERR_FILENO, O_RDONLY}})
    if (::fcntl(stream, F_GETFD) < 0) (void)::open("/dev/null", mode);  // the lowest free number
}

}  // namespace
}  // namespace thermocline

int main(int count, char** words) {
  thermocline::occupy_closed_streams();
  thermocline::watch_for_interruption();
  try {
    const thermocline::Exit exit = thermocline::dispatch({words + 1, words + count});
    // A table or a text that could not be written must not look like success.
    if (exit == thermocline::Exit::success && (std::fflush(stdout) != 0 || std::ferror(stdout))) {
      std::fputs("thermocline: stdout could not be written\n", stderr);
      return static_cast<int>(thermocline::Exit::failure);
    }
    return exit == thermocline::Exit::interrupted ? thermocline::interruption_exit()
                                                  : static_cast<int>(exit);
  } catch (const std::bad_alloc&) {
    std::fputs("thermocline: out of memory\n", stderr);
    return static_cast<int>(thermocline::Exit::failure);
  }
}
