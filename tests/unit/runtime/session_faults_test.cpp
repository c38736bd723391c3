// Saves that the system refuses, at every one of their calls: an error that says which file and
// why, a timeline that goes on, and in the file the save before or this one, whole.
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "kernels/base/buffer.h"
#include "tests/support/written_rows.h"
#include "tests/unit/runtime/save_calls.h"
#include "tests/unit/runtime/session_saves.h"

namespace thermocline {
namespace {

namespace fs = std::filesystem;

enum class After : std::uint8_t { works, lasts };  // of a fault: the calls that follow

struct Fault {
  const char* name;
  int error;  // 0: none, half of a pwrite
  bool carried_out;
  After after;
};
constexpr Fault kFaults[] = {{"EIO", EIO, false, After::works},
                             {"EIO, and it was done", EIO, true, After::works},
                             {"EIO from then on", EIO, false, After::lasts},
                             {"ENOSPC", ENOSPC, false, After::works},
                             {"ENOSPC from then on", ENOSPC, false, After::lasts},
                             {"EINTR", EINTR, false, After::works},
                             {"EINTR, and it was done", EINTR, true, After::works},
                             {"short", 0, true, After::works}};

// What became of a save with its call number `at` struck.
struct Struck {
  Status saved{};
  bool struck = false;
  SaveCall call{};
  int pwrites = 0;  // up to that call
  int calls = 0;
};

class SessionFaults : public SessionSaves {
 protected:
  static Struck save_struck(KvCache* cache, const Timeline& timeline, const Fault& fault, int at) {
    Struck found;
    watch_save_calls({[&](SaveCall call) -> CallFate {
      const int number = found.calls++;
      if (number < at || (number > at && fault.after == After::works)) {
        if (!found.struck) found.pwrites += call == SaveCall::pwrite;
        return {};
      }
      if (!found.struck) {
        found.pwrites += call == SaveCall::pwrite;
        found.struck = true;
        found.call = call;
      }
      return {fault.error, fault.carried_out, fault.error == 0};
    }});
    found.saved = cache->save(timeline, session_text(timeline.length()));
    watch_save_calls({});
    return found;
  }

  // A failed fsync cannot be made good, nor a header that may or may not be there.
  static bool ends_saving(const Struck& found, bool named) {
    return found.call == SaveCall::fsync ||
           (found.call == SaveCall::pwrite && found.pwrites == 2 && named);
  }
  // What is given back when the save has taken effect is only given back later.
  static bool harmless(const Struck& found, const Fault& fault) {
    return fault.error == 0 || fault.error == EINTR || found.call == SaveCall::punch ||
           found.call == SaveCall::ftruncate ||
           (found.call == SaveCall::linkat && fault.carried_out);
  }

  // That the open file takes, whether or not it has a name.
  std::uint64_t bytes_on_disk() const {
    for (const auto& one : fs::directory_iterator("/proc/self/fd")) {
      std::error_code gone;
      struct stat file {};
      if (fs::read_symlink(one, gone).string().starts_with(root_ + "/") &&
          ::stat(one.path().c_str(), &file) == 0)
        return static_cast<std::uint64_t>(file.st_blocks) * 512;
    }
    ADD_FAILURE() << "no file is open";
    return 0;
  }
  void expect_said(const Status& status, const char* cause) const {
    ASSERT_FALSE(status);
    const std::string& message = status.error().message;
    EXPECT_NE(message.find(path_), std::string::npos) << message;
    EXPECT_NE(message.find(cause), std::string::npos) << message;
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
  }
  void expect_goes_on(KvCache* cache, const Timeline& timeline) {
    const Timeline other = std::move(*timeline.fork());
    const auto next = advance(cache, other, 1, Pass::decode);
    ASSERT_TRUE(next) << next.error().message;
    EXPECT_EQ(*next, due(timeline.length()));
  }

  // Saves `before` times undisturbed, then once with call `at` struck, then once more. Whether the
  // save had so many calls.
  bool try_at(int before, const Fault& fault, int at) {
    fs::remove(path_);
    std::uint32_t published = 0, struck_at = 0, last = 0;
    bool refused = false, done = false;
    std::vector<char> lost;  // headers as they were, if the struck one did not reach the disk
    {
      const auto cache = KvCache::create(saved_options(path_), 1, "auto");
      EXPECT_TRUE(cache) << (cache ? "" : cache.error().message);
      if (!cache) return false;
      Timeline timeline = std::move(*(*cache)->start());
      EXPECT_TRUE(read_on(cache->get(), timeline));
      for (int save = 0; save < before; ++save) {
        EXPECT_TRUE((*cache)->save(timeline, session_text(timeline.length())));
        published = timeline.length();
        EXPECT_TRUE(read_on(cache->get(), timeline));
      }
      // A cut takes back what the last save refers to, so that the next one has it to give.
      if (before > 1) {
        EXPECT_TRUE(timeline.truncate(kFirst));
        EXPECT_TRUE(read_on(cache->get(), timeline));
        EXPECT_TRUE(read_on(cache->get(), timeline));
        EXPECT_TRUE(read_on(cache->get(), timeline));
      }
      struck_at = timeline.length();
      const MemoryPlan held = (*cache)->usage();
      const std::uint64_t on_disk = bytes_on_disk();
      std::vector<char> headers(2 * kPageBytes);
      std::ifstream(path_).read(headers.data(), static_cast<std::streamsize>(headers.size()));
      const Struck found = save_struck(cache->get(), timeline, fault, at);
      done = found.struck;
      SCOPED_TRACE(done ? name_of(found.call) : "none");
      const bool goes_well = !done || harmless(found, fault);
      refused = !goes_well && ends_saving(found, published > 0);
      if (refused && found.pwrites == 2 && published > 0 && !fault.carried_out)
        lost = std::move(headers);
      if (goes_well) {
        EXPECT_TRUE(found.saved) << found.saved.error().message;
      } else {
        expect_said(found.saved, fault.error == EIO ? "EIO" : "ENOSPC");
        EXPECT_EQ((*cache)->usage().total("host"), held.total("host"));
        if (!refused) {
          EXPECT_EQ((*cache)->usage().total("disk"), held.total("disk"));
        }
        // Where two saves may count, the second's record stays. Else nothing does but the headers'
        // pages, and one of the filesystem's own.
        if (fault.after == After::works) {
          EXPECT_LE(bytes_on_disk(), on_disk + (refused ? 64 << 10 : 3 * kPageBytes));
        }
      }
      expect_goes_on(cache->get(), timeline);
      EXPECT_TRUE(read_on(cache->get(), timeline));
      expect_goes_on(cache->get(), timeline);
      const Status later = (*cache)->save(timeline, session_text(timeline.length()));
      last = timeline.length();
      if (refused)
        expect_said(later, "cannot be saved any more");
      else
        EXPECT_TRUE(later) << later.error().message;
      timeline = Timeline();
      if (!fs::exists(path_)) {
        EXPECT_LE(bytes_on_disk(), 3 * kPageBytes) << "nobody can find it, nor holds any of it";
      }
    }
    if (!lost.empty())
      std::fstream(path_).write(lost.data(), static_cast<std::streamsize>(lost.size()));
    const std::uint32_t length = check();
    if (!lost.empty())
      EXPECT_EQ(length, published);
    else if (refused)
      EXPECT_TRUE(length == published || length == struck_at) << length;
    else
      EXPECT_EQ(length, last);
    return done;
  }

  void try_all(int before, int calls) {
    int faults = 0;
    for (const Fault& fault : kFaults) {
      int at = 0;
      for (bool struck = true; struck; at += struck) {
        SCOPED_TRACE(std::string(fault.name) + " at call " + std::to_string(at));
        struck = try_at(before, fault, at);
        if (HasFailure()) return;
        faults += struck;
      }
      EXPECT_GE(at, calls) << "not all of a save's calls come here";
    }
    RecordProperty("faults", faults);
    std::printf("%d faults\n", faults);
  }
};

TEST_F(SessionFaults, AtEveryCallOfTheFirstSave) { try_all(0, 7); }
TEST_F(SessionFaults, AtEveryCallOfTheSecondSave) { try_all(1, 6); }
TEST_F(SessionFaults, AtEveryCallOfALaterSave) { try_all(2, 7); }

}  // namespace
}  // namespace thermocline
