#include "tools/thermocline/json_output.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "runtime/thermocline.h"
#include "tools/thermocline/flags.h"

namespace thermocline {

Result<JsonOutput> JsonOutput::open(const std::string& path) {
  JsonOutput output;
  output.path_ = path;
  if (path.empty() || path == "-") return output;
  if (is_session(path))
    return fail(ErrorCode::invalid_argument, "--json ", path,
                " is a session, which would be written over: name another file");
  output.file_ = ::open(path.c_str(), O_WRONLY | O_CLOEXEC);
  if (output.file_ < 0 && errno == ENOENT) {
    output.file_ = ::open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
    output.made_ = output.file_ >= 0;
  }
  if (output.file_ < 0)
    return fail(ErrorCode::io, "--json ", path, " cannot be written: ", std::strerror(errno));
  return output;
}

JsonOutput& JsonOutput::operator=(JsonOutput&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(file_, other.file_);
  std::swap(made_, other.made_);
  return *this;
}

JsonOutput::~JsonOutput() {
  if (file_ < 0) return;
  struct stat ours = {}, there = {};
  // Only if the name is still this file's, and not a link to it.
  if (made_ && ::fstat(file_, &ours) == 0 && ::lstat(path_.c_str(), &there) == 0 &&
      ours.st_dev == there.st_dev && ours.st_ino == there.st_ino)
    ::unlink(path_.c_str());
  ::close(file_);
}

Status JsonOutput::write(std::string_view text) {
  if (path_ == "-") return write_to_stdout(text);
  if (file_ < 0) return {};
  made_ = false;
  // A pipe or a terminal cannot be cut, and need not be.
  bool written = ::ftruncate(file_, 0) == 0 || errno == EINVAL;
  while (written && !text.empty()) {
    const ssize_t count = ::write(file_, text.data(), text.size());
    if (count > 0) text.remove_prefix(static_cast<std::size_t>(count));
    written = count > 0 || (count < 0 && errno == EINTR);
  }
  const int why = errno;
  const bool closed = ::close(std::exchange(file_, -1)) == 0;
  if (written && closed) return {};
  return fail(ErrorCode::io, "--json ", path_,
              " could not be written: ", std::strerror(written ? errno : why));
}

}  // namespace thermocline
