#include "tools/thermocline/npy.h"

#include <gtest/gtest.h>

#include <fstream>
#include <sstream>

#include "tests/support/temporary_folder.h"

namespace thermocline {
namespace {

TEST(Npy, HasTheHeaderOfFormatOne) {
  for (const std::vector<std::uint64_t>& shape :
       {std::vector<std::uint64_t>{7}, {3, 4, 5}, {1000000, 30, 64}, {}}) {
    const std::string header = npy_header("<f2", shape);
    EXPECT_EQ(header.size() % 64, 0u);
    EXPECT_EQ(header.substr(0, 8), std::string("\x93NUMPY\x01\x00", 8));
    const std::size_t length = static_cast<unsigned char>(header[8]) |
                               static_cast<std::size_t>(static_cast<unsigned char>(header[9])) << 8;
    EXPECT_EQ(header.size(), 10 + length);
    EXPECT_EQ(header.back(), '\n');
  }
  // As numpy 1.24 writes np.zeros((3, 4), 'f4'), but for the comma at the end.
  EXPECT_NE(npy_header("<f4", std::vector<std::uint64_t>{3, 4})
                .find("{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4, ), }"),
            std::string::npos);
}

TEST(Npy, NumbersFollowAsTheyLie) {
  const test::TemporaryFolder folder("npy");
  const std::string path = folder.path() + "/a.npy";
  const std::vector<float> values{1, -2.5f, 3};
  const std::uint64_t shape[] = {3, 1};
  ASSERT_TRUE(write_npy(path, shape, values));
  std::ifstream file(path, std::ios::binary);
  std::stringstream text;
  text << file.rdbuf();
  const std::string header = npy_header("<f4", shape);
  EXPECT_EQ(text.str(), header + std::string(reinterpret_cast<const char*>(values.data()), 12));
  const Status again = write_npy(path, shape, values);
  ASSERT_FALSE(again);
  EXPECT_NE(again.error().message.find(path), std::string::npos) << "it is there already";
}

}  // namespace
}  // namespace thermocline
