// A subcommand: a name, a line about it, and what it does with its arguments.
#pragma once

#include <string>
#include <vector>

#include "kernels/base/error.h"

namespace thermocline {

// What the process returns; after an interruption, interruption_exit().
enum class Exit : int { success = 0, failure = 1, usage = 2, interrupted };

struct Command {
  const char* name;
  const char* summary;
  // An error of code invalid_argument is a wrong command line (usage); every other one, a failure.
  Result<Exit> (*run)(const std::vector<std::string>& arguments);
};

Result<Exit> run_generate(const std::vector<std::string>& arguments);
Result<Exit> run_chat(const std::vector<std::string>& arguments);
Result<Exit> run_inspect(const std::vector<std::string>& arguments);
Result<Exit> run_sweep(const std::vector<std::string>& arguments);
Result<Exit> run_eval(const std::vector<std::string>& arguments);
Result<Exit> run_session(const std::vector<std::string>& arguments);
Result<Exit> run_methods(const std::vector<std::string>& arguments);

}  // namespace thermocline
