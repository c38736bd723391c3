// A folder of a test's own, gone with all that is in it when this goes.
#pragma once

#include <stdlib.h>

#include <filesystem>
#include <string>

#include "kernels/base/error.h"

namespace thermocline::test {

class TemporaryFolder {
 public:
  // `name` is a part of the folder's.
  explicit TemporaryFolder(const std::string& name)
      : path_(std::filesystem::temp_directory_path() / ("thermocline-" + name + "-XXXXXX")) {
    TL_CHECK(::mkdtemp(path_.data()) != nullptr);
  }
  ~TemporaryFolder() { std::filesystem::remove_all(path_); }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

}  // namespace thermocline::test
