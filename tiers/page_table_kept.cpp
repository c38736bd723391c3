// Segments that outlive the process: their records, and how they come back.
#include <algorithm>
#include <cstring>

#include "tiers/io/checksum.h"
#include "tiers/page_table.h"
#include "tiers/segment_record.h"

namespace thermocline {
Store* PageTable::keeping_store() const {
  for (const auto& store : stores_)
    if (store && store->keeper()) return store.get();
  return nullptr;
}

Keeper* PageTable::keeper() const {
  Store* store = keeping_store();
  return store ? store->keeper() : nullptr;
}

class PageTable::Recount {
 public:
  explicit Recount(PageTable* table) : table_(table) {}
  ~Recount() { table_->recount_kept(); }

 private:
  PageTable* table_;
};

// It grows by no more than what has just been given back to the ledger.
void PageTable::recount_kept() {
  if (const Keeper* const kept = keeper()) TL_CHECK(kept_.resize(kept->kept_bytes()).has_value());
}

Status PageTable::keep(const Segment& segment, const WriteRecord& more) {
  Place& place = places_[segment.id];
  TL_CHECK(keeping_store() && place.home.reach == Reach::pages && place.record.bytes == 0);
  const Extent rows{place.slot.space().offset, place.slot.space().bytes};
  const WriteRecord write = [&](RecordWriter* out) {
    SegmentRecord::write(segment, rows, place.epoch, place.checksum, more, out);
  };
  const std::size_t bytes = round_up(size_of(write), kPageBytes);
  TL_TRY(quiesce());
  TL_TRY_ASSIGN(Reservation memory, budget_->reserve(Tier::host, Purpose::sealing, bytes));
  TL_TRY_ASSIGN(Slot slot, Slot::take(keeping_store(), budget_, Purpose::index, bytes));
  TL_TRY_ASSIGN(Buffer image, Buffer::create(bytes));
  RecordWriter out(image.bytes());
  write(&out);
  std::memset(image.data() + out.size(), 0, bytes - out.size());
  const std::uint64_t offset = slot.space().offset;
  if (Status written = move_pages(Transfer::Kind::write, slot.space(), 0, image.bytes()); !written)
    return give_up(std::move(written), std::move(image), std::move(memory), std::move(slot));
  place.record = {offset, bytes, page_checksum(image.bytes(), offset), place.rows};
  place.record_slot = std::move(slot);
  return {};
}

PageTable::Record PageTable::record_of(const Segment& segment) const {
  const Place& place = places_[segment.id];
  TL_CHECK(place.record.bytes > 0);
  return place.record;
}

Status PageTable::publish(const WriteRecord& manifest, std::span<const Segment* const> segments) {
  TL_CHECK(keeps());
  TL_TRY(quiesce());
  const std::size_t count = 2 * segments.size();
  const std::uint64_t bytes = keeper()->publication_bytes(size_of(manifest), count);
  TL_TRY_ASSIGN(
      const Reservation memory,
      budget_->reserve(Tier::host, Purpose::sealing, bytes + kPageBytes + count * sizeof(Extent)));
  const Recount recount(this);  // when `room`, which becomes the keeper's, is no longer beside it
  TL_TRY_ASSIGN(const Reservation room,
                budget_->reserve(keeping_store()->facts().tier, Purpose::saved, bytes));
  std::vector<Extent> extents;
  extents.reserve(count);
  for (const Segment* segment : segments) {
    const Place& place = places_[segment->id];
    const Record record = record_of(*segment);
    extents.push_back({place.slot.space().offset, place.slot.space().bytes});
    extents.push_back({record.offset, record.bytes});
  }
  std::ranges::sort(extents, {}, &Extent::offset);
  TL_TRY(keeper()->publish(manifest, extents));
  counters_.disk_bytes_written += bytes;
  return {};
}

std::vector<std::byte> PageTable::take_manifest() {
  TL_CHECK(keeps());
  return keeper()->take_manifest();
}

Result<PageTable::Restored> PageTable::restore(const Record& record) {
  TL_CHECK(keeps());
  TL_TRY(quiesce());
  const std::string name = paged_name() + ": record at " + std::to_string(record.offset);
  const Recount recount(this);  // when what was claimed in vain is given back
  Place place;
  place.used = true;
  place.home = keeping_store()->facts();
  place.purpose = Purpose::rows;
  place.record = record;
  TL_TRY_ASSIGN(place.record_slot, Slot::claim(keeping_store(), budget_, Purpose::index,
                                               {record.offset, record.bytes}, &kept_));
  // As it lies in the file, and as it is read.
  TL_TRY_ASSIGN(Reservation memory,
                budget_->reserve(Tier::host, Purpose::sealing, 2 * record.bytes));
  TL_TRY_ASSIGN(Buffer image, Buffer::create(record.bytes));
  const auto read_record = [&]() -> Status {
    TL_TRY(move_pages(Transfer::Kind::read, place.record_slot.space(), 0, image.bytes()));
    if (page_checksum(image.bytes(), record.offset) == record.checksum) return {};
    return fail(ErrorCode::corrupt, name, " is damaged (the checksum does not match)",
                advice_on_damage());
  };
  Status whole = read_record();
  if (!whole && sink_->in_flight() == 0) {  // once more, as a step's pages are
    counters_.pages_read_again += record.bytes / kPageBytes;
    whole = read_record();
  }
  if (!whole)
    return tl::unexpected(
        give_up(std::move(whole), std::move(image), std::move(memory), std::move(place.record_slot))
            .error());

  TL_TRY_ASSIGN(SegmentRecord read, SegmentRecord::decode(image.bytes(), name));
  place.layer = index(read.segment.layer);
  if (place.layer >= layers_.size() || read.segment.layout != layers_[place.layer].options.layout ||
      read.segment.heads != layers_[place.layer].options.heads)
    return fail(ErrorCode::corrupt, name, ": field layout is not that of a layer ", place.layer,
                " here");
  if (read.segment.rows != record.rows)
    return fail(ErrorCode::corrupt, name, ": field rows is ", read.segment.rows, ", and ",
                record.rows, " were due");
  TL_TRY_ASSIGN(place.slot,
                Slot::claim(keeping_store(), budget_, Purpose::rows, read.rows, &kept_));
  place.rows = read.segment.rows;
  place.epoch = read.epoch;
  place.head_bytes = read.head_bytes();
  place.checksum = std::move(read.checksums);
  TL_TRY_ASSIGN(place.tables,
                budget_->reserve(Tier::host, Purpose::tables,
                                 read.segment.offset.size() * sizeof(read.segment.offset[0]) +
                                     place.checksum.size() * sizeof(place.checksum[0])));
  TL_TRY(number_place(&place));
  epoch_ = std::max(epoch_, place.epoch);
  Restored restored;
  restored.segment = take_in(std::move(read.segment), std::move(place));
  restored.more = std::move(read.more);
  warm(*restored.segment, places_[restored.segment->id]);
  return restored;
}

const char* PageTable::advice_on_damage() const {
  return keeper()
             ? ": 'thermocline session verify' says what else of it is, 'thermocline session rm' "
               "removes it, so that it is made anew from its text"
             : ": run it again, with --kv-dir on another disk if this one does it once more";
}

// Head by head, while there is room: what a sealing puts there, too. Nobody has asked for these
// rows yet, so what cannot be read is left out: whoever wants it reads it again, and is told.
void PageTable::warm(const Segment& segment, const Place& place) {
  Layer& layer = layers_[place.layer];
  const std::size_t pages = place.head_bytes / kPageBytes;
  const auto sound = [&](const Buffer& head, std::uint32_t h) {
    for (std::size_t p = 0; p < pages; ++p)
      if (page_checksum(head.bytes().subspan(p * kPageBytes, kPageBytes),
                        identity(place, h * pages + p)) != place.checksum[h * pages + p])
        return false;
    return true;
  };
  Buffer head;
  Reservation memory;
  for (std::uint32_t h = 0; h < segment.heads; ++h) {
    if (layer.row_cache[h].capacity() == 0 || layer.row_cache[h].full()) continue;
    if (head.size() == 0) {
      auto reserved = budget_->reserve(Tier::host, Purpose::sealing, place.head_bytes);
      auto made = Buffer::create(place.head_bytes);
      if (!reserved || !made) return;
      memory = std::move(*reserved);
      head = std::move(*made);
    }
    Status read =
        move_pages(Transfer::Kind::read, place.slot.space(), h * place.head_bytes, head.bytes());
    if (!read) {
      (void)give_up(std::move(read), std::move(head), std::move(memory), Slot());
      return;
    }
    counters_.pages_verified += pages;
    if (sound(head, h)) fill_row_cache(place, h, head.bytes());
  }
}

}  // namespace thermocline
