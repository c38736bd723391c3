// A small filesystem, a real one, that is full at some point of a cache's life: the step that finds
// no room is refused with what to do, the budget holds, and once there is room it goes on.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <string>

#include "tests/faults/cache_walk.h"
#include "tiers/io/descriptor.h"

namespace thermocline {
namespace {

namespace fs = std::filesystem;

constexpr int kPoints = 20;

// A filesystem of 24 MiB that is there for as long as this lives; why_not says why it is not.
class SmallFilesystem {
 public:
  SmallFilesystem(const std::string& kind, const std::string& folder) : folder_(folder) {
    fs::create_directories(folder);
    if (kind == "tmpfs") {
      if (::mount("tmpfs", folder.c_str(), "tmpfs", 0, "size=24m,mode=0700") != 0)
        why_not = "mounting a tmpfs: " + std::string(std::strerror(errno));
      else
        mounted_ = true;
      return;
    }
    const std::string image = folder + ".image";
    const std::string quiet = " >/dev/null 2>&1";
    // No journal and no reserve: what is free is for everybody, and is given back at once.
    if (std::system(("truncate -s 24M " + image + " && mkfs.ext4 -q -F -m 0 -O ^has_journal " +
                     image + quiet)
                        .c_str()) != 0)
      why_not = "no mkfs.ext4 here";
    else if (std::system(("mount -o loop " + image + " " + folder + quiet).c_str()) != 0)
      why_not = "no loop device may be mounted here";
    else
      mounted_ = ::chmod(folder.c_str(), 0700) == 0;
    fs::remove(image);
  }
  ~SmallFilesystem() {
    if (mounted_) ::umount2(folder_.c_str(), MNT_DETACH);
  }
  std::uint64_t free_bytes() const {
    struct statvfs found {};
    return ::statvfs(folder_.c_str(), &found) == 0 ? found.f_bavail * found.f_frsize : 0;
  }
  // Whether so much is free, or soon: a ring that has gone holds its file for a moment longer.
  bool gets_free(std::uint64_t bytes) const {
    for (int look = 0; look < 500 && free_bytes() < bytes; ++look) ::usleep(10'000);
    return free_bytes() >= bytes;
  }
  // Another file takes everything but `left` bytes.
  Descriptor fill(std::uint64_t left) const {
    Descriptor file(::open(folder_.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
    std::uint64_t size = 0;
    while (file.open() && free_bytes() > left) {
      const std::uint64_t more = std::min<std::uint64_t>(free_bytes() - left, 64 * 4096);
      if (::fallocate(file.number(), 0, static_cast<off_t>(size), static_cast<off_t>(more)) != 0)
        break;
      size += more;
    }
    return file;
  }

  std::string why_not;

 private:
  std::string folder_;
  bool mounted_ = false;
};

class FullDisk : public ::testing::TestWithParam<std::string> {};

TEST_P(FullDisk, AtTwentyPointsIsARefusalAndNoMore) {
  const std::string folder = ::testing::TempDir() + "thermocline-full-" + GetParam() + "-" +
                             std::to_string(::getpid());  // others may run it at the same time
  const SmallFilesystem small(GetParam(), folder);
  if (!small.why_not.empty()) GTEST_SKIP() << small.why_not;
  CacheOptions options = cache_options("auto", "exact", 0);
  options.tiers.directory = folder;
  options.tiers.disk_bytes = std::uint64_t{8} << 20;
  const std::uint64_t empty = small.free_bytes();
  const Undisturbed right = walk_undisturbed(options);
  ASSERT_TRUE(small.gets_free(empty));
  const std::uint64_t free = small.free_bytes();
  ASSERT_GT(free, right.most_on_disk);
  int refusals = 0;
  for (int point = 0; point < kPoints; ++point) {
    SCOPED_TRACE("point " + std::to_string(point));
    ASSERT_TRUE(small.gets_free(free));  // else what the last walk had would be room for this one
    Walk walk(options);
    const std::uint64_t left = right.most_on_disk * static_cast<unsigned>(point) / kPoints;
    Descriptor others = small.fill(left);
    ASSERT_LE(small.free_bytes(), left + 4096);
    bool full = false;
    for (int s = 0; s < kSteps;) {
      std::vector<float> outputs;
      const Status done = walk.step(s, &outputs);
      const std::uint64_t held = walk.cache().usage().total("disk");
      EXPECT_LE(held, options.tiers.disk_bytes);
      if (!full) {
        EXPECT_LE(held, left);
      }
      if (done) {
        ASSERT_TRUE(same(outputs, right.outputs[static_cast<std::size_t>(s)])) << "step " << s;
        ASSERT_EQ(walk.held_bytes(), right.held[static_cast<std::size_t>(s)]) << "step " << s;
        ++s;
        continue;
      }
      ASSERT_FALSE(full) << done.error().message;  // once there is room it goes on
      full = true;
      ++refusals;
      EXPECT_EQ(done.error().code, ErrorCode::exhausted) << done.error().message;
      for (const std::string& part : {std::string("more is needed in --kv-dir"), folder,
                                      std::string("free"), std::string("ENOSPC")})
        EXPECT_NE(done.error().message.find(part), std::string::npos) << done.error().message;
      if (walk.held_before_step() > 0) {
        EXPECT_EQ(walk.held_bytes(), walk.held_before_step());
      }
      // No more of it is the cache's than it says.
      EXPECT_GE(small.free_bytes() + held + 16 * 4096, left);
      others = Descriptor();
    }
    walk.forget_texts();
    EXPECT_EQ(walk.cache().usage().total("disk"), 0u);
  }
  EXPECT_TRUE(small.gets_free(free));
  EXPECT_EQ(refusals, kPoints);
  std::printf("%s: full at %d points of %lu KiB\n", GetParam().c_str(), refusals,
              static_cast<unsigned long>(right.most_on_disk >> 10));
}

INSTANTIATE_TEST_SUITE_P(Filesystems, FullDisk, ::testing::Values("tmpfs", "ext4"),
                         [](const auto& suite) { return suite.param; });

}  // namespace
}  // namespace thermocline
