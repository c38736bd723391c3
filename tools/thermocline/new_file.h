// Files and folders that come into being whole.
#pragma once

#include <filesystem>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>

#include "kernels/base/error.h"

namespace thermocline {

// The parts one after the other in a file that was not there. io: with the path and the system's
// reason (a full disk, for one).
Status write_new_file(const std::string& path, std::initializer_list<std::string_view> parts);

// A folder that is filled beside its place and then moved there: whoever sees it sees all of it.
// Move-only; one that was not published is removed.
class NewFolder {
 public:
  // For `place`, whose parents are made.
  static Result<NewFolder> create(const std::filesystem::path& place);
  NewFolder(NewFolder&& other) noexcept
      : place_(std::move(other.place_)), filled_(std::exchange(other.filled_, {})) {}
  NewFolder& operator=(NewFolder&&) = delete;
  ~NewFolder();

  std::string file(const std::string& name) const { return filled_ / name; }
  // In place of what is there. Once.
  Status publish();

 private:
  NewFolder(std::filesystem::path place, std::filesystem::path filled)
      : place_(std::move(place)), filled_(std::move(filled)) {}

  std::filesystem::path place_, filled_;
};

}  // namespace thermocline
