#include "tools/thermocline/stop_text.h"

#include <gtest/gtest.h>

#include <functional>
#include <random>

namespace thermocline {
namespace {

// What is shown of `text` when it comes in the given pieces.
std::string shown(const std::string& text, const std::vector<std::string>& stops,
                  const std::function<std::size_t()>& next_piece) {
  StopText stop(stops);
  std::string out;
  for (std::size_t at = 0; at < text.size() && !stop.stopped();) {
    const std::size_t size = std::min(next_piece(), text.size() - at);
    out += stop.feed(text.substr(at, size));
    at += size;
  }
  return stop.stopped() ? out : out + stop.flush();
}

TEST(StopText, EndsBeforeTheStringWhereverThePiecesAreCut) {
  for (std::size_t size = 1; size < 20; ++size) {
    const auto pieces = [&] { return size; };
    EXPECT_EQ(shown("one two three", {"two"}, pieces), "one ") << size;
    EXPECT_EQ(shown("one two three", {"twoo", "thr"}, pieces), "one two ") << size;
    EXPECT_EQ(shown("aaab", {"aab"}, pieces), "a") << size;
    EXPECT_EQ(shown("one tw", {"two"}, pieces), "one tw") << size;
    EXPECT_EQ(shown("one", {}, pieces), "one") << size;
  }
}

TEST(StopText, HoldsBackNoMoreThanCouldBeginAStop) {
  StopText stop({"END"});
  EXPECT_EQ(stop.feed("abcE"), "abc");
  EXPECT_EQ(stop.feed("x"), "Ex");
  EXPECT_EQ(stop.feed("EN"), "");
  EXPECT_EQ(stop.flush(), "EN");
}

TEST(StopText, AgreesWithASearchOfTheWholeText) {
  std::mt19937 random(7);
  for (int round = 0; round < 2000; ++round) {
    std::string text;
    for (unsigned i = random() % 40; i > 0; --i) text += static_cast<char>('a' + random() % 2);
    std::string stop;
    for (unsigned i = 1 + random() % 4; i > 0; --i) stop += static_cast<char>('a' + random() % 2);
    EXPECT_EQ(shown(text, {stop}, [&] { return 1 + random() % 5; }),
              text.substr(0, text.find(stop)))
        << "text " << text << ", stop " << stop;
  }
}

}  // namespace
}  // namespace thermocline
