// Attention over coded rows: GB/s of their bytes and rows/s of every format whose rows are read
// alone, beside f16, in turn. More rows than the caches hold, so that memory is part of it, as in a
// decode step.
//
//   rows_bench [rows] [head size] [query heads] [rounds] [instruction set]
//
// Both sides of a row have the format. A fold of each is checked against attend_reference.h.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "kernels/attend_reference.h"
#include "kernels/cpu/table.h"
#include "runtime/method.h"

namespace thermocline {
namespace {

double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

struct Subject {
  std::string name;
  RowFormat format{};
  std::vector<std::byte> rows;  // records
  std::uint32_t record = 0;     // bytes
  std::vector<double> rates;    // rows/s

  // As the page table lays them out: blocks of 64 rows.
  Fold fold(std::size_t first, HeadShape shape, std::vector<BlockView>* views) const {
    views->clear();
    for (std::size_t r = first; r < first + kFoldRows; r += kBlockRows) {
      const std::byte* at = rows.data() + r * record;
      views->push_back({at, at + row_bytes(format, shape.key_dim), kAllRows, nullptr});
    }
    return {format, format, record, record, *views};
  }
};

// Nothing: its rows share what is not beside them.
std::optional<Subject> prepare(const std::string& name, std::size_t rows, HeadShape shape,
                               const CpuTable& cpu) {
  const std::string named = "keys.compress=" + name;
  const auto method = load_method("exact", "", {&named, 1}, cpu);
  if (!method) {
    std::fprintf(stderr, "rows_bench: %s\n", method.error().message.c_str());
    std::exit(1);
  }
  const auto* codec = dynamic_cast<const PlainCodec*>(method->compress.keys.get());
  if (!codec) return std::nullopt;
  const std::uint32_t key_bytes = row_bytes(codec->format(), shape.key_dim);
  const std::uint32_t record = key_bytes + row_bytes(codec->format(), shape.value_dim);
  Subject subject{name, codec->format(), std::vector<std::byte>(rows * record), record, {}};
  // A block of random rows, over and over: what they are does not matter, where they lie does.
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<f16> raw(shape.key_dim + shape.value_dim);
  for (std::size_t r = 0; r < kBlockRows; ++r) {
    for (f16& x : raw) x = to_f16(normal(random));
    std::byte* out = subject.rows.data() + r * record;
    codec->encode(raw.data(), shape.key_dim, out);
    codec->encode(raw.data() + shape.key_dim, shape.value_dim, out + key_bytes);
  }
  for (std::size_t r = kBlockRows; r < rows; r += kBlockRows)
    std::memcpy(subject.rows.data() + r * record, subject.rows.data(), kBlockRows * record);
  return subject;
}

bool is_right(const Subject& subject, HeadShape shape, const std::vector<float>& query,
              const std::vector<float>& acc, const std::vector<AttnState>& states) {
  std::vector<BlockView> views;
  const Fold fold = subject.fold(0, shape, &views);
  for (std::uint32_t h = 0; h < shape.heads; ++h) {
    const auto wanted = attend_reference(&query[h * shape.key_dim], shape, {&fold, 1}, {}, 0, h);
    for (std::uint32_t i = 0; i < shape.value_dim; ++i)
      if (std::abs(acc[h * shape.value_dim + i] / states[h].sum - wanted[i]) > 1e-4) return false;
  }
  return true;
}

int run(std::size_t rows, std::uint32_t dim, std::uint32_t heads, int rounds,
        const std::string& isa) {
  const auto cpu = choose_cpu_table(isa);
  if (!cpu) {
    std::fprintf(stderr, "rows_bench: %s\n", cpu.error().message.c_str());
    return 1;
  }
  const HeadShape shape{heads, dim, dim};
  rows = std::max<std::size_t>(rows / kFoldRows, 1) * kFoldRows;
  std::vector<Subject> subjects;
  for (const MethodQuestion& question : method_questions())
    if (question.key == "keys.compress")
      for (const std::string& name : question.choices)
        if (auto subject = prepare(name, rows, shape, **cpu))
          subjects.push_back(std::move(*subject));
  std::vector<float> query(heads * dim), acc(heads * dim);
  std::mt19937 random(2);
  std::normal_distribution<float> normal(0.0f, 0.1f);
  for (float& x : query) x = normal(random);
  std::vector<AttnState> states(heads);
  for (std::uint32_t h = 0; h < heads; ++h) states[h].acc = &acc[h * dim];
  std::vector<BlockView> views, next_views;
  for (int round = 0; round <= rounds; ++round)  // the first warms up
    for (Subject& subject : subjects) {
      const double start = seconds();
      Fold fold = subject.fold(0, shape, &views);
      for (std::size_t next = kFoldRows; next <= rows; next += kFoldRows) {
        Fold after;
        if (next < rows) after = subject.fold(next, shape, &next_views);
        (*cpu)->attend.attend(query.data(), shape, fold, next < rows ? &after : nullptr,
                              states.data());
        std::swap(views, next_views);
        fold = after;
      }
      if (round > 0) subject.rates.push_back(static_cast<double>(rows) / (seconds() - start));
      if (!is_right(subject, shape, query, acc, states)) {
        std::fprintf(stderr, "rows_bench: %s differs from the reference\n", subject.name.c_str());
        return 1;
      }
    }
  for (const Subject& subject : subjects) {
    std::vector<double> ratios;
    for (std::size_t r = 0; r < subject.rates.size(); ++r)
      ratios.push_back(subject.rates[r] / subjects[0].rates[r]);
    const double rate = median(subject.rates);
    std::printf("%-8s %5u bytes a row, %6.2f GB/s, %7.2f million rows/s, %.2f of %s\n",
                subject.name.c_str(), subject.record, rate * subject.record * 1e-9, rate * 1e-6,
                median(ratios), subjects[0].name.c_str());
  }
  return 0;
}

}  // namespace
}  // namespace thermocline

int main(int argc, char** argv) {
  const auto argument = [&](int i, int otherwise) {
    return argc > i ? std::atoi(argv[i]) : otherwise;
  };
  return thermocline::run(
      static_cast<std::size_t>(argument(1, 1 << 19)), static_cast<std::uint32_t>(argument(2, 64)),
      static_cast<std::uint32_t>(argument(3, 3)), argument(4, 9), argc > 5 ? argv[5] : "auto");
}
