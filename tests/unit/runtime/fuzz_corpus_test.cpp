// What the fuzzers start from and have found, run through the same functions in every build.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>

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
TEST(FuzzCorpus, Session) { EXPECT_GE(replay("session", test::fuzz_session), 10u); }
TEST(FuzzCorpus, Tokenizer) { EXPECT_GE(replay("tokenizer", test::fuzz_tokenizer), 10u); }

}  // namespace
}  // namespace thermocline
