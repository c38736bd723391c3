// Pages that are whole and sealed with a checksum, and not the ones that were asked for: another
// place's, or the same place's from before. Each is found when it is read, in the whole reader; and
// reading one again may fail as any read may.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <thread>
#include <vector>

#include "tests/support/stored_rows.h"

namespace thermocline {
namespace {

constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;
constexpr std::uint32_t kRowBytes = 256, kHeads = 2, kRows = 2000;
constexpr std::uint32_t kRowsPerPage = kPageBytes / kRowBytes;
constexpr std::size_t kHeadBytes = kRows * kRowBytes;  // whole pages
static_assert(kHeadBytes % kPageBytes == 0);

class WrongPage : public ::testing::Test {
 protected:
  WrongPage() : stored_(options(), 64 * kMiB) {}
  static PageTableOptions options() {
    PageTableOptions options;
    options.layers = {{{RowFormat::f16, RowFormat::f16, kRowBytes / 2, kRowBytes / 2}, kHeads, 0}};
    options.stores.bytes = {0, 0, 64 * kMiB};
    options.disk_deadline = std::chrono::milliseconds(50);
    return options;
  }
  void store_some() {
    kept_.clear();
    for (int i = 0; i < 3; ++i) kept_.push_back(*stored_.store(random_, 0, kRows, Tier::disk));
  }
  // Any page of what is kept: where it lies, and a list that reads a row of it.
  struct Page {
    std::size_t at = 0;
    Wanted wanted;
  };
  Page any_page() {
    const std::size_t which = random_() % kept_.size();
    const std::uint32_t head = random_() % kHeads, row = random_() % kRows;
    Page page;
    page.wanted = whole(kept_[which], head);
    page.wanted.list.reads[0] = {.run = 0, .first = 0, .last = 1};
    page.wanted.list.picks = {{row / kBlockRows, RowSet{1} << row % kBlockRows}};
    page.at = (which * kHeads + head) * kHeadBytes + row / kRowsPerPage * kPageBytes;
    return page;
  }
  std::span<std::byte> bytes_of(const Page& page) {
    return std::span(stored_.disk()).subspan(page.at, kPageBytes);
  }
  // Whether reading it, once more as well, ends in the error that it has to.
  bool found(const Page& page) {
    Reader reader(stored_.table.get());
    const auto read = read_all(&reader, 0, {&page.wanted, 1}, FoldOrder::any);
    return !read && read.error().code == ErrorCode::corrupt &&
           read.error().message.find("scratch file") != std::string::npos;
  }
  bool right(const Page& page) {
    Reader reader(stored_.table.get());
    const auto read = read_all(&reader, 0, {&page.wanted, 1}, FoldOrder::any);
    return read && (*read)[0] == expected(page.wanted);
  }

  std::mt19937 random_{31};
  StoredRows stored_;
  std::vector<Stored> kept_;
};

TEST_F(WrongPage, OfAnotherPlaceIsFound) {
  store_some();
  int swapped = 0;
  while (swapped < 1000) {
    const Page one = any_page(), other = any_page();
    if (one.at == other.at) continue;
    std::ranges::swap_ranges(bytes_of(one), bytes_of(other));
    ASSERT_TRUE(found(one) && found(other)) << one.at << " and " << other.at;
    std::ranges::swap_ranges(bytes_of(one), bytes_of(other));
    if (swapped % 50 == 0) {
      ASSERT_TRUE(right(one) && right(other));
    }
    ++swapped;
  }
  std::printf("%d pairs of pages swapped, each page found\n", swapped);
}

TEST_F(WrongPage, OfTheSamePlaceFromBeforeIsFound) {
  store_some();
  const std::vector<std::byte> before = stored_.disk();
  store_some();
  ASSERT_EQ(stored_.disk().size(), before.size());
  int stale = 0;
  for (; stale < 1000; ++stale) {
    const Page page = any_page();
    const std::vector<std::byte> now(bytes_of(page).begin(), bytes_of(page).end());
    std::copy_n(before.begin() + static_cast<std::ptrdiff_t>(page.at), kPageBytes,
                bytes_of(page).begin());
    ASSERT_TRUE(found(page)) << page.at;
    std::ranges::copy(now, bytes_of(page).begin());
    if (stale % 50 == 0) {
      ASSERT_TRUE(right(page));
    }
  }
  std::printf("%d stale pages, each found\n", stale);
}

TEST_F(WrongPage, ReadAgainTooSlowlyOrNotAtAllIsAnError) {
  store_some();
  for (const Fault fault : {Fault::delay, Fault::io_error}) {
    const Page page = any_page();
    const ReadRequest request{page.wanted.head, page.wanted.runs, &page.wanted.list};
    Reader reader(stored_.table.get());
    ASSERT_TRUE(reader.start(0, FoldOrder::any));
    ASSERT_TRUE(reader.add({&request, 1}));
    const auto wave = reader.next();
    ASSERT_TRUE(wave && wave->size() == 1);
    FaultPlan plan;
    plan.strike = {fault, 0, true};
    plan.delay = std::chrono::milliseconds(200);
    stored_.faults().set_plan(plan);
    const Status again = reader.read_again((*wave)[0]);
    stored_.faults().set_plan({});
    ASSERT_FALSE(again);
    EXPECT_EQ(again.error().code, ErrorCode::io);
    EXPECT_NE(again.error().message.find(fault == Fault::delay ? "within 50 ms" : "failed twice"),
              std::string::npos)
        << again.error().message;
    if (fault == Fault::delay) std::this_thread::sleep_for(std::chrono::milliseconds(250));
    EXPECT_TRUE(right(page));
  }
}

}  // namespace
}  // namespace thermocline
