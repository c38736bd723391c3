// Rows of measurements in four formats, written as they come: md for people (chosen columns), csv,
// json and jsonl for programs (all columns). csv has those of the first row that are no lists of
// numbers, then those of md that it lacks: what a later row has beside them is left out.
#pragma once

#include <cstdio>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "kernels/base/error.h"

namespace thermocline {

enum class TableFormat : std::uint8_t { md, csv, json, jsonl };
Result<TableFormat> parse_table_format(std::string_view text);

class Table {
 public:
  // `shown`: the columns of md, in order.
  Table(std::FILE* to, TableFormat format, std::vector<std::string> shown)
      : to_(to), format_(format), shown_(std::move(shown)) {}
  ~Table();
  Table(const Table&) = delete;
  Table& operator=(const Table&) = delete;

  // Room for this in a column of md, where a later row has more in it than the first one.
  void make_room(const std::string& column, const std::string& text);
  // At once: a row may be the work of hours, and the next of more. io: it could not be written.
  Status add(const nlohmann::ordered_json& row);

 private:
  void add_markdown(const nlohmann::ordered_json& row);
  void add_csv(const nlohmann::ordered_json& row);

  std::FILE* to_;
  TableFormat format_;
  std::vector<std::string> shown_;
  std::vector<std::string> titles_;  // of csv
  std::vector<std::size_t> widths_;
  std::map<std::string, std::size_t> least_;
  bool first_ = true;
};

}  // namespace thermocline
