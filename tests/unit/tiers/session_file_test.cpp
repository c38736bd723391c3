// What a session's file refuses: places that are none, files that are not this user's, room that is
// not there, extents that were not kept, and names that others took meanwhile.
#include "tiers/store/session_file.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <utility>
#include <vector>

#include "tests/support/temporary_folder.h"
#include "tiers/io/read_fully.h"

namespace thermocline {
namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;

class SessionFileTest : public ::testing::Test {
 protected:
  static std::string refusal(const std::string& path, std::uint64_t budget_bytes = kMiB) {
    const auto opened = SessionFile::open(path, budget_bytes);
    const auto probed = SessionFile::probe(path);
    EXPECT_TRUE(!probed || budget_bytes != kMiB) << "a probe says the same: " << path;
    return opened ? "opened" : opened.error().message;
  }
  static void expect_refusal(const std::string& path, const std::string& part) {
    EXPECT_NE(refusal(path).find(part), std::string::npos) << refusal(path);
  }
  static Status publish(SessionFile* file, std::span<const Extent> extents = {}) {
    return file->publish([](RecordWriter* out) { out->text("held"); }, extents);
  }
  // With an extent of 64 KiB.
  Extent make() const {
    auto file = SessionFile::open(path_, kMiB);
    EXPECT_TRUE(file);
    const auto space = file->take(kMiB / 16);
    EXPECT_TRUE(space);
    const Extent extent{space->offset, space->bytes};
    EXPECT_TRUE(publish(&*file, {&extent, 1}));
    return extent;
  }

  const test::TemporaryFolder temporary_{"session-file"};
  const std::string root_ = temporary_.path(), path_ = root_ + "/s.tls";
};

TEST_F(SessionFileTest, PlacesThatAreNoneAreRefused) {
  expect_refusal("", " names no file");
  expect_refusal(root_ + "/", " names no file");
  expect_refusal(root_ + "/" + std::string(300, 'x'), ": could not be looked at: ENAMETOOLONG");
  expect_refusal(root_ + "/no/s.tls", ": its folder " + root_ + "/no could not be opened: ENOENT");
  EXPECT_TRUE(fs::is_empty(root_));
}

TEST_F(SessionFileTest, FilesThatAreNotThisUsersOwnAreRefused) {
  ASSERT_EQ(::mkfifo(path_.c_str(), 0600), 0);
  expect_refusal(path_, " is not a file");
  fs::remove(path_);
  make();
  ASSERT_EQ(::chmod(path_.c_str(), 0620), 0);
  expect_refusal(path_, "may be written to by others");
  ASSERT_EQ(::chmod(path_.c_str(), 0600), 0);
  if (::geteuid() != 0) GTEST_SKIP() << "only root can give a file away";
  ASSERT_EQ(::chown(path_.c_str(), 65534, 65534), 0);
  expect_refusal(path_, " belongs to user 65534, this process to 0");
}

TEST_F(SessionFileTest, AFileThatMayNotBeWrittenToSaysHowItMay) {
  make();
  ASSERT_EQ(::chmod(path_.c_str(), 0400), 0);
  const bool root = ::geteuid() == 0;  // who may do everything: so another user opens it
  if (root) {
    ASSERT_EQ(::chown(path_.c_str(), 65534, 65534), 0);
    ASSERT_EQ(::chmod(root_.c_str(), 0755), 0);
    ASSERT_EQ(::seteuid(65534), 0);
  }
  expect_refusal(path_, "may not: give yourself the right to read and write it (chmod u+rw)");
  if (root) {
    ASSERT_EQ(::seteuid(0), 0);
  }
}

TEST_F(SessionFileTest, APlaceWhereNothingCanBeMadeIsNamed) {
  expect_refusal("/proc/s.tls", ::geteuid() == 0 ? ": its filesystem has no files without a name"
                                                 : ": could not create it: EACCES");
  // And one where no more files can be opened: the folder is the last.
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &before), 0);
  const int next = ::open("/dev/null", O_RDONLY | O_CLOEXEC);
  ::close(next);
  const rlimit few{.rlim_cur = static_cast<rlim_t>(next) + 1, .rlim_max = before.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &few), 0);
  const auto refused = SessionFile::open(path_, kMiB);
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &before), 0);
  ASSERT_FALSE(refused);
  EXPECT_NE(refused.error().message.find(path_ + ": could not create it: EMFILE"),
            std::string::npos)
      << refused.error().message;
  EXPECT_TRUE(fs::is_empty(root_));
}

TEST_F(SessionFileTest, WhatItHoldsHasToFitItsBudget) {
  make();
  const std::string said = refusal(path_, kMiB / 32);
  EXPECT_NE(said.find("holds more than the 32 KiB of --kv-disk: raise it"), std::string::npos)
      << said;
  EXPECT_TRUE(SessionFile::open(path_, kMiB));
}

TEST_F(SessionFileTest, OnlyWhatWasKeptCanBeClaimedAndOnce) {
  const Extent kept = make();
  auto file = SessionFile::open(path_, kMiB);
  ASSERT_TRUE(file);
  for (const Extent& wrong :
       {Extent{kept.offset + kPageBytes, kPageBytes}, Extent{kept.offset, kPageBytes}}) {
    const auto refused = file->claim(wrong);
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code, ErrorCode::corrupt);
    EXPECT_NE(refused.error().message.find("is left to claim in it"), std::string::npos);
  }
  const std::uint64_t all = file->kept_bytes();
  ASSERT_TRUE(file->claim(kept));
  EXPECT_EQ(file->kept_bytes(), all - kept.bytes);
  EXPECT_FALSE(file->claim(kept));
}

TEST_F(SessionFileTest, ANewOneIsMadeByOneAtATime) {
  auto first = SessionFile::open(path_, kMiB);
  ASSERT_TRUE(first);
  const auto said = [&] {
    const auto opened = SessionFile::open(path_, kMiB);
    return opened ? "opened" : opened.error().message;
  };
  EXPECT_EQ(said(), "--session " + path_ +
                        " is being made by another process: wait for it, or name another");
  EXPECT_TRUE(SessionFile::open(path_ + "2", kMiB)) << "another name";
  ASSERT_TRUE(publish(&*first));
  EXPECT_EQ(said(),
            "--session " + path_ + " is in use by another process: wait for it, or copy the file");
  // Once it has gone, the one that had it is in nobody's way.
  fs::remove(path_);
  auto second = SessionFile::open(path_, kMiB);
  ASSERT_TRUE(second) << second.error().message;
  ASSERT_TRUE(second->stop_keeping());
  EXPECT_TRUE(SessionFile::open(path_, kMiB)) << "it will never have its name";
  EXPECT_TRUE(SessionFile::open(path_, kMiB)) << "nor that one, which is gone";
}

// As by a process that could not be seen.
TEST_F(SessionFileTest, ANameThatAnotherTookMeanwhileStaysTheirs) {
  auto second = SessionFile::open(path_, kMiB);
  ASSERT_TRUE(second);
  auto first = SessionFile::open(path_ + "1", kMiB);
  ASSERT_TRUE(first);
  ASSERT_TRUE(publish(&*first));
  fs::rename(path_ + "1", path_);
  const auto before = fs::file_size(path_);
  for (int i = 0; i < 2; ++i) {
    const Status refused = publish(&*second);
    ASSERT_FALSE(refused);
    EXPECT_NE(refused.error().message.find("another process has made it meanwhile"),
              std::string::npos)
        << refused.error().message;
  }
  EXPECT_EQ(fs::file_size(path_), before);
  first = Result<SessionFile>(SessionFile());
  EXPECT_TRUE(SessionFile::open(path_, kMiB));
}

// Whoever cuts it while it is in use takes what a save would refer to; and what is written behind
// that makes it long again, and not whole.
TEST_F(SessionFileTest, AFileThatIsCutMeanwhileIsSavedInNoMore) {
  for (const bool grows_again : {false, true}) {
    fs::remove(path_);
    make();
    auto file = SessionFile::open(path_, kMiB);
    ASSERT_TRUE(file) << file.error().message;
    const auto space = file->take(kMiB / 8);
    ASSERT_TRUE(space);
    const Extent extent{space->offset, space->bytes};
    ASSERT_TRUE(publish(&*file, {&extent, 1})) << "whole until now";
    fs::resize_file(path_, extent.offset + extent.bytes - 1);
    if (grows_again) {
      ASSERT_TRUE(file->take(kMiB / 4));
      EXPECT_GT(fs::file_size(path_), extent.offset + extent.bytes);
    }
    for (int tries = 0; tries < 2; ++tries) {
      const Status refused = publish(&*file, {&extent, 1});
      ASSERT_FALSE(refused) << grows_again;
      EXPECT_EQ(refused.error().code, ErrorCode::corrupt);
      EXPECT_NE(
          refused.error().message.find(path_ + ": the file was cut short while it was in use"),
          std::string::npos)
          << refused.error().message;
    }
  }
}

// Its rows would be lost to a save: the generation after the last one is 0, which no header wins
// with.
TEST_F(SessionFileTest, AGenerationThatHasNoNextIsRefused) {
  make();
  const auto published = [&] {
    const Descriptor file(::open(path_.c_str(), O_RDONLY | O_CLOEXEC));
    return *read_publication(file.number(), "s");
  }();
  const auto say = [&](std::uint64_t generation) {
    const auto record =
        encode_record([](RecordWriter* out) { out->text("held"); }, published.extents);
    const auto header = encode_header(generation, published.record.offset, record->bytes());
    const Descriptor file(::open(path_.c_str(), O_RDWR | O_CLOEXEC));
    ASSERT_EQ(::pwrite(file.number(), header->data(), kPageBytes,
                       static_cast<off_t>(header_offset(generation))),
              4096);
  };
  say(kMostGenerations);
  {
    auto file = SessionFile::open(path_, kMiB);
    ASSERT_TRUE(file) << file.error().message;
    const Status refused = publish(&*file);
    ASSERT_FALSE(refused);
    EXPECT_NE(refused.error().message.find("was saved 9223372036854775808 times"),
              std::string::npos)
        << refused.error().message;
  }
  EXPECT_TRUE(SessionFile::open(path_, kMiB)) << "what it held is there";
  for (const std::uint64_t generation : {kMostGenerations + 1, ~std::uint64_t{0}}) {
    say(generation);
    expect_refusal(path_, ": field generation says " + std::to_string(generation) + " saves");
  }
}

// A file that goes on needs room for what it does not hold yet, and may take what it does.
TEST_F(SessionFileTest, RoomIsAskedForWhetherItIsNewOrGoesOn) {
  constexpr PlannedUse kHuge{std::uint64_t{1} << 50, 1000};
  const auto said = [&](const PlannedUse& planned) {
    const auto opened = SessionFile::open(path_, kMiB, planned);
    const auto probed = SessionFile::probe(path_, planned);
    EXPECT_EQ(opened ? "" : opened.error().message, probed ? "" : probed.error().message);
    return opened ? std::string() : opened.error().message;
  };
  const auto limited = [&](const PlannedUse& planned) {
    rlimit before{};
    EXPECT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
    const rlimit limit{.rlim_cur = kMiB, .rlim_max = before.rlim_max};
    EXPECT_EQ(::setrlimit(RLIMIT_FSIZE, &limit), 0);
    const std::string message = said(planned);
    EXPECT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
    return message;
  };
  for (const bool goes_on : {false, true}) {
    if (goes_on) make();
    EXPECT_NE(said(kHuge).find("--session " + path_ + ": 1000 positions need 1024 TiB there"),
              std::string::npos)
        << said(kHuge);
    EXPECT_EQ(said(kHuge).find(", of which it holds 76 KiB, and") != std::string::npos, goes_on)
        << said(kHuge);
    EXPECT_EQ(said({kMiB, 1000}), "");
    EXPECT_EQ(limited({kMiB, 1000}), "");
    const std::string refused = limited({kMiB + 1, 1000});
    EXPECT_NE(refused.find("--session " + path_ +
                           ": 1000 positions need 1.00 MiB there and "
                           "RLIMIT_FSIZE is 1 MiB: raise it (ulimit -f), or lower -c"),
              std::string::npos)
        << refused;
  }
}

// All of a filesystem, with what the file has of it.
TEST_F(SessionFileTest, WhatItHoldsIsNotAskedForAgain) {
  const std::string folder = root_ + "/small";
  ASSERT_TRUE(fs::create_directory(folder));
  if (::mount("thermocline", folder.c_str(), "tmpfs", 0, "size=1m,mode=0700") != 0)
    GTEST_SKIP() << "mounting a tmpfs: " << std::strerror(errno);
  const std::string path = folder + "/s.tls";
  {
    auto file = SessionFile::open(path, kMiB);
    if (file) {
      const auto space = file->take(kMiB / 2);
      const Extent extent{space->offset, space->bytes};
      EXPECT_TRUE(publish(&*file, {&extent, 1}));
    } else {
      EXPECT_EQ(file.error().code, ErrorCode::unsupported) << file.error().message;
    }
  }
  if (fs::exists(path)) {
    EXPECT_TRUE(SessionFile::open(path, kMiB, {kMiB, 100}));
    EXPECT_FALSE(SessionFile::open(path, kMiB, {kMiB + 1, 100}));
    EXPECT_FALSE(SessionFile::probe(path, {kMiB + 1, 100}));
  }
  EXPECT_EQ(::umount2(folder.c_str(), MNT_DETACH), 0);
}

TEST(PublicationTest, RefusesWhatIsNoFileAndWhatLiesOverItself) {
  const auto closed = read_publication(-1, "none");
  ASSERT_FALSE(closed);
  EXPECT_NE(closed.error().message.find("none: could not be asked for its size: EBADF"),
            std::string::npos);
  // A whole file, whose record says that it is an extent, too.
  const std::vector<Extent> itself{{kSessionHeaderBytes, kPageBytes}};
  const auto record = encode_record([](RecordWriter* out) { out->text("held"); }, itself);
  ASSERT_TRUE(record);
  const auto header = encode_header(1, kSessionHeaderBytes, record->bytes());
  ASSERT_TRUE(header);
  const Descriptor file(::memfd_create("publication", MFD_CLOEXEC));
  ASSERT_EQ(::pwrite(file.number(), header->data(), kPageBytes, kPageBytes), 4096);
  ASSERT_EQ(::pwrite(file.number(), record->data(), kPageBytes, kSessionHeaderBytes), 4096);
  const auto over = read_publication(file.number(), "over");
  ASSERT_FALSE(over);
  EXPECT_EQ(over.error().code, ErrorCode::corrupt);
  EXPECT_EQ(over.error().message, "over: field extents has one at 8192 over the record itself");
  // And one that goes on for a page that nothing is in.
  const auto short_one = encode_record([](RecordWriter* out) { out->text("held"); }, {});
  ASSERT_TRUE(short_one);
  std::vector<std::byte> longer(short_one->bytes().begin(), short_one->bytes().end());
  longer.resize(2 * kPageBytes);
  const auto next = encode_header(2, kSessionHeaderBytes, longer);
  ASSERT_EQ(::pwrite(file.number(), next->data(), kPageBytes, 0), 4096);
  ASSERT_EQ(::pwrite(file.number(), longer.data(), longer.size(), kSessionHeaderBytes), 8192);
  const auto early = read_publication(file.number(), "early");
  ASSERT_FALSE(early);
  EXPECT_NE(early.error().message.find("early: field manifest ends "), std::string::npos)
      << early.error().message;
  EXPECT_TRUE(check_is_session(file.number(), "over"));
  ASSERT_EQ(::ftruncate(file.number(), 0), 0);
  const Status none = check_is_session(file.number(), "none");
  ASSERT_FALSE(none);
  EXPECT_EQ(none.error().message, "none: it is not a session file: it stays");
}

TEST(ReadFully, SaysWhereAFileEndsAndWhatItCannotRead) {
  const Descriptor file(::memfd_create("read", MFD_CLOEXEC));
  std::vector<std::byte> bytes(100);
  ASSERT_EQ(::pwrite(file.number(), bytes.data(), bytes.size(), 0), 100);
  EXPECT_TRUE(read_fully(file.number(), "file", 0, bytes));
  const Status cut = read_fully(file.number(), "file", 40, bytes);
  ASSERT_FALSE(cut);
  EXPECT_EQ(cut.error().code, ErrorCode::corrupt);
  EXPECT_EQ(cut.error().message, "file: it ends at 100, and 140 was to be read: it was cut short");
  const Descriptor folder(::open("/", O_RDONLY | O_CLOEXEC));
  const Status refused = read_fully(folder.number(), "folder", 0, bytes);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::io);
  EXPECT_NE(refused.error().message.find("folder: reading it failed: EISDIR"), std::string::npos);
}

TEST(ReadFully, KnowsHolesFromWhatIsStored) {
  const Descriptor file(::memfd_create("holes", MFD_CLOEXEC));
  constexpr std::uint64_t kPages = 64;
  ASSERT_EQ(::ftruncate(file.number(), kPages * kPageBytes), 0);
  const std::vector<std::byte> page(kPageBytes, std::byte{1});
  const auto stored = [&](std::uint64_t first, std::uint64_t pages) {
    return check_stored(file.number(), "file", first * kPageBytes, pages * kPageBytes);
  };
  EXPECT_FALSE(stored(0, kPages));
  // Every third page, then every page of the second half.
  for (std::uint64_t p = 0; p < kPages; p += p < kPages / 2 ? 3 : 1)
    ASSERT_EQ(::pwrite(file.number(), page.data(), page.size(), static_cast<off_t>(p * kPageBytes)),
              4096);
  const Status hollow = stored(0, kPages / 2);
  ASSERT_FALSE(hollow);
  EXPECT_EQ(hollow.error().code, ErrorCode::corrupt);
  EXPECT_NE(hollow.error().message.find("of 131072 bytes at 0 only 45056 lie in the file"),
            std::string::npos)
      << hollow.error().message;
  EXPECT_TRUE(stored(kPages / 2, kPages / 2));
  EXPECT_TRUE(stored(0, kPages));
  EXPECT_TRUE(stored(3, 1));
  EXPECT_FALSE(stored(4, 1));
}

}  // namespace
}  // namespace thermocline
