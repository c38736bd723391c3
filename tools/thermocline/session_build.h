// thermocline session build: long contexts made cheaply, of independent texts.
#pragma once

#include <string>
#include <vector>

#include "tools/thermocline/command.h"

namespace thermocline {

Result<Exit> run_session_build(const std::vector<std::string>& arguments);

}  // namespace thermocline
