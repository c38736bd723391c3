#include "tools/thermocline/table.h"

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>

#include "tools/thermocline/printable.h"

namespace thermocline {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::size_t kNarrowest = 9;

std::string dump(const Json& value) {
  return value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

// A number with the digits that matter to a reader; text without quotes.
std::string cell(const Json& value) {
  if (value.is_null()) return "";
  if (value.is_string()) return value.get<std::string>();
  if (!value.is_number_float()) return dump(value);
  const double number = value.get<double>();
  if (std::isnan(number)) return "";
  const double size = std::fabs(number);
  char text[32];
  if (size != 0 && size < 0.01)
    std::snprintf(text, sizeof text, "%.2e", number);
  else if (size < 10)
    std::snprintf(text, sizeof text, "%.3f", number);
  else
    std::snprintf(text, sizeof text, size < 1000 ? "%.1f" : "%.0f", number);
  return text;
}

// On a line of a table: a bar would be its end.
std::string markdown_cell(const Json& value) {
  std::string out;
  for (const char c : printable(cell(value)))
    out += c == '|' ? std::string("\\|") : std::string(1, c);
  return out;
}

// A list of words is one: "avx2 avx512". Other lists are for the formats that have them.
bool is_cell(const Json& value) {
  return !value.is_structured() ||
         (value.is_array() &&
          std::all_of(value.begin(), value.end(), [](const Json& one) { return one.is_string(); }));
}

std::string csv_cell(const Json& value) {
  if (value.is_null() || !is_cell(value)) return "";
  std::string text = value.is_string() ? printable(value.get<std::string>()) : dump(value);
  if (value.is_array()) {
    text.clear();
    for (const Json& word : value) text += (text.empty() ? "" : " ") + printable(cell(word));
  }
  if (text.find_first_of(",\"") == std::string::npos) return text;
  std::string quoted = "\"";
  for (const char c : text) quoted += c == '"' ? std::string("\"\"") : std::string(1, c);
  return quoted + "\"";
}

}  // namespace

Result<TableFormat> parse_table_format(std::string_view text) {
  if (text == "md") return TableFormat::md;
  if (text == "csv") return TableFormat::csv;
  if (text == "json") return TableFormat::json;
  if (text == "jsonl") return TableFormat::jsonl;
  return fail(ErrorCode::invalid_argument, "--output '", text,
              "' is not known: md, csv, json or jsonl");
}

Table::~Table() {
  if (format_ == TableFormat::json) std::fputs(first_ ? "[]\n" : "\n]\n", to_);
  std::fflush(to_);
}

void Table::make_room(const std::string& column, const std::string& text) {
  least_[column] = std::max(least_[column], markdown_cell(text).size());
}

Status Table::add(const Json& row) {
  switch (format_) {
    case TableFormat::md:
      add_markdown(row);
      break;
    case TableFormat::csv:
      add_csv(row);
      break;
    case TableFormat::json:
      std::fprintf(to_, "%s%s", first_ ? "[\n" : ",\n", dump(row).c_str());
      break;
    case TableFormat::jsonl:
      std::fprintf(to_, "%s\n", dump(row).c_str());
      break;
  }
  first_ = false;
  if (std::fflush(to_) == 0 && !std::ferror(to_)) return {};
  return fail(ErrorCode::io, "the table could not be written: ", std::strerror(errno));
}

void Table::add_markdown(const Json& row) {
  if (first_) {
    std::string titles = "|", rule = "|";
    for (const std::string& name : shown_) {
      // Later rows may be wider than the first: leave them room.
      widths_.push_back(std::max({name.size(), markdown_cell(row.value(name, Json())).size() + 1,
                                  kNarrowest, least_[name]}));
      titles += " " + name + std::string(widths_.back() - name.size(), ' ') + " |";
      rule += " " + std::string(widths_.back() - 1, '-') + ": |";
    }
    std::fprintf(to_, "%s\n%s\n", titles.c_str(), rule.c_str());
  }
  std::string line = "|";
  for (std::size_t c = 0; c < shown_.size(); ++c) {
    const std::string text = markdown_cell(row.value(shown_[c], Json()));
    line += " " + std::string(widths_[c] - std::min(widths_[c], text.size()), ' ') + text + " |";
  }
  std::fprintf(to_, "%s\n", line.c_str());
}

void Table::add_csv(const Json& row) {
  const auto write = [&](const auto& cell_of) {
    for (const std::string& title : titles_)
      std::fprintf(to_, "%s%s", &title == &titles_.front() ? "" : ",",
                   csv_cell(cell_of(title)).c_str());
    std::fputs("\n", to_);
  };
  if (first_) {
    for (const auto& [name, value] : row.items())
      if (is_cell(value)) titles_.push_back(name);
    for (const std::string& name : shown_)
      if (!row.contains(name)) titles_.push_back(name);
    write([](const std::string& title) { return Json(title); });
  }
  write([&](const std::string& title) { return row.value(title, Json()); });
}

}  // namespace thermocline
