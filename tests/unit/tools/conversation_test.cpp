// A conversation, and what of it is in its file at any moment.
#include "tools/thermocline/conversation.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <vector>

#include "tests/support/temporary_folder.h"

namespace thermocline {
namespace {

namespace fs = std::filesystem;

class ConversationTest : public ::testing::Test {
 protected:
  ConversationTest()
      : engine_(std::move(*Engine::open({.model_path = std::string(THERMOCLINE_SOURCE_DIR) +
                                                       "/tests/golden/tiny/llama_mixed.gguf",
                                         .threads = 1}))) {
    options_.chat_template = "chatml";
    options_.session = folder_.path() + "/s.tls";
    options_.writing.sampling.seed = 3;
    options_.writing.context = 1000;
    options_.writing.length = 60;
    options_.writing.ignore_end = true;
    options_.writing.show = [](std::string_view) -> Status { return {}; };
  }

  std::unique_ptr<KvCache> open_cache() const {
    CacheOptions options{.max_positions = options_.writing.context};
    options.method_directory = std::string(THERMOCLINE_SOURCE_DIR) + "/configs/methods";
    options.method_overrides = {"steady.recent=16", "steady.seal=64"};  // several seals
    options.session.path = options_.session;
    auto cache = engine_->open_cache(options);
    EXPECT_TRUE(cache) << cache.error().message;
    return std::move(*cache);
  }
  // The roles by their letters.
  static std::string roles(const Conversation& conversation) {
    std::string all;
    for (const ChatMessage& message : conversation.messages()) all += message.role[0];
    return all;
  }

  const test::TemporaryFolder folder_{"conversation"};
  std::unique_ptr<Engine> engine_;
  ConversationOptions options_;
};

// A copy of the file at any moment is what a process that is killed then leaves.
TEST_F(ConversationTest, WhateverIsSavedOfItGoesOn) {
  std::vector<std::string> saves;
  std::vector<std::string> shown;  // of the answer, when each was made
  std::string so_far;
  const std::string file = options_.session;
  options_.writing.while_writing_every = std::chrono::milliseconds(0);
  options_.writing.show = [&](std::string_view more) -> Status {
    so_far += more;
    if (!fs::exists(file)) return {};
    shown.push_back(so_far);
    saves.push_back(file + "." + std::to_string(saves.size()));
    fs::copy_file(file, saves.back());
    return {};
  };
  std::size_t of_first = 0;
  {
    const auto cache = open_cache();
    Conversation conversation(*engine_, *cache, options_);
    ASSERT_TRUE(conversation.resume());
    Generation first, second;
    ASSERT_TRUE(conversation.answer("One.", &first));
    of_first = saves.size();
    so_far.clear();
    ASSERT_TRUE(conversation.answer("Two.", &second));
    EXPECT_EQ(roles(conversation), "uaua");
  }
  ASSERT_GT(of_first, 20u);
  ASSERT_GT(saves.size(), of_first + 20);
  options_.writing.show = [](std::string_view) -> Status { return {}; };
  for (std::size_t i = 0; i < saves.size(); i += i % of_first == 0 ? 1 : 7) {
    SCOPED_TRACE(i);
    options_.session = saves[i];
    const auto cache = open_cache();
    Conversation conversation(*engine_, *cache, options_);
    const auto said = conversation.resume();
    ASSERT_TRUE(said) << said.error().message;
    // As of the step before: what is shown of a step is shown before it is saved. The first steps
    // of an answer may have shown nothing.
    const bool first = i == 0 || i == of_first;
    const std::string before = i < of_first ? "" : "ua", held = roles(conversation);
    EXPECT_TRUE(held == before + "ua" || (first && held == before)) << held;
    if (held == before + "ua") {
      EXPECT_EQ(conversation.messages().back().content, first ? "" : shown[i - 1]);
    }
    Generation more;
    const Status status = conversation.answer("Three.", &more);
    ASSERT_TRUE(status) << status.error().message;
    EXPECT_GT(more.cached_tokens, 0u);
  }
}

TEST_F(ConversationTest, AnAnswerThatFailsLeavesItAsItWas) {
  const auto cache = open_cache();
  options_.writing.show = [](std::string_view) -> Status {
    return fail(ErrorCode::exhausted, "nobody listens");
  };
  Conversation conversation(*engine_, *cache, options_);
  ASSERT_TRUE(conversation.reset());
  Generation none;
  EXPECT_FALSE(conversation.answer("One.", &none));
  EXPECT_TRUE(conversation.messages().empty());
}

}  // namespace
}  // namespace thermocline
