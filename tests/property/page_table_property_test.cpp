// The laws of a page table, under random sequences of everything that can be asked of it: what is
// read is what was adopted, whatever was cached, shared, refused or failed in between; and what is
// held is what is alive, after every single step.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <map>
#include <string>
#include <vector>

#include "tests/support/fault_sink.h"
#include "tests/support/stored_rows.h"
#include "tiers/store/device_stand_in.h"
#include "tiers/store/scratch_file.h"

namespace thermocline {
namespace {

constexpr std::uint64_t kKiB = 1024;
constexpr std::uint32_t kLayers = 2, kMostRows = 300;
constexpr std::array<std::uint64_t, kTiers> kRoom = {512 * kKiB, 1024 * kKiB, 1024 * kKiB};
constexpr RowLayout kLayouts[kLayers] = {{RowFormat::f16, RowFormat::f16, 32, 64},
                                         {RowFormat::f16, RowFormat::f16, 160, 96}};
constexpr std::uint32_t kHeads[kLayers] = {3, 1};

// A segment as the model has it: its bytes, who holds it, and what it takes.
struct Known {
  Stored stored;  // its one reference is the first holder's
  std::uint32_t layer = 0;
  Tier home = Tier::host;
};

class Laws {
 public:
  explicit Laws(unsigned seed)
      : random_(seed), budget_({kRoom[0], kRoom[1] + 400 * kKiB, kRoom[2]}) {
    PageTableOptions options;
    for (std::uint32_t l = 0; l < kLayers; ++l)
      options.layers.push_back({kLayouts[l], kHeads[l], l == 0 ? 120u : 0u, 1000});
    options.stores.bytes = {0, 0, kRoom[2]};
    options.stores.directory = ::testing::TempDir() + "thermocline-laws";
    options.staging_bytes = 24 * kPageBytes;  // the longest segment has 19 a head
    options.read_cost = ReadCost();
    auto stores = open_stores(options.stores);
    if (!stores) {
      ADD_FAILURE() << stores.error().message;
      return;
    }
    scratch_ = dynamic_cast<ScratchFile*>(stores->back().get());
    stores->front() = std::make_unique<DeviceStandIn>();
    FaultPlan plan;
    plan.seed = seed;
    plan.reorder = true;
    auto sink = std::make_unique<FaultSink>(plan);
    sink_ = sink.get();
    auto made = PageTable::create(options, &budget_, std::move(*stores), std::move(sink));
    if (!made) {
      ADD_FAILURE() << made.error().message;
      return;
    }
    table_ = std::move(*made);
    reader_ = std::make_unique<Reader>(table_.get());
    host_at_rest_ = held(Tier::host);
  }
  ~Laws() { known_.clear(); }

  void go(int steps) {
    ASSERT_TRUE(table_ && scratch_);
    for (int i = 0; i < steps; ++i) {
      command();
      conserve();
      if (::testing::Test::HasFailure()) {
        ADD_FAILURE() << "at step " << i;
        return;
      }
    }
    end();
  }

  std::map<std::string, std::uint64_t> happened;

 private:
  std::uint32_t below(std::uint32_t n) { return static_cast<std::uint32_t>(random_() % n); }
  std::uint64_t held(Tier tier) const { return budget_.usage(tier).held_bytes; }

  void command() {
    switch (below(44)) {
      case 0:
      case 1:
      case 2:
      case 3:
      case 4:
        return adopt(below(kLayers), 1 + below(below(4) ? kMostRows / 4 : kMostRows), any_home());
      case 5:
        return adopt_again();
      case 6:
        return adopt_and_fail();
      case 7:
      case 8:
      case 9:
      case 10:
        return share();
      case 11:
      case 12:
      case 13:
      case 14:
      case 15:
      case 16:
        return let_go();
      case 17:
        return give_up_a_read();
      case 18:
      case 19:
        return read_through_faults();
      case 20:
        return read_what_cannot_be_read();
      case 21:
      case 22:
      case 23:
      case 24:
        return read_what_was_expected();
      case 25:
      case 26:
        return truncate();
      case 27:
      case 28:
        return compact();
      default:
        return read();
    }
  }
  Tier any_home() { return below(2) ? Tier::disk : below(2) ? Tier::host : Tier::device; }

  Segment segment_of(std::uint32_t layer, std::uint32_t rows) {
    Segment segment;
    segment.layer = LayerId{layer};
    segment.layout = kLayouts[layer];
    segment.heads = kHeads[layer];
    segment.rows = rows;
    return segment;
  }
  void adopt(std::uint32_t layer, std::uint32_t rows, Tier home) {
    std::vector<std::byte> records(std::size_t{kLayouts[layer].bytes()} * rows * kHeads[layer]);
    std::uint32_t word = static_cast<std::uint32_t>(random_());
    for (std::byte& byte : records)
      byte = static_cast<std::byte>((word = word * 1664525u + 1013904223u) >> 24);
    adopt(layer, rows, home, std::move(records));
  }
  void adopt(std::uint32_t layer, std::uint32_t rows, Tier home, std::vector<std::byte> records) {
    auto segment = table_->adopt(segment_of(layer, rows), records, home, Purpose::rows);
    if (segment) {
      EXPECT_EQ(table_->home(**segment), home);
      known_.push_back({{std::move(*segment), std::move(records)}, layer, home});
      ++happened["adopted"];
      written_behind();
      return;
    }
    EXPECT_EQ(segment.error().code, ErrorCode::exhausted) << segment.error().message;
    EXPECT_NE(segment.error().message.find("raise"), std::string::npos) << segment.error().message;
    ++happened["refused"];
    let_go();
  }
  // The same rows once more, as when a cut timeline's are formed again; the old one stays shared.
  void adopt_again() {
    if (known_.empty()) return;
    const Known old = any();
    adopt(old.layer, old.stored.segment->rows, any_home(), old.stored.records);
  }
  // As a cut leaves a segment: what is left of it is formed anew before it goes.
  void truncate() {
    if (known_.empty()) return;
    const Known old = any();
    form_again({&old, 1}, 1 + below(old.stored.segment->rows));
    ++happened["truncated"];
  }
  // Short segments of a layer become one.
  void compact() {
    const std::uint32_t layer = below(kLayers);
    std::vector<Known> olds;
    std::uint32_t rows = 0;
    for (const Known& one : known_)
      if (one.layer == layer && rows + one.stored.segment->rows <= kMostRows && below(2)) {
        rows += one.stored.segment->rows;
        olds.push_back(one);
      }
    if (olds.size() < 2) return;
    form_again(olds, rows);
    ++happened["compacted"];
  }
  // Reads segments of a layer back, makes one of the first `rows` of their rows, and lets them go.
  void form_again(std::span<const Known> olds, std::uint32_t rows) {
    const std::uint32_t layer = olds.front().layer;
    std::vector<Stored> stored;
    for (const Known& old : olds) stored.push_back(old.stored);
    std::vector<Wanted> lists;
    for (std::uint32_t h = 0; h < kHeads[layer]; ++h) lists.push_back(whole(stored, h));
    const auto got = read_all(reader_.get(), layer, lists, FoldOrder::in_list);
    ASSERT_TRUE(got) << got.error().message;
    compare(*got, lists);
    std::vector<std::byte> records;
    for (std::uint32_t h = 0; h < kHeads[layer]; ++h) {
      for (const FoldRead& fold : (*got)[h])
        records.insert(records.end(), fold.rows.begin(), fold.rows.end());
      records.resize(std::size_t{h + 1} * rows * kLayouts[layer].bytes());
    }
    adopt(layer, rows, any_home(), std::move(records));
    std::erase_if(known_, [&](const Known& one) {
      return std::ranges::any_of(
          stored, [&](const Stored& old) { return old.segment == one.stored.segment; });
    });
  }
  void adopt_and_fail() {
    FaultPlan plan = faults();
    plan.strike = {below(2) ? Fault::io_error : Fault::short_read, 0};
    plan.error = below(2) ? ENOSPC : EIO;
    sink_->set_plan(plan);
    const std::uint32_t layer = below(kLayers), rows = 1 + below(kMostRows);
    const std::vector<std::byte> records(std::size_t{kLayouts[layer].bytes()} * rows *
                                         kHeads[layer]);
    auto failed = table_->adopt(segment_of(layer, rows), records, Tier::disk, Purpose::rows);
    sink_->set_plan(faults());
    if (!failed) {
      EXPECT_EQ(failed.error().code, ErrorCode::exhausted) << failed.error().message;
      ++happened["refused"];
      return;
    }
    const bool told = below(2);
    if (!told) failed->reset();
    const Status written = table_->written();
    ASSERT_EQ(written.has_value(), !told);
    if (told) {
      EXPECT_EQ(written.error().code, ErrorCode::io) << written.error().message;
    }
    ++happened["writes failed"];
  }
  // What was adopted is on its way to the disk; it may be read, or let go, before it is there.
  void written_behind() {
    if (below(4) == 0) {
      read();
    } else if (below(4) == 0) {
      known_.pop_back();
    }
    ASSERT_TRUE(table_->written());
  }
  // Forks hold what their parents hold.
  void share() {
    if (known_.empty() || holders_.size() > 100) return;
    for (std::uint32_t i = 1 + below(4); i > 0; --i) {
      const Known& one = any();
      holders_.push_back(one.stored.segment);
      shared_[one.stored.segment.get()] = one;
    }
    ++happened["shared"];
  }
  void let_go() {
    if (!holders_.empty() && below(2)) {
      holders_.erase(holders_.begin() + below(static_cast<std::uint32_t>(holders_.size())));
    } else if (!known_.empty()) {
      known_.erase(known_.begin() + below(static_cast<std::uint32_t>(known_.size())));
    }
    std::erase_if(shared_, [this](const auto& one) {
      return std::ranges::none_of(holders_, [&](const auto& h) { return h.get() == one.first; });
    });
    ++happened["let go"];
  }
  const Known& any() { return known_[below(static_cast<std::uint32_t>(known_.size()))]; }

  static FaultPlan faults() {
    FaultPlan plan;
    plan.reorder = true;
    return plan;
  }
  // Several lists over segments of one layer, some of them held by others alone.
  std::vector<Wanted> wanted(std::uint32_t* layer) {
    *layer = below(kLayers);
    std::vector<Stored> of_layer;
    const auto consider = [&](const Known& one) {
      if (one.layer == *layer && of_layer.size() < 4 && below(2)) of_layer.push_back(one.stored);
    };
    for (const Known& one : known_) consider(one);
    for (const auto& [segment, one] : shared_) consider(one);
    lent_ = std::move(of_layer);
    std::vector<Wanted> lists;
    if (!lent_.empty())
      for (std::uint32_t i = 1 + below(3); i > 0; --i)
        lists.push_back(random_reads(random_, lent_, kHeads[*layer]));
    return lists;
  }
  // Where another was expected through faults, this may be the very one.
  void read(bool expected_through_faults = false) {
    std::uint32_t layer = 0;
    const auto lists = wanted(&layer);
    const std::uint64_t again = table_->counters().pages_read_again;
    const auto got =
        read_all(reader_.get(), layer, lists, below(2) ? FoldOrder::any : FoldOrder::in_list);
    if (!got) {
      lent_.clear();
      ASSERT_TRUE(expected_through_faults) << got.error().message;
      ASSERT_NE(got.error().message.find("twice"), std::string::npos) << got.error().message;
      return;
    }
    // Else what two reads share, and must not, would be made good.
    if (!expected_through_faults) {
      ASSERT_EQ(table_->counters().pages_read_again, again);
    }
    compare(*got, lists);
    ++happened["read"];
    lent_.clear();
  }
  // While one layer is read, another is expected, rightly or not; and before that is asked for
  // something may happen.
  void read_what_was_expected() {
    std::uint32_t layer = 0;
    const auto lists = wanted(&layer);
    const std::uint32_t next = below(kLayers);
    std::vector<Stored> coming;
    for (const Known& one : known_)
      if (one.layer == next && coming.size() < 3 && below(2)) coming.push_back(one.stored);
    std::vector<Wanted> all;
    for (std::uint32_t h = 0; h < kHeads[next]; ++h) all.push_back(whole(coming, h));
    const bool faulty = below(3) == 0;
    const auto got = read_all(reader_.get(), layer, lists, FoldOrder::any, [&] {
      if (faulty) sink_->set_plan(faults().with(Fault::io_error, 0.2).with(Fault::bit_flip, 0.2));
      expect_all(reader_.get(), next, all, FoldOrder::any);
    });
    if (below(4) == 0) reader_->rest();
    sink_->set_plan(faults());
    if (got) {
      compare(*got, lists);
    } else {
      ASSERT_TRUE(faulty) << got.error().message;
    }
    lent_.clear();
    switch (below(6)) {
      case 0:
        let_go();
        break;
      case 1:
        adopt(below(kLayers), 1 + below(kMostRows / 4), any_home());
        break;
      case 2:
        read(faulty);
        break;
      default:
        break;
    }
    // What `coming` holds is alive, whoever has let go of it.
    auto then = read_all(reader_.get(), next, all, FoldOrder::any);
    if (!then) {
      ASSERT_TRUE(faulty) << then.error().message;
      ASSERT_NE(then.error().message.find("twice"), std::string::npos) << then.error().message;
      then = read_all(reader_.get(), next, all, FoldOrder::any);
    }
    ASSERT_TRUE(then) << then.error().message;
    compare(*then, all);
    ++happened["expected"];
  }
  void compare(const std::vector<ListRead>& got, const std::vector<Wanted>& lists) {
    ASSERT_EQ(got.size(), lists.size());
    for (std::size_t i = 0; i < lists.size(); ++i) ASSERT_EQ(got[i], expected(lists[i]));
  }
  void read_through_faults() {
    FaultPlan plan = faults();
    plan.seed = random_();
    plan.delay = std::chrono::microseconds(20);
    for (const Fault fault : {Fault::io_error, Fault::again, Fault::short_read, Fault::delay,
                              Fault::bit_flip, Fault::misdirected, Fault::stale})
      plan.with(fault, 0.05);
    sink_->set_plan(plan);
    const FaultCounts before = sink_->counts();
    std::uint32_t layer = 0;
    const auto lists = wanted(&layer);
    const auto got = read_all(reader_.get(), layer, lists, FoldOrder::any);
    sink_->set_plan(faults());
    if (got) {
      compare(*got, lists);
    } else {
      EXPECT_NE(got.error().message.find("twice"), std::string::npos) << got.error().message;
    }
    for (std::size_t f = 0; f < kFaults; ++f)
      happened["faults"] += sink_->counts().injected[f] - before.injected[f];
    ++happened[got ? "read through faults" : "reads failed"];
    lent_.clear();
  }
  void read_what_cannot_be_read() {
    FaultPlan plan = faults();
    plan.strike = {below(2) ? Fault::io_error : Fault::bit_flip, 0, true};
    sink_->set_plan(plan);
    const FaultCounts before = sink_->counts();
    std::uint32_t layer = 0;
    const auto lists = wanted(&layer);
    const auto got = read_all(reader_.get(), layer, lists, FoldOrder::any);
    sink_->set_plan(faults());
    // A flipped bit may lie in a page between two that are wanted, which nobody looks at.
    if (got) {
      EXPECT_TRUE(plan.strike->fault == Fault::bit_flip || sink_->counts().reads == before.reads);
      compare(*got, lists);
    }
    happened["reads failed"] += !got;
    lent_.clear();
  }
  // As a step that is rolled back: reads are left behind.
  void give_up_a_read() {
    std::uint32_t layer = 0;
    const auto lists = wanted(&layer);
    std::vector<ReadRequest> requests;
    for (const Wanted& w : lists) requests.push_back({w.head, w.runs, &w.list});
    ASSERT_TRUE(reader_->start(layer, FoldOrder::any));
    ASSERT_TRUE(reader_->add(requests));
    if (below(2)) {
      ASSERT_TRUE(reader_->next());
    }
    ASSERT_TRUE(reader_->start(layer, FoldOrder::any));
    ++happened["given up"];
    lent_.clear();
  }

  void conserve() {
    budget_.check_conservation();
    std::map<const Segment*, const Known*> alive;
    for (const Known& one : known_) alive[one.stored.segment.get()] = &one;
    for (const auto& [segment, one] : shared_) alive[segment] = &one;
    std::array<std::uint64_t, kTiers> bytes{0, host_at_rest_, 0};
    std::array<std::uint64_t, kLayers> numbered{};
    for (const auto& [segment, one] : alive) {
      const std::uint64_t head = std::uint64_t{segment->rows} * segment->layout.bytes();
      if (one->home == Tier::disk) {
        const std::uint64_t pages = segment->heads * (round_up(head, kPageBytes) / kPageBytes);
        bytes[static_cast<std::size_t>(Tier::disk)] += pages * kPageBytes;
        bytes[static_cast<std::size_t>(Tier::host)] += pages * sizeof(std::uint64_t);
        numbered[one->layer] += round_up(segment->rows, kBlockRows);
      } else {
        bytes[static_cast<std::size_t>(one->home)] += head * segment->heads;
      }
    }
    // Tables that find rows grow with the row numbers that were ever in use.
    bytes[static_cast<std::size_t>(Tier::host)] +=
        kHeads[0] * (RowCache::table_bytes(120, std::max(1000u, table_->numbered_rows(0))) -
                     RowCache::table_bytes(120, 1000));
    for (const Tier tier : kAllTiers)
      ASSERT_EQ(held(tier), bytes[static_cast<std::size_t>(tier)]) << name_of(tier);
    ASSERT_EQ(scratch_->held_bytes(), bytes[static_cast<std::size_t>(Tier::disk)]);
    for (std::uint32_t l = 0; l < kLayers; ++l)
      ASSERT_GE(table_->numbered_rows(l), numbered[l]) << "layer " << l;
  }

  // Everything goes, and what is free is in one piece again: the file's bytes and the row numbers.
  void end() {
    known_.clear();
    holders_.clear();
    shared_.clear();
    conserve();
    for (std::uint32_t l = 0; l < kLayers; ++l) {
      const std::uint32_t before = table_->numbered_rows(l);
      const std::uint32_t rows = std::min(before, kSegmentRows);
      const std::uint64_t bytes = std::uint64_t{rows} * kLayouts[l].bytes() * kHeads[l];
      if (rows == 0 || bytes + 3 * kPageBytes > kRoom[2] - kRoom[2] / 4) continue;
      // Not to be read: it is longer than staging memory was made for.
      const auto all = table_->adopt(segment_of(l, rows), std::vector<std::byte>(bytes), Tier::disk,
                                     Purpose::rows);
      ASSERT_TRUE(all) << all.error().message;
      ASSERT_TRUE(table_->written());
      EXPECT_EQ(table_->numbered_rows(l), before) << "layer " << l;
    }
    conserve();
  }

  std::mt19937 random_;
  Budget budget_;
  std::unique_ptr<PageTable> table_;
  std::unique_ptr<Reader> reader_;
  ScratchFile* scratch_ = nullptr;
  FaultSink* sink_ = nullptr;
  std::uint64_t host_at_rest_ = 0;
  std::vector<Known> known_;
  std::vector<std::shared_ptr<const Segment>> holders_;
  std::map<const Segment*, Known> shared_;  // what the holders hold
  std::vector<Stored> lent_;                // that the lists at hand read
};

TEST(PageTableProperty, ItsLawsHoldAfterEveryStep) {
  std::map<std::string, std::uint64_t> happened;
  constexpr int kSeeds = 10, kSteps = 10'000;
  for (unsigned seed = 1; seed <= kSeeds; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Laws laws(seed);
    laws.go(kSteps);
    for (const auto& [what, times] : laws.happened) happened[what] += times;
    if (HasFailure()) return;
  }
  std::printf("%d steps", kSeeds * kSteps);
  for (const auto& [what, times] : happened)
    std::printf(", %s %lu", what.c_str(), static_cast<unsigned long>(times));
  std::printf("\n");
  for (const char* what :
       {"adopted", "refused", "writes failed", "shared", "let go", "given up", "truncated",
        "compacted", "read", "expected", "read through faults", "reads failed", "faults"})
    EXPECT_GT(happened[what], 100u) << what;
}

}  // namespace
}  // namespace thermocline
