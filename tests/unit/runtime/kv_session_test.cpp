// Timelines that outlive their cache: what goes on from a file is what never stopped, to the bit,
// and what cannot go on says why and breaks nothing.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>
#include <thread>

#include "runtime/kv_cache.h"
#include "tests/support/data_bytes.h"
#include "tests/support/session_parts.h"
#include "tests/support/temporary_folder.h"
#include "tests/support/written_rows.h"
#include "tiers/segment_record.h"

namespace thermocline {
namespace {

namespace fs = std::filesystem;

class KvSession : public ::testing::TestWithParam<const char*> {
 protected:
  CacheOptions options(const std::string& file) const {
    CacheOptions made;
    made.layers = {plain_layer(2, 3, 32, 48, 0), plain_layer(1, 2, 64, 64, 0),
                   plain_layer(2, 1, 32, 32, 100), plain_layer(1, 2, 64, 64, 0)};
    made.method = GetParam();
    made.method_directory = std::string(THERMOCLINE_SOURCE_DIR) + "/configs/methods";
    made.method_overrides = {"steady.recent=32", "steady.seal=64"};
    if (made.method != "exact") made.method_overrides.push_back("select.min_rows=20");
    made.max_positions = 3000;
    made.max_timelines = 3;
    made.session.path = root_ + "/" + file;
    made.session.facts = {{"model", "none, 1"}};
    return made;
  }
  static std::unique_ptr<KvCache> open(const CacheOptions& options) {
    auto cache = KvCache::create(options, 2, "auto");
    EXPECT_TRUE(cache) << (cache ? "" : cache.error().message);
    return cache ? std::move(*cache) : nullptr;
  }
  std::string refusal(const CacheOptions& options) const {
    const auto cache = KvCache::create(options, 1, "auto");
    return cache ? "accepted" : cache.error().message;
  }
  const test::TemporaryFolder temporary_{"session"};
  const std::string root_ = temporary_.path();
};

TEST_P(KvSession, GoesOnAsIfItHadNeverStopped) {
  CacheOptions straight = options("");
  straight.session.path.clear();
  const auto reference = open(straight);
  ASSERT_TRUE(reference);
  Timeline never = std::move(*reference->start());
  CacheOptions again = options("s.tls");
  std::mt19937_64 random(5);
  std::uint64_t read = 0;
  for (int stop = 0; stop < 8; ++stop) {
    // Everything cached, nothing, or what is left.
    again.tiers.host_bytes = kAutoBytes;
    if (stop % 2 == 1) {
      const auto plan = KvCache::plan(again);
      ASSERT_TRUE(plan) << plan.error().message;
      again.tiers.host_bytes = 0;
      for (const MemoryLine& line : plan->lines)
        if (line.tier == "host" && line.purpose != "row_cache")
          again.tiers.host_bytes += line.bytes;
    }
    const auto cache = open(again);
    ASSERT_TRUE(cache);
    Timeline timeline;
    if (stop == 0) {
      EXPECT_EQ(cache->saved(), nullptr);
      EXPECT_EQ(cache->resume().error().code, ErrorCode::not_found);
      timeline = std::move(*cache->start());
    } else {
      ASSERT_NE(cache->saved(), nullptr);
      EXPECT_EQ(cache->saved()->sampler, std::to_string(never.length()));
      EXPECT_EQ(cache->saved()->logits.size(), 2u);
      EXPECT_EQ(cache->saved()->note, "by the caller");
      auto resumed = cache->resume();
      ASSERT_TRUE(resumed) << resumed.error().message;
      timeline = std::move(*resumed);
      EXPECT_EQ(cache->saved(), nullptr);
    }
    ASSERT_EQ(timeline.length(), never.length());
    for (int step = 0; step < 4; ++step) {
      const bool decodes = step % 2 == 1 && never.length() > 0;
      const auto rows = static_cast<std::uint32_t>(decodes ? 1 + random() % 4 : 1 + random() % 150);
      const Pass pass = decodes ? Pass::decode : Pass::prefill;
      const auto one = advance(cache.get(), timeline, rows, pass);
      const auto other = advance(reference.get(), never, rows, pass);
      ASSERT_TRUE(one) << one.error().message;
      ASSERT_TRUE(other) << other.error().message;
      ASSERT_EQ(*one, *other) << "after stop " << stop;
    }
    if (stop == 5) {  // back to where a sliding window still reaches
      const std::uint32_t cut = never.length() - 5;
      ASSERT_TRUE(never.truncate(cut));
      ASSERT_TRUE(timeline.truncate(cut));
    }
    const Status saved = cache->save(timeline, session_text(timeline.length()));
    ASSERT_TRUE(saved) << saved.error().message;
    read += cache->report().disk_bytes_read;
  }
  EXPECT_GT(never.length(), 600u);
  EXPECT_GT(read, 0u);
}

// What is sealed then is of no file that anyone finds, and is read as ever.
TEST_P(KvSession, ALeftSessionStaysAsItWasSaved) {
  CacheOptions straight = options("");
  straight.session.path.clear();
  const auto reference = open(straight), cache = open(options("s.tls"));
  ASSERT_TRUE(reference && cache);
  EXPECT_FALSE(reference->leave_session());
  Timeline never = std::move(*reference->start()), timeline = std::move(*cache->start());
  const auto go_on = [&](std::uint32_t rows, Pass pass) {
    const auto one = advance(cache.get(), timeline, rows, pass);
    const auto other = advance(reference.get(), never, rows, pass);
    ASSERT_TRUE(one && other);
    ASSERT_EQ(*one, *other) << "at " << timeline.length();
  };
  const std::string file = root_ + "/s.tls";
  const auto on_disk = [&] {
    struct stat found {};
    EXPECT_EQ(::stat(file.c_str(), &found), 0);
    return std::pair(found.st_size, found.st_blocks);
  };
  go_on(700, Pass::prefill);
  ASSERT_TRUE(cache->save(timeline, session_text(700)));
  const auto as_saved = on_disk();
  const std::uint64_t held = cache->usage().total("disk");
  ASSERT_TRUE(cache->leave_session());
  ASSERT_TRUE(cache->leave_session());  // as often as one likes
  go_on(500, Pass::prefill);
  for (int step = 0; step < 70; ++step) go_on(1, Pass::decode);
  EXPECT_GT(cache->usage().total("disk"), held);
  EXPECT_EQ(on_disk(), as_saved);
  EXPECT_EQ(cache->save(timeline, session_text(timeline.length())).error().code,
            ErrorCode::invalid_argument);
  ASSERT_TRUE(never.truncate(never.length() - 5));
  ASSERT_TRUE(timeline.truncate(timeline.length() - 5));
  go_on(100, Pass::prefill);
  const auto verified = verify_session(file);
  ASSERT_TRUE(verified);
  EXPECT_TRUE(verified->damage.empty());
  EXPECT_EQ(read_session(file)->held.positions, 700u);
}

// Each save writes the tail, the text and where everything is, and no sealed row.
TEST_P(KvSession, SavingRewritesNoSealedRow) {
  const auto cache = open(options("s.tls"));
  ASSERT_TRUE(cache);
  Timeline timeline = std::move(*cache->start());
  ASSERT_TRUE(advance(cache.get(), timeline, 1500, Pass::prefill));
  const std::uint64_t sealed = cache->report().disk_bytes_written;
  EXPECT_FALSE(fs::exists(root_ + "/s.tls")) << "it has no name yet";
  std::uint64_t tail_bytes = 0;
  for (const MemoryLine& line : cache->usage().lines)
    if (line.purpose == "tail") tail_bytes += line.bytes;
  for (int i = 0; i < 3; ++i) {
    const std::uint64_t before = cache->report().disk_bytes_written;
    ASSERT_TRUE(cache->save(timeline, session_text(1500)));
    EXPECT_GT(cache->report().disk_bytes_written, before);
    EXPECT_LT(cache->report().disk_bytes_written - before, tail_bytes + (64u << 10));
  }
  EXPECT_GT(sealed, tail_bytes);
  struct stat found {};
  ASSERT_EQ(::stat((root_ + "/s.tls").c_str(), &found), 0);
  EXPECT_EQ(found.st_mode & 07777, 0600u);
  // What earlier saves wrote is free again.
  const std::uint64_t held = test::data_bytes(root_ + "/s.tls");
  EXPECT_GT(held, sealed);
  for (int i = 0; i < 20; ++i) ASSERT_TRUE(cache->save(timeline, session_text(1500)));
  EXPECT_EQ(test::data_bytes(root_ + "/s.tls"), held);
}

TEST_P(KvSession, ForksAndCutsLeaveWhatIsSavedWhole) {
  std::vector<float> due;
  {
    const auto cache = open(options("s.tls"));
    ASSERT_TRUE(cache);
    Timeline timeline = std::move(*cache->start());
    ASSERT_TRUE(advance(cache.get(), timeline, 900, Pass::prefill));
    ASSERT_TRUE(cache->save(timeline, session_text(900)));
    Timeline branch = std::move(*timeline.fork());
    due = *advance(cache.get(), branch, 2, Pass::decode);
    // The one that was saved goes, and others write where it was, if they may.
    timeline = Timeline();
    branch = Timeline();
    Timeline other = std::move(*cache->start());
    ASSERT_TRUE(advance(cache.get(), other, 1200, Pass::prefill, 2));
  }
  const auto cache = open(options("s.tls"));
  ASSERT_TRUE(cache);
  auto resumed = cache->resume();
  ASSERT_TRUE(resumed) << resumed.error().message;
  Timeline branch = std::move(*resumed->fork());
  EXPECT_EQ(*advance(cache.get(), branch, 2, Pass::decode), due);
  // The fork is as good a session.
  ASSERT_TRUE(cache->save(branch, session_text(902)));
  EXPECT_EQ(*advance(cache.get(), *resumed, 2, Pass::decode), due);
}

TEST_P(KvSession, WhatDoesNotFitIsRefusedWithItsReason) {
  {
    const auto cache = open(options("s.tls"));
    ASSERT_TRUE(cache);
    Timeline timeline = std::move(*cache->start());
    ASSERT_TRUE(advance(cache.get(), timeline, 700, Pass::prefill));
    ASSERT_TRUE(cache->save(timeline, session_text(701)));
    EXPECT_FALSE(cache->save(timeline, session_text(699))) << "fewer tokens than positions";
    EXPECT_FALSE(cache->save(Timeline(), session_text(0)));
    EXPECT_NE(refusal(options("s.tls")).find("in use by another process"), std::string::npos)
        << refusal(options("s.tls"));
  }
  const auto expect = [&](const CacheOptions& other, const std::string& part) {
    EXPECT_NE(refusal(other).find(part), std::string::npos) << refusal(other);
    EXPECT_NE(refusal(other).find("s.tls"), std::string::npos) << refusal(other);
  };
  CacheOptions other = options("s.tls");
  other.session.facts = {{"model", "none, 2"}};
  expect(other, "is of model none, 1, and this run's is none, 2");
  other.session.facts.push_back({"tokenizer", "x"});
  other.session.facts[0].value = "none, 1";
  expect(other, "does not say its tokenizer");
  other = options("s.tls");
  other.layers[1].key_dim = 32;
  other.layers[1].rope.inverse_frequency.resize(16);
  other.layers[1].query_powers.clear();
  expect(other, "is of layers");
  other = options("s.tls");
  other.layers[1].rope.inverse_frequency[3] *= 1.5f;
  expect(other, "is of rotation");
  other = options("s.tls");
  other.method_overrides[0] = "steady.recent=33";
  expect(other, "steady.recent=33");
  other = options("s.tls");
  other.tiers.disk_bytes = 4096;
  EXPECT_NE(refusal(other).find("--kv-disk"), std::string::npos) << refusal(other);
  other = options("s.tls");
  other.max_positions = 600;
  const auto small = open(other);
  ASSERT_TRUE(small);
  const auto resumed = small->resume();
  ASSERT_FALSE(resumed);
  EXPECT_NE(resumed.error().message.find("700 positions"), std::string::npos);
}

TEST_P(KvSession, ForeignFilesAreRefusedAndStayAsTheyAre) {
  const auto expect = [&](const std::string& part) {
    EXPECT_NE(refusal(options("x")).find(part), std::string::npos) << refusal(options("x"));
  };
  const std::string path = root_ + "/x";
  std::ofstream(path) << "";
  ::chmod(path.c_str(), 0600);
  expect("it is empty");
  std::ofstream(path) << std::string(10'000, 'x');
  expect("not a session file");
  EXPECT_EQ(fs::file_size(path), 10'000u);
  ::chmod(path.c_str(), 0666);
  expect("may be written to by others");
  fs::remove(path);
  fs::create_directory(path);
  expect(root_ + "/x");
  fs::remove(path);
  fs::create_symlink(root_ + "/y", path);
  expect("symbolic link");
  fs::remove(path);
  CacheOptions nowhere = options("no/such/folder");
  EXPECT_NE(refusal(nowhere).find("its folder"), std::string::npos) << refusal(nowhere);
}

// Nothing is taken for a save that was not planned and has no room: the file and the timeline stay.
TEST_P(KvSession, ASaveThatDoesNotFitIsRefusedBeforeItIsMade) {
  CacheOptions tight = options("s.tls");
  const auto plan = KvCache::plan(tight);
  ASSERT_TRUE(plan) << plan.error().message;
  SessionText long_note = session_text(900);
  long_note.note.assign(std::size_t{16} << 20, 'x');
  for (const std::string tier : {"host", "disk"}) {
    fs::remove(tight.session.path);
    tight.tiers.host_bytes = kAutoBytes;
    tight.tiers.disk_bytes = plan->total("disk");
    if (tier == "host") {
      tight.tiers.disk_bytes = 0;
      tight.tiers.host_bytes = 0;
      for (const MemoryLine& line : plan->lines)
        if (line.tier == "host" && line.purpose != "row_cache")
          tight.tiers.host_bytes += line.bytes;
    }
    const auto cache = open(tight);
    ASSERT_TRUE(cache);
    Timeline timeline = std::move(*cache->start());
    ASSERT_TRUE(advance(cache.get(), timeline, 900, Pass::prefill));
    ASSERT_TRUE(cache->save(timeline, session_text(900)));
    const MemoryPlan held = cache->usage();
    const Status refused = cache->save(timeline, long_note);
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code, ErrorCode::exhausted);
    for (const std::string& part : {std::string("needs 16"), "raise --kv-" + tier})
      EXPECT_NE(refused.error().message.find(part), std::string::npos) << refused.error().message;
    for (const char* one : {"host", "disk"})
      EXPECT_EQ(cache->usage().total(one), held.total(one)) << one;
    EXPECT_TRUE(cache->save(timeline, session_text(900)));
    EXPECT_TRUE(advance(cache.get(), timeline, 1, Pass::decode));
  }
}

// Whatever is wrong with a file: refused with its name, or harmless.
TEST_P(KvSession, ADamagedFileIsRefusedOrHarmless) {
  constexpr std::uint32_t kRows = 500;
  std::vector<float> due;
  {
    const auto cache = open(options("s.tls"));
    ASSERT_TRUE(cache);
    Timeline timeline = std::move(*cache->start());
    ASSERT_TRUE(advance(cache.get(), timeline, kRows, Pass::prefill));
    ASSERT_TRUE(cache->save(timeline, session_text(kRows)));
    due = *advance(cache.get(), timeline, 1, Pass::decode);
  }
  std::ifstream in(root_ + "/s.tls", std::ios::binary);
  const std::string sound((std::istreambuf_iterator<char>(in)), {});
  CacheOptions damaged = options("d.tls");
  std::mt19937_64 random(11);
  int refused = 0, harmless = 0;
  for (int i = 0; i < 150; ++i) {
    std::string bytes = sound;
    if (i % 3 == 0) {
      bytes.resize(random() % sound.size());
    } else {
      for (int flips = 0; flips <= i % 3; ++flips)
        bytes[random() % bytes.size()] ^= static_cast<char>(1 << random() % 8);
    }
    fs::remove(root_ + "/d.tls");
    std::ofstream(root_ + "/d.tls", std::ios::binary) << bytes;
    ::chmod((root_ + "/d.tls").c_str(), 0600);
    const auto outcome = [&]() -> Result<std::vector<float>> {
      TL_TRY_ASSIGN(const auto cache, KvCache::create(damaged, 1, "auto"));
      // A timeline that was there before goes on, whatever becomes of the file's.
      TL_TRY_ASSIGN(const Timeline running, cache->start());
      TL_TRY_ASSIGN(const auto before, advance(cache.get(), running, 100, Pass::prefill, 3));
      const auto resumed = cache->resume();
      EXPECT_TRUE(advance(cache.get(), running, 100, Pass::prefill, 3));
      if (!resumed) return tl::unexpected(resumed.error());
      return advance(cache.get(), *resumed, 1, Pass::decode);
    }();
    if (outcome) {
      ++harmless;
      ASSERT_EQ(*outcome, due) << i;
    } else {
      ++refused;
      ASSERT_NE(outcome.error().message.find("d.tls"), std::string::npos)
          << outcome.error().message;
    }
  }
  EXPECT_GT(refused, 100);
  RecordProperty("harmless", harmless);
}

// What a step writes to follows from where a tail begins: a file whose checksums fit is refused all
// the same, where rows cannot lie as it says.
TEST_P(KvSession, ATailThatCannotBeIsRefused) {
  {
    const auto cache = open(options("s.tls"));
    ASSERT_TRUE(cache);
    Timeline timeline = std::move(*cache->start());
    ASSERT_TRUE(advance(cache.get(), timeline, 300, Pass::prefill));
    ASSERT_TRUE(cache->save(timeline, session_text(300)));
  }
  const auto sound = test::SessionParts::read(root_ + "/s.tls");
  const CacheOptions changed = options("c.tls");
  struct Case {
    std::uint32_t length, layer, tail_first;
  };
  // Beyond the end of no rows, of sinks alone and of more; within them, off the grid that the
  // method seals on; in a window that the next query would miss rows of.
  for (const Case& one : {Case{0, 0, 5}, Case{0, 0, 4'000'000'000}, Case{3, 1, 5}, Case{4, 0, 68},
                          Case{0, 2, 1}, Case{50, 2, 51}, Case{99, 2, 1}, Case{60, 0, 10}}) {
    test::SessionParts parts = sound;
    parts.manifest.length = one.length;
    for (std::uint32_t l = 0; l < 3; ++l) {
      SessionManifest::Layer& layer = parts.manifest.layers[l];
      const std::uint32_t sinks = l == 2 ? 0 : 4;
      layer.tail_first = l == one.layer ? one.tail_first : sinks;
      layer.runs.clear();
      const std::size_t row_bytes = layer.sinks.size() / 4;
      const std::uint32_t tail = one.length > layer.tail_first ? one.length - layer.tail_first : 0;
      layer.tail.resize(tail * (l == 2 ? 2 * 64 * 2 : row_bytes));
      layer.sinks.resize(std::min(one.length, sinks) * row_bytes);
    }
    parts.write(changed.session.path);
    const auto cache = open(changed);
    ASSERT_TRUE(cache);
    const auto resumed = cache->resume();
    ASSERT_FALSE(resumed) << one.length << " " << one.tail_first;
    EXPECT_NE(resumed.error().message.find("c.tls: layer " + std::to_string(one.layer) +
                                           " has a tail from " + std::to_string(one.tail_first) +
                                           " in a timeline of " + std::to_string(one.length)),
              std::string::npos)
        << resumed.error().message;
  }
}

// A file may be of any size and hold nothing: what it claims to hold takes no memory.
TEST_P(KvSession, AHoleIsNotTakenForContent) {
  const CacheOptions sound = options("s.tls");
  {
    const auto cache = open(sound);
    ASSERT_TRUE(cache);
    Timeline timeline = std::move(*cache->start());
    ASSERT_TRUE(advance(cache.get(), timeline, 700, Pass::prefill));
    ASSERT_TRUE(cache->save(timeline, session_text(700)));
  }
  const auto parts = test::SessionParts::read(sound.session.path);
  const auto punch = [](const std::string& path, const Extent& extent) {
    const int file = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
    EXPECT_EQ(::fallocate(file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                          static_cast<off_t>(extent.offset), static_cast<off_t>(extent.bytes)),
              0);
    ::close(file);
  };
  // The publication's record: all of it, with a checksum that fits.
  const CacheOptions hollow = options("h.tls");
  constexpr std::size_t kClaimed = std::size_t{64} << 20;
  void* const zeros =
      ::mmap(nullptr, kClaimed, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  ASSERT_NE(zeros, MAP_FAILED);
  const auto header = encode_header(2, kSessionHeaderBytes,
                                    std::span(static_cast<const std::byte*>(zeros), kClaimed));
  ::munmap(zeros, kClaimed);
  ASSERT_TRUE(header);
  std::ofstream(hollow.session.path, std::ios::binary)
      .write(reinterpret_cast<const char*>(header->data()),
             static_cast<std::streamsize>(header->size()));
  ::chmod(hollow.session.path.c_str(), 0600);
  fs::resize_file(hollow.session.path, kSessionHeaderBytes + kClaimed);
  const std::string hole = "of 67108864 bytes at 8192 only 0 lie in the file";
  EXPECT_NE(refusal(hollow).find(hole), std::string::npos) << refusal(hollow);
  const auto read = read_session(hollow.session.path);
  ASSERT_FALSE(read);
  EXPECT_EQ(read.error().code, ErrorCode::corrupt);
  EXPECT_NE(read.error().message.find(hole), std::string::npos) << read.error().message;
  // A segment's record, and its rows: verifying says it of each, and goes on.
  const PageTable::Record& record = parts.manifest.layers[0].runs[0];
  const auto segment =
      SegmentRecord::decode(std::span(parts.bytes).subspan(record.offset, record.bytes), "record");
  ASSERT_TRUE(segment);
  for (const Extent& extent : {segment->rows, Extent{record.offset, record.bytes}}) {
    parts.write(hollow.session.path);
    const auto before = verify_session(hollow.session.path);
    ASSERT_TRUE(before);
    EXPECT_TRUE(before->damage.empty());
    punch(hollow.session.path, extent);
    const auto found = verify_session(hollow.session.path);
    ASSERT_TRUE(found) << found.error().message;
    ASSERT_EQ(found->damage.size(), 1u);
    EXPECT_NE(found->damage[0].find(" only 0 lie in the file"), std::string::npos)
        << found->damage[0];
    EXPECT_LT(found->pages, before->pages);
  }
}

TEST_P(KvSession, VerifyingOneThatIsSavedMeanwhileSaysSo) {
  const auto cache = open(options("s.tls"));
  ASSERT_TRUE(cache);
  Timeline timeline = std::move(*cache->start());
  ASSERT_TRUE(advance(cache.get(), timeline, 1200, Pass::prefill));
  ASSERT_TRUE(cache->save(timeline, session_text(1200)));
  int asked = 0;
  const auto found = verify_session(root_ + "/s.tls", [&] {
    if (asked++ > 0) return false;
    // Another text in its place, so that nothing of the first is left.
    timeline = Timeline();
    timeline = std::move(*cache->start());
    EXPECT_TRUE(cache->save(timeline, session_text(0)));
    return false;
  });
  ASSERT_FALSE(found);
  EXPECT_NE(found.error().message.find("has saved it while it was read"), std::string::npos)
      << found.error().message;
  const auto again = verify_session(root_ + "/s.tls");
  ASSERT_TRUE(again);
  EXPECT_TRUE(again->damage.empty());
}

// Of a file without a name nobody would ever find what was saved in it.
TEST_P(KvSession, AFileThatWasRemovedOrReplacedIsSavedInNoMore) {
  const std::string path = root_ + "/s.tls";
  for (const bool replaced : {false, true}) {
    const auto cache = open(options("s.tls"));
    ASSERT_TRUE(cache);
    Timeline timeline = std::move(*cache->start());
    ASSERT_TRUE(advance(cache.get(), timeline, 300, Pass::prefill));
    ASSERT_TRUE(cache->save(timeline, session_text(300)));
    ASSERT_TRUE(fs::remove(path));
    if (replaced) std::ofstream(path) << "mine";
    const Status refused = cache->save(timeline, session_text(300));
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code, ErrorCode::not_found);
    EXPECT_NE(refused.error().message.find("removed or replaced"), std::string::npos);
    EXPECT_EQ(fs::exists(path), replaced);
    EXPECT_TRUE(advance(cache.get(), timeline, 2, Pass::decode));
  }
  EXPECT_EQ(fs::file_size(path), 4u);
}

// What the last save wrote of text and tail is cut off, and none of the rows: the timeline goes on.
TEST_P(KvSession, AFileThatIsCutShortIsSavedInNoMore) {
  const std::string path = root_ + "/s.tls";
  const auto cache = open(options("s.tls"));
  ASSERT_TRUE(cache);
  Timeline timeline = std::move(*cache->start());
  ASSERT_TRUE(advance(cache.get(), timeline, 600, Pass::prefill));
  ASSERT_TRUE(cache->save(timeline, session_text(600)));
  fs::resize_file(path, fs::file_size(path) - kPageBytes);
  for (std::uint32_t length = 600; length < 800; length += 100) {
    const Status refused = cache->save(timeline, session_text(length));
    ASSERT_FALSE(refused) << length;
    EXPECT_NE(refused.error().message.find("cut short while it was in use"), std::string::npos)
        << refused.error().message;
    EXPECT_EQ(timeline.length(), length);
    ASSERT_TRUE(advance(cache.get(), timeline, 100, Pass::prefill));
  }
}

// Whoever had the file when it was asked for may have removed it when it lets go: a new one is
// begun then, and not the one that nobody finds any more.
TEST_P(KvSession, AFileThatIsRemovedByWhoHadItIsBegunAnew) {
  const std::string path = root_ + "/s.tls";
  {
    const auto cache = open(options("s.tls"));
    ASSERT_TRUE(cache);
    Timeline timeline = std::move(*cache->start());
    ASSERT_TRUE(cache->save(timeline, session_text(0)));
  }
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  ASSERT_EQ(::flock(file, LOCK_EX), 0);
  std::thread other([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(60));
    fs::remove(path);
    ::close(file);
  });
  const auto cache = open(options("s.tls"));
  other.join();
  ASSERT_TRUE(cache);
  EXPECT_EQ(cache->saved(), nullptr);
  Timeline timeline = std::move(*cache->start());
  ASSERT_TRUE(cache->save(timeline, session_text(0)));
  EXPECT_TRUE(fs::exists(path));
}

// A process that has just ended may have it for some milliseconds.
TEST_P(KvSession, RemovingWaitsALittleForAnother) {
  const std::string path = root_ + "/s.tls";
  {
    const auto cache = open(options("s.tls"));
    ASSERT_TRUE(cache);
    Timeline timeline = std::move(*cache->start());
    ASSERT_TRUE(cache->save(timeline, session_text(0)));
    const Status removed = remove_session(path);
    ASSERT_FALSE(removed);
    EXPECT_NE(removed.error().message.find("in use by another process"), std::string::npos);
  }
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  ASSERT_EQ(::flock(file, LOCK_EX), 0);
  std::thread other([file] {
    std::this_thread::sleep_for(std::chrono::milliseconds(60));
    ::close(file);
  });
  EXPECT_TRUE(remove_session(path));
  other.join();
  EXPECT_FALSE(fs::exists(path));
}

// Only what another cache takes is read back: a text that is resumed alone needs no room for that.
TEST_P(KvSession, ATextThatGoesNowhereIsPlannedNoLargerThanOneThatGoesOn) {
  const CacheOptions written = options("s.tls");
  {
    const auto cache = open(written);
    ASSERT_TRUE(cache);
    const Timeline timeline = std::move(*cache->start());
    ASSERT_TRUE(advance(cache.get(), timeline, 2000, Pass::prefill));
    ASSERT_TRUE(cache->save(timeline, session_text(2000)));
  }
  const auto saved = read_session(written.session.path);
  ASSERT_TRUE(saved) << saved.error().message;
  const auto sealing = [&](std::uint32_t positions, bool is_copied) {
    CacheOptions again = written;
    again.max_positions = positions;
    again.course = Course{.resumed = saved->held, .is_copied = is_copied};
    const auto plan = KvCache::plan(again, 2);
    EXPECT_TRUE(plan) << plan.error().message;
    std::uint64_t bytes = 0;
    for (const MemoryLine& line : plan->lines)
      if (line.purpose == "sealing") bytes += line.bytes;
    return bytes;
  };
  EXPECT_LE(sealing(2000, false), sealing(2001, false));
  EXPECT_GT(sealing(2000, true), sealing(2000, false));
}

INSTANTIATE_TEST_SUITE_P(Methods, KvSession,
                         ::testing::Values("exact", "sketch", "oracle_estimate", "ladder2", "xkv"),
                         [](const auto& method) { return std::string(method.param); });

// Layers that share a selection, which names segments by number: a file whose layers are cut apart
// is of no use to them, whatever it says of its method.
TEST(KvSessionShared, LayersThatAreCutApartAreRefused) {
  const test::TemporaryFolder temporary("session");
  const auto options = [&](const std::string& file, bool share) {
    CacheOptions made;
    made.layers.assign(3, plain_layer(2, 3, 32, 48));
    made.method = "tidaldecode";
    made.method_directory = std::string(THERMOCLINE_SOURCE_DIR) + "/configs/methods";
    made.method_overrides = {"steady.sink=4",         "steady.recent=16",
                             "steady.seal=64",        "steady.join=4",
                             "select.choose_in=0",    "select.choose_again_in=0",
                             "select.dense_layers=0", "select.min_rows=20"};
    if (!share) made.method_overrides.push_back("select.layers=each");
    made.max_positions = 600;
    made.session.path = temporary.path() + "/" + file;
    return made;
  };
  // Each layer by itself: the first has its turn at joining before the others do.
  for (const bool share : {true, false}) {
    const auto cache = KvCache::create(options(share ? "shared" : "apart", share), 2, "auto");
    ASSERT_TRUE(cache) << cache.error().message;
    const auto timeline = (*cache)->start();
    ASSERT_TRUE(timeline);
    constexpr std::uint32_t kLength = 4 + 16 + 4 * 64 + 1;
    for (std::uint32_t i = 0; i < kLength; ++i)
      ASSERT_TRUE(advance(cache->get(), *timeline, 1, Pass::decode));
    ASSERT_TRUE((*cache)->save(*timeline, session_text(kLength)));
  }
  const auto shared = test::SessionParts::read(temporary.path() + "/shared");
  auto apart = test::SessionParts::read(temporary.path() + "/apart");
  ASSERT_NE(apart.manifest.layers[0].runs.size(), apart.manifest.layers[1].runs.size());
  apart.manifest.facts = shared.manifest.facts;
  apart.manifest.method = shared.manifest.method;
  apart.write(temporary.path() + "/mixed");
  const auto cache = KvCache::create(options("mixed", true), 2, "auto");
  ASSERT_TRUE(cache) << cache.error().message;
  const auto resumed = (*cache)->resume();
  ASSERT_FALSE(resumed);
  EXPECT_EQ(resumed.error().code, ErrorCode::corrupt);
  EXPECT_NE(resumed.error().message.find("is cut into other segments than layer 0"),
            std::string::npos)
      << resumed.error().message;
}

}  // namespace
}  // namespace thermocline
