#include "tools/thermocline/new_file.h"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <system_error>

namespace thermocline {
namespace {

namespace fs = std::filesystem;

tl::unexpected<Error> not_written(const std::string& path, const std::string& why) {
  return fail(ErrorCode::io, path, " could not be written: ", why);
}

}  // namespace

Status write_new_file(const std::string& path, std::initializer_list<std::string_view> parts) {
  struct Close {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };
  std::unique_ptr<std::FILE, Close> file(std::fopen(path.c_str(), "wxe"));
  if (!file) return not_written(path, std::strerror(errno));
  for (const std::string_view part : parts)
    if (std::fwrite(part.data(), 1, part.size(), file.get()) != part.size())
      return not_written(path, std::strerror(errno));
  // What is buffered meets a full disk here.
  if (std::fclose(file.release()) != 0) return not_written(path, std::strerror(errno));
  return {};
}

Result<NewFolder> NewFolder::create(const fs::path& place) {
  std::error_code error;
  fs::path filled = place;
  filled += ".partial";
  fs::remove_all(filled, error);  // of a run that was killed
  fs::create_directories(filled, error);
  if (error) return not_written(filled, error.message());
  return NewFolder(place, filled);
}

NewFolder::~NewFolder() {
  std::error_code ignored;
  if (!filled_.empty()) fs::remove_all(filled_, ignored);
}

Status NewFolder::publish() {
  std::error_code error;
  fs::remove_all(place_, error);
  if (!error) fs::rename(filled_, place_, error);
  if (error) return not_written(place_, error.message());
  filled_.clear();
  return {};
}

}  // namespace thermocline
