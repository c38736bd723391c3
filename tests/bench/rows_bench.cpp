// Attention over coded rows: GB/s of their bytes and rows/s of every codec, beside f16, in turn.
// More rows than the caches hold, so that memory is part of it, as in a decode step. And what
// sealing a segment takes, once, on one thread: what is fitted and what is written.
//
//   rows_bench [rows] [head size] [query heads] [rounds] [instruction set]
//
// Both sides of a row are coded alike, and what is fitted is so for 8,192 rows of three KV heads,
// of which one is read, keys to be rotated. Bytes are a row's own and its share of the fit. A fold
// of each is checked against attend_reference.h.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "kernels/attend_reference.h"
#include "kernels/cpu/table.h"
#include "runtime/method.h"
#include "tiers/codec/raw.h"

namespace thermocline {
namespace {

double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

constexpr std::uint32_t kKvHeads = 3;  // that are fitted together; the first is read

// A side of the rows of some segments.
struct CodedSide {
  Buffer common;                            // of all segments
  std::vector<std::vector<std::byte>> own;  // [segment]
  const Rotation* rotation = nullptr;
  double fit_seconds = 0;  // a segment, of all heads

  SideFit fit(std::size_t segment, std::uint32_t rows) const {
    if (own.empty()) return {};
    return {common.size() > 0 ? common.data() : nullptr,
            own[segment].data(),
            kKvHeads,
            rows,
            0,
            static_cast<std::uint32_t>(segment) * rows,
            nullptr,
            rotation};
  }
  std::size_t bytes() const { return own.empty() ? 0 : own.size() * own[0].size(); }
};

struct Subject {
  std::string name;
  RowFormat format{};
  std::vector<std::byte> rows;  // records
  std::uint32_t record = 0;     // bytes
  std::uint32_t segment = 0;    // rows
  std::size_t count = 0;        // rows of all segments
  CodedSide keys = {}, values = {};
  std::vector<double> rates = {};  // rows/s
  double write_seconds = 0;        // a segment, of one head

  // As the page table lays them out: blocks of 64 rows.
  Fold fold(std::size_t first, HeadShape shape, std::vector<BlockView>* views) const {
    views->clear();
    for (std::size_t r = first; r < first + kFoldRows; r += kBlockRows) {
      const std::byte* at = rows.data() + r * record;
      views->push_back({at, at + row_bytes(format, shape.key_dim), kAllRows, nullptr,
                        static_cast<std::uint32_t>(r % segment)});
    }
    Fold fold{format, format, record, record, *views};
    fold.key_fit = keys.fit(first / segment, segment);
    fold.value_fit = values.fit(first / segment, segment);
    return fold;
  }
  double sealing_us_a_row() const {
    const double fits = (keys.fit_seconds + values.fit_seconds) / kKvHeads;
    return (fits + write_seconds) / segment * 1e6;
  }
  // Of one KV head.
  double bytes_a_row() const {
    const double fits = static_cast<double>(keys.bytes() + values.bytes()) / kKvHeads;
    return record + fits / static_cast<double>(count);
  }
};

// As a model's: the angle of a pair falls from 1 to 1/10,000 a position.
const Rotation& rotation_of(std::uint32_t dim) {
  static const Rotation rotation = [=] {
    std::vector<float> frequency(dim / 2);
    for (std::uint32_t i = 0; i < frequency.size(); ++i)
      frequency[i] = std::pow(10000.0f, -2.0f * static_cast<float>(i) / static_cast<float>(dim));
    return Rotation::of(frequency, RopePairs::halves, 1.0f);
  }();
  return rotation;
}

CodedSide prepare(const Codec& codec, const Fitting& of, std::size_t segments) {
  CodedSide side;
  if (!codec.fitter()) return side;
  const double start = seconds();
  auto fit = codec.fitter()->fit(of, Workers(1));
  side.fit_seconds = seconds() - start;
  if (!fit) {
    std::fprintf(stderr, "rows_bench: %s\n", fit.error().message.c_str());
    std::exit(1);
  }
  side.common = std::move(fit->common);
  const auto own = fit->own.bytes();
  side.own.assign(segments, {own.begin(), own.end()});
  side.rotation = of.rotation;
  return side;
}

Subject prepare(const std::string& name, std::size_t rows, HeadShape shape, const CpuTable& cpu) {
  const std::string named = "keys.compress=" + name;
  const auto method = load_method("exact", "", {&named, 1}, cpu);
  if (!method) {
    std::fprintf(stderr, "rows_bench: %s\n", method.error().message.c_str());
    std::exit(1);
  }
  const Codec& codec = *method->compress.keys;
  const std::uint32_t key_bytes = row_bytes(codec.format(), shape.key_dim);
  Subject subject{name, codec.format(), {}, key_bytes + row_bytes(codec.format(), shape.value_dim)};
  subject.segment = static_cast<std::uint32_t>(std::min<std::size_t>(rows, kSegmentRows));
  subject.count = rows / subject.segment * subject.segment;
  // A segment of random rows, over and over: what they are does not matter, where they lie does.
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  const RowLayout layout = raw_layout(shape.key_dim, shape.value_dim);
  std::vector<f16> data(std::size_t{kKvHeads} * subject.segment * layout.bytes() / sizeof(f16));
  for (f16& x : data) x = to_f16(normal(random));
  const RawRows raw{layout,
                    kKvHeads,
                    0,
                    subject.segment,
                    reinterpret_cast<const std::byte*>(data.data()),
                    std::size_t{subject.segment} * layout.bytes()};
  const std::size_t segments = subject.count / subject.segment;
  subject.keys = prepare(codec, {Side::keys, raw, {}, {}, &rotation_of(shape.key_dim)}, segments);
  subject.values = prepare(codec, {Side::values, raw}, segments);
  subject.rows.resize(subject.count * subject.record);
  const double start = seconds();
  for (std::uint32_t r = 0; r < subject.segment; ++r) {
    std::byte* out = subject.rows.data() + std::size_t{r} * subject.record;
    codec.write(raw.key(0, r), shape.key_dim, subject.keys.fit(0, subject.segment), r, out);
    codec.write(raw.value(0, r), shape.value_dim, subject.values.fit(0, subject.segment), r,
                out + key_bytes);
  }
  subject.write_seconds = seconds() - start;
  const std::size_t once = std::size_t{subject.segment} * subject.record;
  for (std::size_t s = 1; s < segments && once > 0; ++s)
    std::memcpy(subject.rows.data() + s * once, subject.rows.data(), once);
  return subject;
}

bool is_right(const Subject& subject, HeadShape shape, const std::vector<float>& query,
              const CpuTable& cpu) {
  std::vector<BlockView> views;
  const Fold fold = subject.fold(0, shape, &views);
  std::vector<float> acc(shape.heads * shape.value_dim);
  std::vector<AttnState> states(shape.heads);
  for (std::uint32_t h = 0; h < shape.heads; ++h) states[h].acc = &acc[h * shape.value_dim];
  cpu.attend.attend(query.data(), shape, fold, nullptr, states.data());
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
  const std::size_t unit = rows < kSegmentRows ? kFoldRows : kSegmentRows;
  rows = std::max<std::size_t>(rows / unit, 1) * unit;
  std::vector<Subject> subjects;
  for (const MethodQuestion& question : method_questions())
    if (question.key == "keys.compress")
      for (const std::string& name : question.choices)
        subjects.push_back(prepare(name, rows, shape, **cpu));
  std::vector<float> query(heads * dim), acc(heads * dim);
  std::mt19937 random(2);
  std::normal_distribution<float> normal(0.0f, 0.1f);
  for (float& x : query) x = normal(random);
  std::vector<AttnState> states(heads);
  for (std::uint32_t h = 0; h < heads; ++h) states[h].acc = &acc[h * dim];
  for (const Subject& subject : subjects)
    if (!is_right(subject, shape, query, **cpu)) {
      std::fprintf(stderr, "rows_bench: %s differs from the reference\n", subject.name.c_str());
      return 1;
    }
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
    }
  for (const Subject& subject : subjects) {
    std::vector<double> ratios;
    for (std::size_t r = 0; r < subject.rates.size(); ++r)
      ratios.push_back(subject.rates[r] / subjects[0].rates[r]);
    const double rate = median(subject.rates);
    std::printf(
        "%-14s %5.1f bytes a row, %6.2f GB/s, %7.2f million rows/s, %.2f of %s; sealed in %.2f us "
        "a row\n",
        subject.name.c_str(), subject.bytes_a_row(), rate * subject.bytes_a_row() * 1e-9,
        rate * 1e-6, median(ratios), subjects[0].name.c_str(), subject.sealing_us_a_row());
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
