// Rows of measurements in four formats, written as they come: md for people (chosen columns), csv,
// json and jsonl for programs (all columns). The first row says what the columns are.
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

  // Room for so many letters in a column of md, where a later row has more than the first one.
  void widen(const std::string& column, std::size_t letters) { least_[column] = letters; }
  // At once: a row may be the work of hours, and the next of more. io: it could not be written.
  Status add(const nlohmann::ordered_json& row);

 private:
  void add_markdown(const nlohmann::ordered_json& row);
  void add_csv(const nlohmann::ordered_json& row);

  std::FILE* to_;
  TableFormat format_;
  std::vector<std::string> shown_;
  std::vector<std::size_t> widths_;
  std::map<std::string, std::size_t> least_;
  bool first_ = true;
};

}  // namespace thermocline
