#include "tests/unit/runtime/save_calls.h"

#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

namespace thermocline {
namespace {

CallWatch watching;

template <typename Carry>
long pass(SaveCall call, const Carry& carry_out) {
  if (!watching.before) return carry_out(false);
  const CallFate fate = watching.before(call);
  const long result = fate.carried_out ? carry_out(fate.halved) : -1;
  const int said = fate.error ? fate.error : errno;
  if (watching.after) watching.after();
  errno = said;
  return fate.error ? -1 : result;
}

}  // namespace

const char* name_of(SaveCall call) {
  static constexpr const char* kNames[] = {"allocate", "pwrite", "fsync",
                                           "linkat",   "punch",  "ftruncate"};
  return kNames[static_cast<std::size_t>(call)];
}

void watch_save_calls(CallWatch watch) { watching = std::move(watch); }

}  // namespace thermocline

using thermocline::SaveCall;

extern "C" {

ssize_t pwrite(int file, const void* bytes, std::size_t count, off_t offset) {
  return thermocline::pass(SaveCall::pwrite, [&](bool halved) {
    return ::syscall(SYS_pwrite64, file, bytes, halved ? count / 2 : count, offset);
  });
}
int fsync(int file) {
  return static_cast<int>(
      thermocline::pass(SaveCall::fsync, [&](bool) { return ::syscall(SYS_fsync, file); }));
}
int linkat(int from, const char* name, int to, const char* as, int flags) noexcept {
  return static_cast<int>(thermocline::pass(
      SaveCall::linkat, [&](bool) { return ::syscall(SYS_linkat, from, name, to, as, flags); }));
}
int fallocate(int file, int mode, off_t offset, off_t bytes) {
  const SaveCall call = mode & FALLOC_FL_PUNCH_HOLE ? SaveCall::punch : SaveCall::allocate;
  return static_cast<int>(thermocline::pass(
      call, [&](bool) { return ::syscall(SYS_fallocate, file, mode, offset, bytes); }));
}
int ftruncate(int file, off_t bytes) noexcept {
  return static_cast<int>(thermocline::pass(
      SaveCall::ftruncate, [&](bool) { return ::syscall(SYS_ftruncate, file, bytes); }));
}
}
