// What the fuzzers start from and have found, run through the same functions in every build.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <vector>

#include "tests/support/fuzz_entries.h"
#include "tests/support/fuzz_resume.h"
#include "tests/support/fuzz_session.h"

namespace thermocline {
namespace {

template <typename Entry>
std::size_t replay(const char* name, Entry entry) {
  std::size_t count = 0;
  const std::filesystem::path folder = THERMOCLINE_SOURCE_DIR "/tests/fuzz/corpus";
  for (const auto& item : std::filesystem::directory_iterator(folder / name)) {
    SCOPED_TRACE(item.path().string());
    std::ifstream file(item.path(), std::ios::binary);
    const std::string text{std::istreambuf_iterator<char>(file), {}};
    entry(std::as_bytes(std::span(text)));
    ++count;
  }
  return count;
}

TEST(FuzzCorpus, Gguf) { EXPECT_GE(replay("gguf", test::fuzz_gguf), 10u); }
TEST(FuzzCorpus, Resume) { EXPECT_GE(replay("resume", test::fuzz_resume), 10u); }
// Words of the records of every method's segments, fits among them, become whatever they like.
TEST(FuzzCorpus, ResumeFromRecordsOfEveryMethod) {
  std::mt19937 random(7);
  constexpr std::uint32_t kValues[] = {0, 1, 0x10001, 0x7f800000, 0x80000000, 0xffffffff};
  for (std::uint32_t i = 0; i < 780; ++i) {
    std::vector<std::uint8_t> input = {static_cast<std::uint8_t>(i)};
    for (std::uint32_t changes = 1 + i % 3; changes > 0; --changes) {
      const std::uint32_t value = random() % 4 ? kValues[random() % std::size(kValues)]
                                               : static_cast<std::uint32_t>(random());
      const auto where = static_cast<std::uint16_t>(random() % (i % 2 ? 512 : 65536));
      input.insert(input.end(), {6, static_cast<std::uint8_t>(random())});
      for (int byte = 0; byte < 2; ++byte)
        input.push_back(static_cast<std::uint8_t>(where >> 8 * byte));
      for (int byte = 0; byte < 4; ++byte)
        input.push_back(static_cast<std::uint8_t>(value >> 8 * byte));
    }
    test::fuzz_resume(std::as_bytes(std::span(input)));
  }
}

TEST(FuzzCorpus, Session) { EXPECT_GE(replay("session", test::fuzz_session), 10u); }
TEST(FuzzCorpus, Tokenizer) { EXPECT_GE(replay("tokenizer", test::fuzz_tokenizer), 10u); }

}  // namespace
}  // namespace thermocline
