// Rows of measurements that outlive a run: a file of JSON lines that a run adds to as it measures,
// so that one that was killed goes on where it stopped.
#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/error.h"

namespace thermocline {

// What the rows of one kind of measurement have at least: what is computed of a row that was found.
struct RowColumns {
  std::vector<std::string> texts, numbers, lists;  // lists: of numbers, one at least
};

// Moves, does not copy. One process at a time has a file open.
class MeasuredRows {
 public:
  // Makes the file where there is none; a last line that was cut short is taken out of it. "":
  // nothing was measured, and nothing is kept. corrupt: a line is no row of ours. invalid_argument:
  // it is no file, but a pipe or a device.
  static Result<MeasuredRows> open(const std::string& path);
  MeasuredRows(MeasuredRows&& other) noexcept { *this = std::move(other); }
  MeasuredRows& operator=(MeasuredRows&& other) noexcept;
  ~MeasuredRows();

  // The last row of that measurement; null: there is none. corrupt: it lacks one of the columns.
  Result<const nlohmann::ordered_json*> find(const std::string& measurement,
                                             const RowColumns& columns) const;
  // On the disk when it returns, since it may be the work of hours.
  Status add(const std::string& measurement, const nlohmann::ordered_json& row);

 private:
  struct Row {
    nlohmann::ordered_json columns;
    std::size_t line = 0;
  };
  MeasuredRows() = default;

  std::string path_;
  int file_ = -1;
  std::size_t lines_ = 0;
  std::map<std::string, Row> rows_;
};

// What measurements are told apart by: everything that decides a row, in a few letters.
class MeasurementName {
 public:
  MeasurementName& add(std::string_view fact);
  std::string text() const;

 private:
  std::uint64_t hash_ = 14695981039346656037u;  // FNV-1a
};

}  // namespace thermocline
