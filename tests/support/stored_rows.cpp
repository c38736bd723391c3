#include "tests/support/stored_rows.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cstring>

#include "tests/support/memory_sink.h"

namespace thermocline {

std::span<const std::byte> Stored::row(std::uint32_t head, std::uint32_t r) const {
  const std::size_t bytes = segment->layout.bytes();
  return std::span(records).subspan((std::size_t{head} * segment->rows + r) * bytes, bytes);
}

StoredRows::StoredRows(PageTableOptions options, std::uint64_t host_bytes, FaultPlan plan)
    : budget({host_bytes, host_bytes, options.stores.bytes.back()}) {
  auto sink = std::make_unique<FaultSink>(plan);
  faults_ = sink.get();
  open(std::move(options), std::move(sink));
}

StoredRows::StoredRows(PageTableOptions options, std::uint64_t host_bytes,
                       std::unique_ptr<Sink> sink)
    : budget({host_bytes, host_bytes, options.stores.bytes.back()}) {
  open(std::move(options), std::move(sink));
}

void StoredRows::open(PageTableOptions options, std::unique_ptr<Sink> sink) {
  if (options.stores.directory.empty())
    options.stores.directory = ::testing::TempDir() + "thermocline-rows";
  // A fault is for what the test does, and no test depends on the machine's disk.
  if (!options.read_cost) options.read_cost = ReadCost();
  options.stores.bytes.front() = budget.usage(Tier::device).total_bytes;
  options_ = options;
  auto stores = open_stores(options.stores);
  if (!stores) {
    ADD_FAILURE() << stores.error().message;
    return;
  }
  auto made = PageTable::create(options, &budget, std::move(*stores), std::move(sink));
  if (made) {
    table = std::move(*made);
  } else {
    ADD_FAILURE() << made.error().message;
  }
}

std::vector<std::byte>& StoredRows::disk() const {
  auto& memory = dynamic_cast<MemorySink&>(faults_->inner());
  int file = 0;
  while (memory.file(file).empty()) ++file;
  return memory.file(file);
}

Result<Stored> StoredRows::store(std::mt19937& random, std::uint32_t layer, std::uint32_t rows,
                                 Tier home) {
  Segment segment;
  segment.layer = LayerId{layer};
  segment.layout = options_.layers[layer].layout;
  segment.heads = options_.layers[layer].heads;
  segment.rows = rows;
  Stored stored;
  stored.records.resize(std::size_t{segment.layout.bytes()} * rows * segment.heads);
  std::uint32_t word = random();
  for (std::size_t at = 0; at < stored.records.size(); at += sizeof word) {
    word = word * 1664525u + 1013904223u;
    std::memcpy(stored.records.data() + at, &word, sizeof word);
  }
  TL_TRY_ASSIGN(stored.segment,
                table->adopt(std::move(segment), stored.records, home, Purpose::rows));
  TL_TRY(table->written());
  return stored;
}

Wanted whole(const Stored& stored, std::uint32_t head) { return whole({&stored, 1}, head); }

Wanted whole(std::span<const Stored> stored, std::uint32_t head) {
  Wanted wanted;
  wanted.head = head;
  for (const Stored& one : stored) {
    wanted.runs.push_back({one.segment, nullptr, nullptr, nullptr});
    wanted.rows.push_back(&one);
    wanted.summaries.push_back(nullptr);
  }
  wanted.list.take_all(stored.size());
  return wanted;
}

namespace {

constexpr std::uint32_t kScores = 3;  // of a scored row: query heads

// Few rows, all rows, or any; never outside of the segment.
RowSet random_set(std::mt19937& random, std::uint32_t rows_here) {
  const RowSet inside = first_rows(static_cast<int>(std::min(rows_here, 64u)));
  const std::uint64_t word = (std::uint64_t{random()} << 32) | random();
  RowSet set = RowSet{1} << (word % std::min(rows_here, 64u));
  switch (random() % 4) {
    case 0:
      return inside;
    case 1:
      return set;
    case 2:
      return (set | ((word >> 8) & (word << 13) & (word >> 21))) & inside;
    default:
      return (set | word) & inside;
  }
}

}  // namespace

Wanted random_reads(std::mt19937& random, std::span<const Stored> stored, std::uint32_t heads) {
  Wanted wanted;
  wanted.head = random() % heads;
  for (const Stored& s : stored) {
    const Stored& other = stored[random() % stored.size()];
    wanted.runs.push_back({s.segment, other.segment, nullptr, nullptr});
    wanted.rows.push_back(&s);
    wanted.summaries.push_back(&other);
  }
  const std::uint32_t reads = random() % 5;
  for (std::uint32_t i = 0; i < reads; ++i) {
    Read read;
    read.run = random() % static_cast<std::uint32_t>(stored.size());
    read.form = random() % 4 == 0 ? Form::summaries : Form::rows;
    const Segment& segment = wanted.runs[read.run].in(read.form);
    read.everything = random() % 3 == 0;
    if (!read.everything) {
      read.first = static_cast<std::uint32_t>(wanted.list.picks.size());
      read.scored = random() % 3 == 0;
      read.weights_a_row = read.scored ? kScores : random() % 2;
      read.first_weight = static_cast<std::uint32_t>(wanted.list.log_weight.size());
      const std::uint32_t stride = 1 + random() % 3;
      for (std::uint32_t block = random() % (stride + 1); block < segment.blocks();
           block += 1 + random() % stride) {
        const RowSet set = random_set(random, segment.rows - block * kBlockRows);
        wanted.list.picks.push_back({block, set});
        for (std::uint32_t w = 0; w < read.weights_a_row * static_cast<unsigned>(count(set)); ++w)
          wanted.list.log_weight.push_back(static_cast<float>(random() % 1000) / 100.0f);
      }
      read.last = static_cast<std::uint32_t>(wanted.list.picks.size());
    }
    wanted.list.reads.push_back(read);
  }
  return wanted;
}

ListRead expected(const Wanted& wanted) {
  ListRead folds;
  for (const Read& read : wanted.list.reads) {
    const Stored& from =
        read.form == Form::rows ? *wanted.rows[read.run] : *wanted.summaries[read.run];
    std::vector<std::pair<std::uint32_t, std::vector<float>>> rows;
    if (read.everything) {
      for (std::uint32_t r = 0; r < from.segment->rows; ++r) rows.push_back({r, {}});
    } else {
      auto weight = wanted.list.log_weight.begin() + read.first_weight;
      for (std::uint32_t p = read.first; p < read.last; ++p) {
        const Pick& pick = wanted.list.picks[p];
        for (std::uint32_t bit = 0; bit < 64; ++bit)
          if (pick.rows >> bit & 1) {
            rows.push_back({pick.block * kBlockRows + bit, {weight, weight + read.weights_a_row}});
            weight += read.weights_a_row;
          }
      }
    }
    for (std::size_t first = 0; first < rows.size(); first += kFoldRows) {
      FoldRead& fold = folds.emplace_back();
      for (std::size_t r = first; r < std::min(rows.size(), first + kFoldRows); ++r) {
        const auto bytes = from.row(wanted.head, rows[r].first);
        fold.rows.insert(fold.rows.end(), bytes.begin(), bytes.end());
        fold.log_weights.push_back(rows[r].second);
        fold.scored = read.scored && !read.everything;
      }
    }
  }
  return folds;
}

namespace {

FoldRead content(const Fold& fold, RowLayout layout) {
  FoldRead read;
  read.scored = fold.scored;
  for (const BlockView& view : fold.blocks) {
    int rank = 0;
    for (RowSet left = view.rows; left != 0; left &= left - 1, ++rank) {
      const auto in_block = static_cast<std::size_t>(std::countr_zero(left));
      const std::byte* key = view.key + in_block * fold.key_stride;
      const std::byte* value = view.value + in_block * fold.value_stride;
      read.rows.insert(read.rows.end(), key, key + layout.key_bytes);
      read.rows.insert(read.rows.end(), value, value + layout.value_bytes);
      const int a_row = fold.scored ? static_cast<int>(kScores) : view.log_weight != nullptr;
      const float* weight = view.log_weight + rank * a_row;
      read.log_weights.emplace_back(weight, weight + a_row);
    }
  }
  return read;
}

std::vector<ReadRequest> requests_of(std::span<const Wanted> wanted) {
  std::vector<ReadRequest> requests;
  for (const Wanted& w : wanted) requests.push_back({w.head, w.runs, &w.list});
  return requests;
}

}  // namespace

Result<std::vector<ListRead>> read_all(Reader* reader, std::uint32_t layer,
                                       std::span<const Wanted> wanted, FoldOrder order,
                                       const std::function<void()>& asked) {
  const std::vector<ReadRequest> requests = requests_of(wanted);
  TL_TRY(reader->start(layer, order));
  std::vector<ListRead> lists;
  std::vector<std::vector<int>> times;
  std::vector<std::uint32_t> next(wanted.size(), 0);
  const auto take = [&](std::span<const ReadyFold> wave) -> Status {
    for (const ReadyFold& ready : wave) {
      if (!verify(ready)) TL_TRY(reader->read_again(ready));
      ++times[ready.list].at(ready.ordinal);
      if (order == FoldOrder::in_list) {
        EXPECT_EQ(ready.ordinal, next[ready.list]++);
      }
      const RowLayout layout = wanted[ready.list].runs[0].rows->layout;
      FoldRead& fold = lists[ready.list].at(ready.ordinal);
      fold = content(ready.fold, layout);
      std::vector<std::byte> packed(std::size_t{ready.rows} * layout.bytes());
      pack_rows(ready, packed.data());
      EXPECT_EQ(packed, fold.rows);
    }
    return {};
  };
  constexpr std::size_t kPart = 3;
  for (std::size_t first = 0; first < requests.size(); first += kPart) {
    TL_TRY_ASSIGN(const auto wave, reader->ready());
    TL_TRY(take(wave));
    TL_TRY(reader->add(
        std::span(requests).subspan(first).first(std::min(kPart, requests.size() - first))));
    while (lists.size() < std::min(requests.size(), first + kPart)) {
      const std::uint32_t folds = reader->folds(static_cast<std::uint32_t>(lists.size()));
      lists.emplace_back(folds);
      times.emplace_back(folds);
    }
  }
  if (asked) asked();
  while (true) {
    TL_TRY_ASSIGN(const auto wave, reader->next());
    if (wave.empty()) break;
    TL_TRY(take(wave));
  }
  for (const auto& folds : times)
    for (const int n : folds) EXPECT_EQ(n, 1) << "a fold that came not once";
  return lists;
}

::testing::AssertionResult holds(StoredRows& rows, const Stored& stored, FoldOrder order) {
  Reader reader(rows.table.get());
  for (std::uint32_t head = 0; head < stored.segment->heads; ++head) {
    const Wanted wanted = whole(stored, head);
    const auto read = read_all(&reader, index(stored.segment->layer), {&wanted, 1}, order);
    if (!read) return ::testing::AssertionFailure() << read.error().message;
    if ((*read)[0] != expected(wanted))
      return ::testing::AssertionFailure() << "head " << head << " holds other rows";
  }
  return ::testing::AssertionSuccess();
}

void expect_all(Reader* reader, std::uint32_t layer, std::span<const Wanted> wanted,
                FoldOrder order) {
  reader->expect(layer, order, DeviceRows::come, requests_of(wanted));
}

}  // namespace thermocline
