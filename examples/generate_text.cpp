// Continues a text: generate_text MODEL.gguf "Once upon a time"
#include <iostream>

#include "runtime/thermocline.h"

using namespace thermocline;

Status generate(const std::string& model, const std::string& text) {
  TL_TRY_ASSIGN(const auto engine, Engine::open({.model_path = model}));
  TL_TRY_ASSIGN(const auto prompt,
                engine->encode(text, Engine::Special::as_text, Engine::Start::add));
  TL_TRY_ASSIGN(const auto cache, engine->open_cache({.method = "exact"}));
  TL_TRY_ASSIGN(Timeline timeline, cache->start());

  std::vector<float> logits(engine->model().vocabulary);
  TL_TRY(engine->prefill(timeline, prompt, logits, {}));
  Sampler sampler({.temperature = 0});
  const auto stream = engine->stream();
  for (int i = 0; i < 32; ++i) {
    const int token = sampler.sample(logits);
    if (engine->ends_generation(token)) break;
    std::cout << stream->feed(token) << std::flush;
    const Feed feed{&timeline, token};
    TL_TRY(engine->step({&feed, 1}, MatView<float>(logits.data(), 1, logits.size())));
  }
  std::cout << stream->flush() << std::endl;
  return {};
}

int main(int count, char** words) {
  if (count != 3) return 2;
  const Status status = generate(words[1], words[2]);
  if (!status) std::cerr << status.error().message << std::endl;
  return status ? 0 : 1;
}
