#include "tiers/io/checksum.h"

#include <gtest/gtest.h>

#include <random>
#include <set>
#include <vector>

#include "kernels/base/buffer.h"

namespace thermocline {
namespace {

std::vector<std::byte> random_page(std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<std::byte> page(kPageBytes);
  for (auto& byte : page) byte = static_cast<std::byte>(random());
  return page;
}

TEST(PageChecksum, SeesTenThousandFlippedBits) {
  auto page = random_page(1);
  std::mt19937_64 random(2);
  const std::uint64_t good = page_checksum(page, 42);
  for (int i = 0; i < 10'000; ++i) {
    const std::size_t bit = random() % (8 * kPageBytes);
    page[bit / 8] ^= std::byte{1} << (bit % 8);
    ASSERT_NE(page_checksum(page, 42), good) << "bit " << bit;
    page[bit / 8] ^= std::byte{1} << (bit % 8);
  }
  EXPECT_EQ(page_checksum(page, 42), good);
}

TEST(PageChecksum, SeesEverySingleBitOfAnEmptyPage) {
  std::vector<std::byte> page(kPageBytes);
  std::set<std::uint64_t> seen = {page_checksum(page, 0)};
  for (std::size_t bit = 0; bit < 8 * kPageBytes; ++bit) {
    page[bit / 8] ^= std::byte{1} << (bit % 8);
    ASSERT_TRUE(seen.insert(page_checksum(page, 0)).second) << "bit " << bit;
    page[bit / 8] ^= std::byte{1} << (bit % 8);
  }
}

TEST(PageChecksum, TheSamePageElsewhereOrEarlierDiffers) {
  for (const auto& page : {random_page(3), std::vector<std::byte>(kPageBytes)}) {
    std::set<std::uint64_t> seen;
    for (std::uint64_t place = 0; place < 1000; ++place)
      for (std::uint64_t version = 0; version < 10; ++version)
        EXPECT_TRUE(seen.insert(page_checksum(page, place << 32 | version)).second);
  }
}

TEST(PageChecksum, TornPagesFail) {
  const auto older = random_page(4), newer = random_page(5);
  const std::uint64_t good = page_checksum(newer, 7);
  for (std::size_t written = 0; written < kPageBytes; written += 512) {
    auto torn = older;
    std::copy_n(newer.begin(), written, torn.begin());
    EXPECT_NE(page_checksum(torn, 7), good) << written;
  }
}

// Pinned: a page written by one machine is read by another, whatever instruction set they choose.
TEST(PageChecksum, IsTheSameEverywhere) {
  std::vector<std::byte> page(kPageBytes);
  for (std::size_t i = 0; i < kPageBytes; ++i) page[i] = static_cast<std::byte>(i * 131);
  EXPECT_EQ(page_checksum(page, 0x0123456789abcdefull), 0xd4a155edc12dfb38ull);
  EXPECT_EQ(page_checksum({}, 0), 0x2d06800538d394c2ull);
}

}  // namespace
}  // namespace thermocline
