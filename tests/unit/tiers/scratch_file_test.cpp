#include "tiers/store/scratch_file.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <random>
#include <tuple>
#include <vector>

#include "kernels/base/buffer.h"
#include "tests/support/temporary_folder.h"
#include "tiers/io/descriptor.h"

namespace thermocline {
namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;

class ScratchFileTest : public ::testing::Test {
 protected:
  ~ScratchFileTest() override { fs::permissions(root_, fs::perms::owner_all); }
  const test::TemporaryFolder temporary_{"scratch"};
  const std::string root_ = temporary_.path();
};

std::uint64_t allocated_bytes(const ScratchFile& scratch) {
  struct stat found {};
  EXPECT_EQ(::fstat(scratch.descriptor(), &found), 0);
  return static_cast<std::uint64_t>(found.st_blocks) * 512;
}

// Extents of the file by their offset.
Result<std::uint64_t> take(ScratchFile& scratch, std::uint64_t bytes) {
  TL_TRY_ASSIGN(const Space space, scratch.take(bytes));
  EXPECT_EQ(space.bytes, bytes);
  EXPECT_EQ(space.file, scratch.descriptor());
  EXPECT_EQ(space.address, nullptr);
  return space.offset;
}

void give(ScratchFile& scratch, std::uint64_t offset, std::uint64_t bytes) {
  Space space;
  space.bytes = bytes;
  space.offset = offset;
  scratch.give(space);
}

mode_t mode_of(const std::string& path) {
  struct stat found {};
  EXPECT_EQ(::stat(path.c_str(), &found), 0) << path;
  return found.st_mode & 07777;
}

std::string refusal(const std::string& directory) {
  const auto scratch = ScratchFile::create(directory, kMiB);
  return scratch ? "accepted" : scratch.error().message;
}

TEST_F(ScratchFileTest, LeavesNothingInItsDirectory) {
  const std::string directory = root_ + "/new/";
  auto scratch = ScratchFile::create(directory, kMiB);
  ASSERT_TRUE(scratch) << scratch.error().message;
  EXPECT_TRUE(fs::is_empty(directory));
  EXPECT_EQ(mode_of(directory), 0700u);
  struct stat found {};
  ASSERT_EQ(::fstat(scratch->descriptor(), &found), 0);
  EXPECT_EQ(found.st_nlink, 0u);
  EXPECT_EQ(found.st_mode & 07777, 0600u);
  // Nor can a name be given to it later.
  const std::string self = "/proc/self/fd/" + std::to_string(scratch->descriptor());
  EXPECT_NE(
      ::linkat(AT_FDCWD, self.c_str(), AT_FDCWD, (root_ + "/named").c_str(), AT_SYMLINK_FOLLOW), 0);
}

TEST_F(ScratchFileTest, TheUmaskChangesNothing) {
  for (const mode_t mask : {0000, 0077, 0777}) {
    const std::string directory = root_ + "/mask" + std::to_string(mask);
    const mode_t before = ::umask(mask);
    if (mask == 0777) fs::create_directory(directory), ::chmod(directory.c_str(), 0700);
    const auto scratch = ScratchFile::create(directory, kMiB);
    ::umask(before);
    ASSERT_TRUE(scratch) << scratch.error().message;
    struct stat found {};
    ASSERT_EQ(::fstat(scratch->descriptor(), &found), 0);
    EXPECT_EQ(found.st_mode & 07777, 0600u);
    EXPECT_EQ(mode_of(directory), 0700u);
  }
}

TEST_F(ScratchFileTest, RefusesUnsafeDirectories) {
  const std::string shared = root_ + "/shared";
  fs::create_directory(shared);
  for (const mode_t mode : {0770, 0702}) {
    ASSERT_EQ(::chmod(shared.c_str(), mode), 0);
    EXPECT_NE(refusal(shared).find("may be written to by others"), std::string::npos) << mode;
    EXPECT_NE(refusal(shared).find(shared + "/kv"), std::string::npos) << refusal(shared);
    EXPECT_EQ(refusal(shared).find("chmod"), std::string::npos) << "others use it";
    EXPECT_EQ(refusal(shared + "/kv"), "accepted") << "what it advises";
    fs::remove(shared + "/kv");
  }
  ASSERT_EQ(::chmod(shared.c_str(), 01777), 0);
  EXPECT_EQ(refusal(shared), "accepted") << "sticky, as /tmp";
  EXPECT_TRUE(fs::is_empty(shared));
  ASSERT_EQ(::chmod(shared.c_str(), 0755), 0);
  EXPECT_EQ(refusal(shared), "accepted");

  fs::create_directory_symlink(shared, root_ + "/link");
  EXPECT_NE(refusal(root_ + "/link").find("symbolic link"), std::string::npos);
  EXPECT_NE(refusal(root_ + "/link//").find("symbolic link"), std::string::npos);

  fs::create_directory(root_ + "/foreign");
  if (::geteuid() == 0) {
    ASSERT_EQ(::chown((root_ + "/foreign").c_str(), 65534, 65534), 0);
    for (const mode_t mode : {0755, 01777}) {
      ASSERT_EQ(::chmod((root_ + "/foreign").c_str(), mode), 0);
      EXPECT_NE(refusal(root_ + "/foreign").find("belongs to user 65534"), std::string::npos);
    }
  }
  for (const std::string& message :
       {refusal(""), refusal("/dev/null"), refusal("/proc/nowhere"), refusal(root_ + "/link")})
    EXPECT_NE(message.find("--kv-dir"), std::string::npos) << message;
}

TEST_F(ScratchFileTest, MakesOneDirectoryAndNoMore) {
  for (const char* end : {"", "//"}) {
    const std::string path = root_ + "/no/such" + end;
    const auto probed = ScratchFile::probe(path);
    ASSERT_FALSE(probed);
    for (const std::string& message : {refusal(path), probed.error().message})
      EXPECT_NE(message.find("there is no " + root_ + "/no to make it in"), std::string::npos)
          << message;
    EXPECT_FALSE(fs::exists(root_ + "/no"));
  }
}

TEST_F(ScratchFileTest, AProbeSaysTheSameAndLeavesNothing) {
  EXPECT_TRUE(ScratchFile::probe(root_ + "/new")) << "could be made";
  EXPECT_TRUE(ScratchFile::probe(root_));
  EXPECT_TRUE(fs::is_empty(root_));
  fs::create_directory_symlink(root_, root_ + "/link");
  for (const std::string& path : {std::string(), root_ + "/link", std::string("/dev/null")}) {
    const auto probed = ScratchFile::probe(path);
    ASSERT_FALSE(probed);
    EXPECT_EQ(probed.error().message, refusal(path));
  }
}

TEST_F(ScratchFileTest, MemoryIsNoDiskAndItSaysSo) {
  struct statfs found {};
  ASSERT_EQ(::statfs(root_.c_str(), &found), 0);
  if (found.f_type != TMPFS_MAGIC) {
    EXPECT_EQ(ScratchFile::create(root_, kMiB)->note().find("memory (tmpfs)"), std::string::npos);
  }
  std::string pattern = "/dev/shm/scratch-XXXXXX";
  if (::statfs("/dev/shm", &found) != 0 || found.f_type != TMPFS_MAGIC ||
      ::mkdtemp(pattern.data()) == nullptr)
    GTEST_SKIP() << "/dev/shm is no tmpfs here";
  const auto scratch = ScratchFile::create(pattern, kMiB);
  const auto probed = ScratchFile::probe(pattern), to_be_made = ScratchFile::probe(pattern + "/x");
  fs::remove_all(pattern);
  ASSERT_TRUE(scratch && probed && to_be_made);
  EXPECT_NE(scratch->note().find("--kv-dir " + pattern + " is in memory (tmpfs)"),
            std::string::npos)
      << scratch->note();
  EXPECT_EQ(*probed, scratch->note());
  EXPECT_NE(to_be_made->find("is in memory"), std::string::npos);
}

TEST_F(ScratchFileTest, TheBudgetIsAPromise) {
  auto scratch = ScratchFile::create(root_, 10 * kPageBytes + 100);
  ASSERT_TRUE(scratch) << scratch.error().message;
  EXPECT_TRUE(take(*scratch, 1));  // a whole page
  EXPECT_EQ(scratch->held_bytes(), kPageBytes);
  EXPECT_TRUE(take(*scratch, 9 * kPageBytes));
  for (const std::uint64_t bytes : {std::uint64_t{1}, std::uint64_t{100}, ~std::uint64_t{0}}) {
    const auto refused = take(*scratch, bytes);
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code, ErrorCode::exhausted);
    EXPECT_NE(refused.error().message.find("--kv-disk"), std::string::npos);
    EXPECT_NE(refused.error().message.find("40 KiB held"), std::string::npos)
        << refused.error().message;
  }
  EXPECT_EQ(scratch->held_bytes(), 10 * kPageBytes);
  EXPECT_FALSE(ScratchFile::create(root_, 0)->take(1));
}

TEST_F(ScratchFileTest, TakesAndGivesLikeAModel) {
  auto scratch = ScratchFile::create(root_, 64 * kMiB);
  ASSERT_TRUE(scratch) << scratch.error().message;
  std::mt19937_64 random(17);
  std::map<std::uint64_t, std::uint64_t> held;  // offset -> bytes as asked
  std::uint64_t sum = 0;
  for (int i = 0; i < 1500; ++i) {
    if (held.empty() || random() % 5 < 3) {
      const std::uint64_t bytes = 1 + random() % (random() % 8 ? 100'000 : 4 * kMiB);
      const auto offset = take(*scratch, bytes);
      if (!offset) {
        ASSERT_EQ(offset.error().code, ErrorCode::exhausted);
        ASSERT_GT(sum + round_up(bytes, kPageBytes), 64 * kMiB) << offset.error().message;
        continue;
      }
      ASSERT_EQ(*offset % kPageBytes, 0u);
      const auto next = held.lower_bound(*offset);
      ASSERT_TRUE(next == held.end() || next->first >= *offset + round_up(bytes, kPageBytes));
      ASSERT_TRUE(next == held.begin() ||
                  std::prev(next)->first + round_up(std::prev(next)->second, kPageBytes) <=
                      *offset);
      held.emplace(*offset, bytes);
      sum += round_up(bytes, kPageBytes);
    } else {
      auto given = held.begin();
      std::advance(given, static_cast<long>(random() % held.size()));
      give(*scratch, given->first, given->second);
      sum -= round_up(given->second, kPageBytes);
      held.erase(given);
    }
    ASSERT_EQ(scratch->held_bytes(), sum);
    // The filesystem's own bookkeeping of a file with many extents is a few blocks.
    if (i % 50 != 0) continue;
    ASSERT_LE(allocated_bytes(*scratch), sum + kMiB / 4);
    ASSERT_GE(allocated_bytes(*scratch), sum);
  }
  for (const auto& [offset, bytes] : held) give(*scratch, offset, bytes);
  EXPECT_EQ(scratch->held_bytes(), 0u);
  EXPECT_LE(allocated_bytes(*scratch), kMiB / 4);
  struct stat found {};
  ASSERT_EQ(::fstat(scratch->descriptor(), &found), 0);
  EXPECT_EQ(found.st_size, 0);
}

TEST_F(ScratchFileTest, KeepsWhatIsWrittenWhileNeighboursComeAndGo) {
  auto scratch = ScratchFile::create(root_, kMiB);
  ASSERT_TRUE(scratch) << scratch.error().message;
  const auto left = take(*scratch, kPageBytes), kept = take(*scratch, kPageBytes),
             right = take(*scratch, kPageBytes), last = take(*scratch, kPageBytes);
  ASSERT_TRUE(left && kept && right && last);
  auto page = Buffer::create(kPageBytes);
  std::ranges::fill(page->bytes(), std::byte{0x77});
  ASSERT_EQ(::pwrite(scratch->descriptor(), page->data(), kPageBytes, static_cast<off_t>(*kept)),
            4096);
  give(*scratch, *left, 1);
  give(*scratch, *right, kPageBytes);
  EXPECT_EQ(take(*scratch, 2 * kPageBytes).value(), *last + kPageBytes);  // no room between
  EXPECT_EQ(take(*scratch, kPageBytes).value(), *left);
  std::ranges::fill(page->bytes(), std::byte{0});
  ASSERT_EQ(::pread(scratch->descriptor(), page->data(), kPageBytes, static_cast<off_t>(*kept)),
            4096);
  EXPECT_EQ(page->data()[kPageBytes - 1], std::byte{0x77});
}

TEST_F(ScratchFileTest, Moves) {
  auto scratch = ScratchFile::create(root_, kMiB);
  ASSERT_TRUE(scratch);
  ASSERT_TRUE(take(*scratch, 5));
  const int descriptor = scratch->descriptor();
  ScratchFile moved = std::move(*scratch);
  EXPECT_EQ(moved.descriptor(), descriptor);
  EXPECT_EQ(moved.held_bytes(), kPageBytes);
  moved = ScratchFile();
  EXPECT_EQ(::fcntl(descriptor, F_GETFD), -1);
}

TEST_F(ScratchFileTest, WrongGivesStopTheProgram) {
  ::testing::FLAGS_gtest_death_test_style = "threadsafe";
  auto scratch = ScratchFile::create(root_, kMiB);
  const auto offset = take(*scratch, 3 * kPageBytes);
  ASSERT_TRUE(offset && take(*scratch, kPageBytes));
  EXPECT_DEATH(give(*scratch, *offset, kMiB), "check failed");
  EXPECT_DEATH(give(*scratch, *offset + 1, 1), "check failed");
  give(*scratch, *offset, 3 * kPageBytes);
  EXPECT_DEATH(give(*scratch, *offset + kPageBytes, 1), "check failed");
}

// A small filesystem of its own, where that is allowed.
class SmallFilesystem {
 public:
  SmallFilesystem(const std::string& at, const char* options) : at_(at) {
    fs::create_directory(at);
    mounted_ = ::mount("tmpfs", at.c_str(), "tmpfs", 0, options) == 0;
    why_ = std::strerror(errno);
  }
  ~SmallFilesystem() {
    if (mounted_) ::umount2(at_.c_str(), MNT_DETACH);
  }
  bool mounted() const { return mounted_; }
  const std::string& why() const { return why_; }

 private:
  std::string at_, why_;
  bool mounted_ = false;
};

TEST_F(ScratchFileTest, ADiskTooSmallForThePlanIsRefusedAtOnce) {
  constexpr PlannedUse kHuge{std::uint64_t{1} << 50, 1000};
  const auto scratch = ScratchFile::create(root_, kMiB, kHuge);
  const auto probed = ScratchFile::probe(root_, kHuge);
  ASSERT_TRUE(!scratch && !probed);
  EXPECT_EQ(scratch.error().code, ErrorCode::exhausted);
  for (const std::string& part : {"--kv-dir " + root_, std::string("1000 positions need 1024 TiB"),
                                  std::string("free, for about"), std::string("lower -c")})
    EXPECT_NE(scratch.error().message.find(part), std::string::npos) << scratch.error().message;
  EXPECT_TRUE(ScratchFile::probe(root_, {kMiB, 1000}));
  EXPECT_TRUE(fs::is_empty(root_));
}

TEST_F(ScratchFileTest, APlanMayTakeAllOfADiskAndNotABytesMore) {
  const std::string directory = root_ + "/small";
  const SmallFilesystem filesystem(directory, "size=1m,mode=0700");
  if (!filesystem.mounted()) GTEST_SKIP() << "mounting a tmpfs: " << filesystem.why();
  EXPECT_TRUE(ScratchFile::probe(directory, {kMiB, 100}));
  EXPECT_FALSE(ScratchFile::probe(directory, {kMiB + 1, 100}));
  const auto half = ScratchFile::probe(directory, {2 * kMiB, 100});
  ASSERT_FALSE(half);
  EXPECT_NE(half.error().message.find("has 1 MiB free, for about 50:"), std::string::npos)
      << half.error().message;
}

TEST_F(ScratchFileTest, AFullDiskIsAnErrorBeforeItIsPromised) {
  const std::string directory = root_ + "/small";
  const SmallFilesystem filesystem(directory, "size=4m,mode=0700");
  if (!filesystem.mounted()) GTEST_SKIP() << "mounting a tmpfs: " << filesystem.why();
  auto scratch = ScratchFile::create(directory, 1024 * kMiB);
  ASSERT_TRUE(scratch) << scratch.error().message;
  std::vector<std::uint64_t> taken;
  Result<std::uint64_t> offset = 0;
  while ((offset = take(*scratch, 300'000)) && taken.size() < 100) taken.push_back(*offset);
  ASSERT_EQ(taken.size(), 13u);
  EXPECT_EQ(offset.error().code, ErrorCode::exhausted);
  for (const char* part : {"296 KiB more is needed", "--kv-dir", "free (ENOSPC", "--kv-disk"})
    EXPECT_NE(offset.error().message.find(part), std::string::npos) << offset.error().message;
  EXPECT_EQ(scratch->held_bytes(), 13 * round_up(300'000, kPageBytes));
  // What was promised can be written, to the last page, although the disk is full.
  auto page = Buffer::create(kPageBytes);
  for (const std::uint64_t extent : taken)
    for (std::uint64_t at = 0; at < round_up(300'000, kPageBytes); at += kPageBytes)
      ASSERT_EQ(::pwrite(scratch->descriptor(), page->data(), kPageBytes,
                         static_cast<off_t>(extent + at)),
                4096);
  // A refusal takes nothing, and what is given back can be had again.
  EXPECT_TRUE(take(*scratch, kPageBytes));
  give(*scratch, taken[4], 300'000);
  EXPECT_EQ(take(*scratch, 300'000).value(), taken[4]);
}

TEST_F(ScratchFileTest, EveryFillPointOfASmallDisk) {
  const std::string directory = root_ + "/small";
  for (int percent = 5; percent <= 100; percent += 5) {
    const SmallFilesystem filesystem(directory + std::to_string(percent), "size=1m,mode=0700");
    if (!filesystem.mounted()) GTEST_SKIP() << "mounting a tmpfs: " << filesystem.why();
    auto scratch = ScratchFile::create(directory + std::to_string(percent), 1024 * kMiB);
    ASSERT_TRUE(scratch) << scratch.error().message;
    const std::uint64_t first = kMiB * static_cast<std::uint64_t>(percent) / 100;
    ASSERT_TRUE(take(*scratch, first));
    const std::uint64_t left = kMiB - round_up(first, kPageBytes);
    const auto refused = take(*scratch, left + kPageBytes);
    ASSERT_FALSE(refused) << percent;
    if (left > 0) {
      EXPECT_TRUE(take(*scratch, left)) << percent;
    }
    EXPECT_FALSE(take(*scratch, 1)) << percent;
  }
}

// Other than a tmpfs, ext4 keeps what it had allocated when it runs out: a refusal must undo that.
TEST_F(ScratchFileTest, ARefusalOfARealDiskTakesNothing) {
  const std::string image = root_ + "/image", directory = root_ + "/disk";
  fs::create_directory(directory);
  const std::string mount = "truncate -s 16M " + image + " && mkfs.ext4 -q -m 0 " + image +
                            " && mount -o loop " + image + " " + directory;
  if (std::system(("(" + mount + ") >/dev/null 2>&1").c_str()) != 0)
    GTEST_SKIP() << "mounting an ext4 image needs root, mkfs.ext4 and a loop device";
  {
    auto scratch = ScratchFile::create(directory, 1024 * kMiB);
    ASSERT_TRUE(scratch) << scratch.error().message;
    EXPECT_TRUE(scratch->direct());
    const auto first = take(*scratch, kMiB);
    ASSERT_TRUE(first);
    const std::uint64_t before = allocated_bytes(*scratch);
    const auto refused = take(*scratch, 64 * kMiB);
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code, ErrorCode::exhausted);
    EXPECT_LE(allocated_bytes(*scratch), before + 64 * 1024);
    EXPECT_EQ(scratch->held_bytes(), kMiB);
    EXPECT_TRUE(take(*scratch, 8 * kMiB));
  }
  EXPECT_EQ(::umount2(directory.c_str(), MNT_DETACH), 0);
}

// The signal would end this program.
TEST_F(ScratchFileTest, AFileSizeLimitIsAnErrorAndNoSignal) {
  auto scratch = ScratchFile::create(root_, 1024 * kMiB);
  ASSERT_TRUE(scratch) << scratch.error().message;
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const rlimit limit{.rlim_cur = kMiB, .rlim_max = before.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &limit), 0);
  const auto fits = take(*scratch, kMiB), refused = take(*scratch, 1);
  const auto planned = ScratchFile::create(root_, 1024 * kMiB, {kMiB, 1000}),
             too_large = ScratchFile::create(root_, 1024 * kMiB, {kMiB + 1, 1000});
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
  EXPECT_TRUE(planned);
  ASSERT_FALSE(too_large);
  EXPECT_NE(too_large.error().message.find("there and RLIMIT_FSIZE is 1 MiB"), std::string::npos)
      << too_large.error().message;
  ASSERT_TRUE(fits && !refused);
  EXPECT_EQ(refused.error().code, ErrorCode::exhausted);
  EXPECT_NE(refused.error().message.find("RLIMIT_FSIZE is 1 MiB"), std::string::npos)
      << refused.error().message;
  EXPECT_EQ(scratch->held_bytes(), kMiB);
  EXPECT_TRUE(take(*scratch, 1));
}

TEST_F(ScratchFileTest, APlaceWhereNothingCanBeMadeIsNamed) {
  std::ofstream(root_ + "/file") << "mine";
  EXPECT_NE(refusal(root_ + "/file/kv").find("/file/kv: could not make it: ENOTDIR"),
            std::string::npos)
      << refusal(root_ + "/file/kv");
  // A process's folder in /proc is its own.
  const std::string own = "/proc/" + std::to_string(::getpid());
  EXPECT_NE(refusal(own).find(own + ": could not create a scratch file: "), std::string::npos)
      << refusal(own);
}

// Of files that refuse what a filesystem may not have.
TEST(Extents, AFileThatCannotReserveSpaceIsRefused) {
  for (const auto& [path, said, code] :
       {std::tuple("/proc/self/comm", "cannot reserve space (fallocate): name another",
                   ErrorCode::unsupported),
        {"/dev/null", "could not reserve 4 KiB (here): ENODEV", ErrorCode::io}}) {
    const Descriptor file(::open(path, O_RDWR | O_CLOEXEC));
    ASSERT_TRUE(file.open()) << path;
    Extents extents(file.number(), "here", 0, kMiB);
    const auto refused = extents.take(kPageBytes);
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code, code);
    EXPECT_NE(refused.error().message.find(said), std::string::npos) << refused.error().message;
    EXPECT_EQ(extents.held_bytes(), 0u);
  }
}

// What was given back in pieces still occupies the disk: more than the budget would.
TEST(Extents, WithoutHolesAFileGrowsNoFurtherThanItsBudget) {
  const Descriptor file(::memfd_create("sealed", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  ASSERT_EQ(::fcntl(file.number(), F_ADD_SEALS, F_SEAL_FUTURE_WRITE), 0);  // none can be made
  Extents extents(file.number(), "here", 0, 4 * kPageBytes);
  std::vector<Space> spaces;
  for (int i = 0; i < 4; ++i) {
    auto space = extents.take(kPageBytes);
    ASSERT_TRUE(space) << space.error().message;
    spaces.push_back(*space);
  }
  extents.give(spaces[0]);
  extents.give(spaces[2]);
  const auto refused = extents.take(2 * kPageBytes);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::exhausted);
  EXPECT_NE(refused.error().message.find("no 8 KiB in one piece"), std::string::npos)
      << refused.error().message;
  EXPECT_EQ(extents.held_bytes(), 2 * kPageBytes);
  EXPECT_TRUE(extents.take(kPageBytes));
  EXPECT_TRUE(extents.take(kPageBytes));
}

TEST_F(ScratchFileTest, DirectWhereTheDirectoryAllowsItElseBuffered) {
  auto scratch = ScratchFile::create(root_, kMiB);
  ASSERT_TRUE(scratch) << scratch.error().message;
  const int flags = ::fcntl(scratch->descriptor(), F_GETFL);
  EXPECT_EQ((flags & O_DIRECT) != 0, scratch->direct());
  // Whatever it says, pages go through.
  const auto offset = take(*scratch, kPageBytes);
  ASSERT_TRUE(offset);
  auto page = Buffer::create(kPageBytes);
  EXPECT_EQ(::pwrite(scratch->descriptor(), page->data(), kPageBytes, static_cast<off_t>(*offset)),
            4096);
}

}  // namespace
}  // namespace thermocline
