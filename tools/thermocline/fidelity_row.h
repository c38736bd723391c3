// What a comparison says, as a row of a table.
#pragma once

#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "tools/thermocline/comparison.h"
#include "tools/thermocline/measured_rows.h"

namespace thermocline {

nlohmann::ordered_json fidelity_row(const Passage& passage, const std::string& method,
                                    const Comparison& comparison);
// Its mass_by_layer, null of layers with a window, in numbers for a table: the mean and the lowest.
void set_mass(nlohmann::ordered_json* row);
// The same method over several texts: the mean of each number that all have, the largest kl_max;
// the interval is of all steps together. Of at least one row.
nlohmann::ordered_json mean_row(std::span<const nlohmann::ordered_json> rows);
// What it has for the text's name.
std::string mean_title(std::size_t rows);

// What a row has that means and intervals are made of.
RowColumns fidelity_row_columns();

// The columns that people are shown, in order.
std::vector<std::string> fidelity_columns();

}  // namespace thermocline
