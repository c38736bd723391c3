#include "tools/thermocline/measured_rows.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>

namespace thermocline {
namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kName = "measurement";  // first in a line: what was cut short is known by it

tl::unexpected<Error> failed(const std::string& path, const char* what) {
  return fail(ErrorCode::io, "--resume ", path, " could not be ", what, ": ", std::strerror(errno));
}

tl::unexpected<Error> no_row(const std::string& path, std::size_t line) {
  return fail(ErrorCode::corrupt, "--resume ", path, ": line ", line,
              " is no row of a measurement: name another file");
}

// Whether add() writes lines that begin so.
bool begins_a_row(std::string_view text) {
  const std::string begin = std::string("{\"") + kName + "\":\"";
  return text.substr(0, begin.size()) == std::string_view(begin).substr(0, text.size());
}

bool is_number(const Json& value) { return value.is_number(); }

bool has(const Json& row, const RowColumns& columns) {
  const auto each = [&](const std::vector<std::string>& names, const auto& fits) {
    return std::all_of(names.begin(), names.end(), [&](const std::string& name) {
      const auto at = row.find(name);
      return at != row.end() && fits(*at);
    });
  };
  return each(columns.texts, [](const Json& value) { return value.is_string(); }) &&
         each(columns.numbers, is_number) && each(columns.lists, [](const Json& value) {
           return value.is_array() && !value.empty() &&
                  std::all_of(value.begin(), value.end(), is_number);
         });
}

Result<std::string> read_all(int file, const std::string& path) {
  std::string text;
  char piece[1 << 16];
  while (true) {
    const ssize_t count = ::read(file, piece, sizeof piece);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return failed(path, "read");
    if (count == 0) return text;
    text.append(piece, static_cast<std::size_t>(count));
  }
}

}  // namespace

Result<MeasuredRows> MeasuredRows::open(const std::string& path) {
  MeasuredRows rows;
  rows.path_ = path;
  if (path.empty()) return rows;
  rows.file_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
  if (rows.file_ < 0) return failed(path, "opened");
  // A pipe's end or a device's may never come.
  struct stat what {};
  if (::fstat(rows.file_, &what) != 0) return failed(path, "opened");
  if (!S_ISREG(what.st_mode))
    return fail(ErrorCode::invalid_argument, "--resume ", path,
                " is no file that rows could be kept in: name one");
  if (::flock(rows.file_, LOCK_EX | LOCK_NB) != 0)
    return fail(ErrorCode::io, "--resume ", path, ": another run is adding to it");
  TL_TRY_ASSIGN(const std::string text, read_all(rows.file_, path));
  std::size_t at = 0;
  for (std::size_t end = text.find('\n'); end != std::string::npos;
       at = end + 1, end = text.find('\n', at)) {
    ++rows.lines_;
    Json row = Json::parse(text.begin() + static_cast<std::ptrdiff_t>(at),
                           text.begin() + static_cast<std::ptrdiff_t>(end), nullptr, false);
    if (!row.is_object() || !row.contains(kName) || !row[kName].is_string())
      return no_row(path, rows.lines_);
    const auto name = row[kName].get<std::string>();
    row.erase(kName);
    rows.rows_[name] = {std::move(row), rows.lines_};
  }
  // Only a row of ours that was cut short: any other file stays as it is.
  if (at < text.size()) {
    if (!begins_a_row(std::string_view(text).substr(at))) return no_row(path, rows.lines_ + 1);
    if (::ftruncate(rows.file_, static_cast<off_t>(at)) != 0) return failed(path, "cut");
  }
  return rows;
}

MeasuredRows& MeasuredRows::operator=(MeasuredRows&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(file_, other.file_);
  std::swap(lines_, other.lines_);
  std::swap(rows_, other.rows_);
  return *this;
}

MeasuredRows::~MeasuredRows() {
  if (file_ >= 0) ::close(file_);
}

Result<const Json*> MeasuredRows::find(const std::string& measurement,
                                       const RowColumns& columns) const {
  const auto found = rows_.find(measurement);
  if (found == rows_.end()) return nullptr;
  if (!has(found->second.columns, columns)) return no_row(path_, found->second.line);
  return &found->second.columns;
}

Status MeasuredRows::add(const std::string& measurement, const Json& row) {
  rows_[measurement] = {row, ++lines_};
  if (file_ < 0) return {};
  Json named{{kName, measurement}};
  named.update(row);
  const std::string line = named.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
  for (std::string_view left = line; !left.empty();) {
    const ssize_t count = ::write(file_, left.data(), left.size());
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return failed(path_, "written");
    left.remove_prefix(static_cast<std::size_t>(count));
  }
  if (::fsync(file_) != 0) return failed(path_, "written");
  return {};
}

MeasurementName& MeasurementName::add(std::string_view fact) {
  // With its end: "ab", "c" is not "a", "bc".
  for (const char c : std::string(fact) + '\0')
    hash_ = (hash_ ^ static_cast<unsigned char>(c)) * 1099511628211u;
  return *this;
}

std::string MeasurementName::text() const {
  char text[17];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(hash_));
  return text;
}

}  // namespace thermocline
