#include "tiers/page_table.h"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <utility>

#include "tiers/io/checksum.h"
#include "tiers/io/errno_text.h"
#include "tiers/io/left_to_kernel.h"
#include "tiers/io/uring_sink.h"
#include "tiers/numa.h"

namespace thermocline {
namespace {

std::uint64_t offset_bytes(const Segment& segment) {
  return segment.offset.size() * sizeof(segment.offset[0]);
}

}  // namespace

Result<std::unique_ptr<PageTable>> PageTable::create(const PageTableOptions& options,
                                                     Budget* budget) {
  ChosenSink chosen;
  if (any_in_pages(options.stores)) {
    TL_TRY_ASSIGN(chosen, open_sink(options.io_backend, SinkOptions{}));
  }
  TL_TRY_ASSIGN(Stores stores, open_stores(options.stores));
  TL_TRY_ASSIGN(auto table, create(options, budget, std::move(stores), std::move(chosen.sink)));
  if (!chosen.note.empty()) table->notes_.push_back(std::move(chosen.note));
  return table;
}

Result<std::vector<std::string>> PageTable::probe(const PageTableOptions& options) {
  ChosenSink chosen;
  if (any_in_pages(options.stores)) {
    TL_TRY_ASSIGN(chosen, open_sink(options.io_backend, SinkOptions{}));
  }
  TL_TRY_ASSIGN(std::vector<std::string> notes, probe_stores(options.stores));
  if (!chosen.note.empty()) notes.push_back(std::move(chosen.note));
  return notes;
}

Result<std::unique_ptr<PageTable>> PageTable::create(const PageTableOptions& options,
                                                     Budget* budget, Stores stores,
                                                     std::unique_ptr<Sink> sink) {
  std::unique_ptr<PageTable> table(new PageTable);
  table->options_ = options;
  table->budget_ = budget;
  table->stores_ = std::move(stores);
  table->sink_ = std::move(sink);
  for (const auto& store : table->stores_)
    if (store && !store->note().empty()) table->notes_.push_back(store->note());
  table->layers_.resize(options.layers.size());
  std::uint64_t cached_bytes = 0;
  for (std::size_t l = 0; l < options.layers.size(); ++l) {
    table->layers_[l].options = options.layers[l];
    const auto& layer = options.layers[l];
    cached_bytes += layer.heads * (std::uint64_t{layer.row_cache_rows} * layer.layout.bytes() +
                                   RowCache::table_bytes(layer.row_cache_rows, layer.rows));
  }
  if (table->sink_ || table->device()) {
    TL_TRY_ASSIGN(table->staging_reservation_,
                  budget->reserve(Tier::host, Purpose::staging, options.staging_bytes));
    TL_TRY_ASSIGN(table->staging_, Buffer::create(options.staging_bytes));
  }
  if (!table->sink_) return table;  // nothing is in pages
  table->writes_ = WriteBehind(table->sink_.get(), &table->counters_, table->paged_name(),
                               options.disk_deadline);

  if (Store* const keeping = table->keeping_store()) {
    TL_TRY_ASSIGN(table->kept_, budget->reserve(keeping->facts().tier, Purpose::saved,
                                                keeping->keeper()->kept_bytes()));
  }

  if (!table->sink_->keep(table->staging_.bytes()) && options.io_backend == "auto" &&
      table->sink_->name() == "uring")
    if (std::string note = note_on_loose_memory(table->staging_.size()); !note.empty())
      table->notes_.push_back(std::move(note));
  TL_TRY_ASSIGN(table->row_cache_reservation_,
                budget->reserve(Tier::host, Purpose::row_cache, cached_bytes));
  for (Layer& layer : table->layers_) {
    const std::size_t head_bytes =
        std::size_t{layer.options.row_cache_rows} * layer.options.layout.bytes();
    TL_TRY_ASSIGN(layer.row_cache_bytes, Buffer::create(head_bytes * layer.options.heads));
    (void)NumaNodes::of_process().spread(layer.row_cache_bytes.bytes());
    for (std::uint32_t h = 0; h < layer.options.heads; ++h) {
      layer.row_cache.emplace_back(layer.row_cache_bytes.data() + h * head_bytes,
                                   layer.options.row_cache_rows, layer.options.layout.bytes());
      layer.row_cache.back().grow(layer.options.rows);
    }
    layer.rows_tabled = layer.options.rows;
  }
  if (options.read_cost)
    table->read_cost_ = *options.read_cost;
  else
    table->measure_reads();
  table->merge_gap_bytes_ = table->read_cost_.gap_bytes();
  return table;
}

// Takes no more of the home than is planned for rows, nor of what is planned in all more than the
// last publication leaves; nor longer than anybody waits for.
void PageTable::measure_reads() {
  constexpr std::uint64_t kMeasuredBytes = std::uint64_t{1} << 20;
  constexpr std::chrono::milliseconds kLongest{100};
  const auto in_pages = [](const auto& store) {
    return store && store->facts().reach == Reach::pages;
  };
  const auto store = std::ranges::find_if(stores_, in_pages);
  if (store == stores_.end()) return;
  const auto tier = static_cast<std::size_t>((*store)->facts().tier);
  std::uint64_t bytes = std::min<std::uint64_t>(kMeasuredBytes, staging_.size());
  bytes = std::min(bytes, options_.stores.bytes[tier]);
  if (const PlannedUse& planned = options_.stores.planned[tier]; planned.positions > 0) {
    std::uint64_t rows_bytes = 0;
    for (const Layer& layer : layers_)
      rows_bytes +=
          std::uint64_t{layer.options.heads} * layer.options.rows * layer.options.layout.bytes();
    bytes = std::min({bytes, rows_bytes, planned.bytes - std::min(planned.bytes, kept_.bytes())});
  }
  bytes -= bytes % kPageBytes;
  if (bytes == 0) return;
  auto piece = Slot::take(store->get(), budget_, Purpose::rows, bytes);
  if (!piece) return;  // whoever seals rows will be told
  const Space& space = piece->space();
  if (const auto measured =
          measure_read_cost(sink_.get(), space.file, space.offset, staging_.bytes().first(bytes),
                            std::chrono::steady_clock::now() + kLongest))
    read_cost_ = *measured;
  // A machine that is busy may be late with the last of them. They are waited for, since the piece
  // is nobody else's until then, and no other thread could.
  if (!quiesce()) abandoned_.push_back({Buffer(), Reservation(), std::move(*piece)});
}

PageTable::~PageTable() {
  for (const Place& place : places_) TL_CHECK(!place.used);  // a segment outlived its table
  if (!sink_ || sink_->drain(std::chrono::steady_clock::now() + options_.disk_deadline)) return;
  leave_to_kernel(std::move(staging_));
  for (Abandoned& abandoned : abandoned_) {
    leave_to_kernel(std::move(abandoned.pages));
    abandoned.slot.leave();
  }
  writes_.leave();
  leave_to_kernel(std::move(sink_));
}

Result<std::shared_ptr<Segment>> PageTable::adopt(Segment segment,
                                                  std::span<const std::byte> records, Tier home,
                                                  Purpose purpose) {
  const std::size_t row_bytes = segment.layout.bytes();
  TL_CHECK(records.size() == row_bytes * segment.rows * segment.heads);
  Store* store = stores_[static_cast<std::size_t>(home)].get();
  TL_CHECK(store != nullptr);
  Place place;
  place.used = true;
  place.home = store->facts();
  place.purpose = purpose;
  place.layer = index(segment.layer);
  place.rows = segment.rows;
  place.head_bytes = row_bytes * segment.rows;
  if (place.home.reach != Reach::pages) {
    TL_TRY_ASSIGN(place.tables,
                  budget_->reserve(Tier::host, Purpose::tables, offset_bytes(segment)));
    TL_TRY_ASSIGN(place.slot, put(records, home, purpose));
    return take_in(std::move(segment), std::move(place));
  }
  TL_TRY_ASSIGN(Pages pages, settle_in_pages(segment, records, store, &place));
  const Space space = place.slot.space();
  std::shared_ptr<Segment> taken = take_in(std::move(segment), std::move(place));
  TL_TRY(writes_.begin(taken->id, space, std::move(pages.bytes), std::move(pages.memory)));
  return taken;
}

std::shared_ptr<Segment> PageTable::take_in(Segment segment, Place place) {
  ++changes_;
  auto kept = std::make_unique<Segment>(std::move(segment));  // without memory no place is taken
  std::uint32_t id;
  if (free_ids_.empty()) {
    id = static_cast<std::uint32_t>(places_.size());
    places_.push_back(std::move(place));
  } else {
    id = free_ids_.back();
    free_ids_.pop_back();
    places_[id] = std::move(place);
  }
  kept->id = id;
  return std::shared_ptr<Segment>(kept.release(), [this](const Segment* s) {
    release(s->id);
    delete s;
  });
}

Result<Slot> PageTable::take(std::uint64_t bytes, Tier tier, Purpose purpose) {
  Store* const store = stores_[static_cast<std::size_t>(tier)].get();
  TL_CHECK(store && store->facts().reach != Reach::pages);
  return Slot::take(store, budget_, purpose, bytes);
}

Result<Slot> PageTable::put(std::span<const std::byte> bytes, Tier tier, Purpose purpose,
                            std::span<const std::byte> behind) {
  TL_TRY_ASSIGN(Slot slot, take(bytes.size() + behind.size(), tier, purpose));
  std::byte* to = slot.space().address;
  Device* const device = stores_[static_cast<std::size_t>(tier)]->device();
  for (const std::span<const std::byte> part : {bytes, behind}) {
    if (part.empty()) continue;
    if (device) {
      TL_TRY(device->write(to, part));
      counters_.device_bytes_written += part.size();
    } else {
      std::memcpy(to, part.data(), part.size());
    }
    to += part.size();
  }
  return slot;
}

Result<PageTable::Pages> PageTable::settle_in_pages(const Segment& segment,
                                                    std::span<const std::byte> records,
                                                    Store* store, Place* place) {
  const std::size_t used = place->head_bytes;  // of a head
  place->head_bytes = round_up(used, kPageBytes);
  place->epoch = ++epoch_;
  const std::size_t bytes = place->head_bytes * segment.heads;
  const std::size_t pages = bytes / kPageBytes;
  if (reads_in_flight() > 0) TL_TRY(quiesce());
  TL_TRY(write_down_to(std::max<std::uint64_t>(options_.writing_bytes, bytes) - bytes));
  TL_TRY_ASSIGN(place->slot, Slot::take(store, budget_, place->purpose, bytes));
  TL_TRY_ASSIGN(place->tables,
                budget_->reserve(Tier::host, Purpose::tables,
                                 offset_bytes(segment) + pages * sizeof(std::uint64_t)));
  TL_TRY_ASSIGN(Reservation memory, budget_->reserve(Tier::host, Purpose::sealing, bytes));
  TL_TRY_ASSIGN(Buffer image, Buffer::create(bytes));
  for (std::uint32_t h = 0; h < segment.heads; ++h) {
    std::byte* head = image.data() + h * place->head_bytes;
    std::memcpy(head, records.data() + h * used, used);
    std::memset(head + used, 0, place->head_bytes - used);
  }
  TL_TRY(number_place(place));
  place->checksum.resize(pages);
  for (std::size_t p = 0; p < pages; ++p)
    place->checksum[p] =
        page_checksum({image.data() + p * kPageBytes, kPageBytes}, identity(*place, p));
  for (std::uint32_t h = 0; h < segment.heads; ++h)
    fill_row_cache(*place, h, records.subspan(h * used, used));
  return Pages{std::move(image), std::move(memory)};
}

void PageTable::fill_row_cache(const Place& place, std::uint32_t head,
                               std::span<const std::byte> rows) {
  const Layer& layer = layers_[place.layer];
  const std::size_t row_bytes = layer.options.layout.bytes();
  RowCache& cache = layers_[place.layer].row_cache[head];
  for (std::uint32_t r = 0; r < place.rows && !cache.full(); ++r)
    if (std::byte* slot = cache.insert(place.first_row + r))
      std::memcpy(slot, rows.data() + r * row_bytes, row_bytes);
}

void PageTable::begin_warming(LayerId layer) {
  ++changes_;
  for (RowCache& cache : layers_[index(layer)].row_cache) cache.begin_step();
}

std::byte* PageTable::cache_row(const Segment& segment, std::uint32_t head, std::uint32_t row,
                                Absent absent) {
  const Place& place = places_[segment.id];
  TL_CHECK(place.home.reach == Reach::pages && row < place.rows);
  RowCache& cache = layers_[place.layer].row_cache[head];
  if (cache.find(place.first_row + row) || absent == Absent::stays_away) return nullptr;
  return cache.insert(place.first_row + row);
}

Status PageTable::number_place(Place* place) {
  Layer& layer = layers_[place->layer];
  const auto numbered = static_cast<std::uint32_t>(round_up(place->rows, kBlockRows));
  place->first_row = number_rows(&layer, numbered);
  if (layer.rows_numbered <= layer.rows_tabled) return {};
  const std::uint32_t capacity = layer.options.row_cache_rows;
  const std::uint64_t more =
      layer.options.heads * (RowCache::table_bytes(capacity, layer.rows_numbered) -
                             RowCache::table_bytes(capacity, layer.rows_tabled));
  if (Status grown = row_cache_reservation_.resize(row_cache_reservation_.bytes() + more); !grown) {
    free_row_numbers(&layer, place->first_row, numbered);
    // Numbers that the tables do not reach were never given. Else the next segment would be refused
    // for them as well, though there may be others for it.
    const auto last = std::prev(layer.free_rows.end());
    TL_CHECK(last->first + last->second == layer.rows_numbered);
    layer.rows_numbered = layer.rows_tabled;
    if (last->first < layer.rows_tabled)
      last->second = layer.rows_tabled - last->first;
    else
      layer.free_rows.erase(last);
    return grown;
  }
  layer.rows_tabled = layer.rows_numbered;
  for (RowCache& cache : layer.row_cache) cache.grow(layer.rows_tabled);
  return {};
}

void PageTable::release(std::uint32_t id) {
  ++changes_;
  Place& place = places_[id];
  writes_.let_go(id, &place.slot);
  if (place.home.reach == Reach::pages) {
    Layer& layer = layers_[place.layer];
    const std::uint32_t numbered = static_cast<std::uint32_t>(round_up(place.rows, kBlockRows));
    for (RowCache& cache : layer.row_cache) cache.forget(place.first_row, numbered);
    free_row_numbers(&layer, place.first_row, numbered);
  }
  place = Place{};
  free_ids_.push_back(id);
  recount_kept();
}

// Row numbers are reused first fit; what is left over of a range stays free.
std::uint32_t PageTable::number_rows(Layer* layer, std::uint32_t rows) {
  for (const auto& [first, free] : layer->free_rows) {
    if (free < rows) continue;
    const std::uint32_t at = first, left = free - rows;
    layer->free_rows.erase(at);
    if (left > 0) layer->free_rows.emplace(at + rows, left);
    return at;
  }
  const std::uint32_t first = layer->rows_numbered;
  layer->rows_numbered += rows;
  return first;
}

// Neighbouring ranges become one: else ever smaller pieces would serve no segment, and the row
// caches' tables would grow for as long as segments come and go.
void PageTable::free_row_numbers(Layer* layer, std::uint32_t first, std::uint32_t rows) {
  auto after = layer->free_rows.lower_bound(first);
  if (after != layer->free_rows.end() && after->first == first + rows) {
    rows += after->second;
    after = layer->free_rows.erase(after);
  }
  if (after != layer->free_rows.begin()) {
    const auto before = std::prev(after);
    if (before->first + before->second == first) {
      before->second += rows;
      return;
    }
  }
  layer->free_rows.emplace(first, rows);
}

Status PageTable::quiesce() {
  const Deadline deadline = std::chrono::steady_clock::now() + options_.disk_deadline;
  Completion done[32];
  if (sink_ && sink_->in_flight() > 0) ++changes_;
  while (sink_ && sink_->in_flight() > 0) {
    TL_TRY_ASSIGN(const WriteBehind::Polled polled, writes_.poll(done, deadline));
    if (polled.transfers == 0)
      return fail(ErrorCode::io, paged_name(), ": ", sink_->in_flight(),
                  " transfers of an earlier step did not finish within ",
                  options_.disk_deadline.count(), " ms");
  }
  abandoned_.clear();
  recount_kept();
  return {};
}

Status PageTable::move_pages(Transfer::Kind kind, const Space& space, std::uint64_t at,
                             std::span<std::byte> pages) {
  const bool writes = kind == Transfer::Kind::write;
  const std::vector<Transfer> transfers = in_pieces({kind, space.file, space.offset + at, pages});
  TL_TRY(sink_->submit(transfers));
  Completion done[32];
  Status status{};
  for (std::size_t left = transfers.size(); left > 0;) {
    // Each request has the whole time: a long segment on a slow disk is no failure.
    const auto n = sink_->poll(done, std::chrono::steady_clock::now() + options_.disk_deadline);
    if (!n) return tl::unexpected<Error>(n.error());
    if (*n == 0)
      return fail(ErrorCode::io, paged_name(), ": a ", writes ? "write" : "read", " of ",
                  pages.size(), " bytes at ", space.offset + at, " did not finish within ",
                  options_.disk_deadline.count(), " ms");
    for (std::size_t i = 0; i < *n; ++i)
      if (done[i].error != 0 && status)
        status = fail(ErrorCode::io, paged_name(), ": ", writes ? "writing " : "reading ",
                      transfers[done[i].tag].bytes.size(), " bytes at ",
                      transfers[done[i].tag].offset, " failed: ", errno_text(done[i].error));
    left -= *n;
  }
  TL_TRY(status);
  (writes ? counters_.disk_bytes_written : counters_.disk_bytes_read) += pages.size();
  return {};
}

Status PageTable::write_down_to(std::uint64_t bytes) {
  const std::size_t reads = reads_in_flight();
  Status done = writes_.shrink_to(bytes);
  if (reads_in_flight() < reads) ++changes_;
  return done;
}

Status PageTable::written() {
  TL_TRY(write_down_to(0));
  return writes_.finish();
}

std::size_t PageTable::reads_in_flight() const {
  return sink_ ? sink_->in_flight() - writes_.in_flight() : 0;
}

Status PageTable::give_up(Status failed, Buffer pages, Reservation memory, Slot slot) {
  if (sink_->in_flight() > 0)
    abandoned_.push_back({std::move(pages), std::move(memory), std::move(slot)});
  return failed;
}

const std::string& PageTable::paged_name() const {
  for (const auto& store : stores_)
    if (store && store->facts().reach == Reach::pages) return store->name();
  static const std::string kNone = "disk";
  return kNone;
}

const std::byte* PageTable::rows_at(const Segment& segment, std::uint32_t head) const {
  const Place& place = places_[segment.id];
  TL_CHECK(place.home.reach != Reach::pages);
  return place.slot.space().address + head * place.head_bytes;
}

Tier PageTable::home(const Segment& segment) const { return places_[segment.id].home.tier; }

Device* PageTable::device() const {
  const auto& store = stores_[static_cast<std::size_t>(Tier::device)];
  return store ? store->device() : nullptr;
}

}  // namespace thermocline
