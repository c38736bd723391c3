// Segments that outlive the process: their records, and how they come back.
#include <algorithm>
#include <cstring>

#include "tiers/io/checksum.h"
#include "tiers/page_table.h"

namespace thermocline {
namespace {

// A record's own fields, before its lists.
struct Fields {
  std::uint32_t layer = 0, heads = 0, rows = 0, first_position = 0;
  std::uint32_t key_format = 0, value_format = 0, key_bytes = 0, value_bytes = 0;
  std::uint64_t rows_offset = 0, rows_bytes = 0, epoch = 0;
};

bool same_layout(const Fields& fields, const RowLayout& layout) {
  return fields.key_format == static_cast<std::uint32_t>(layout.key_format) &&
         fields.value_format == static_cast<std::uint32_t>(layout.value_format) &&
         fields.key_bytes == layout.key_bytes && fields.value_bytes == layout.value_bytes;
}

}  // namespace

Store* PageTable::keeping_store() const {
  for (const auto& store : stores_)
    if (store && store->keeper()) return store.get();
  return nullptr;
}

Keeper* PageTable::keeper() const {
  Store* store = keeping_store();
  return store ? store->keeper() : nullptr;
}

Status PageTable::keep(const Segment& segment, std::span<const std::byte> more) {
  Place& place = places_[segment.id];
  TL_CHECK(keeping_store() && place.home.reach == Reach::pages && place.record.bytes == 0);
  const Space& rows = place.slot.space();
  RecordWriter out;
  Fields fields{place.layer, segment.heads, segment.rows, segment.first_position};
  fields.key_format = static_cast<std::uint32_t>(segment.layout.key_format);
  fields.value_format = static_cast<std::uint32_t>(segment.layout.value_format);
  fields.key_bytes = segment.layout.key_bytes;
  fields.value_bytes = segment.layout.value_bytes;
  fields.rows_offset = rows.offset;
  fields.rows_bytes = rows.bytes;
  fields.epoch = place.epoch;
  out.value(fields);
  out.list(std::span<const std::uint64_t>(place.checksum));
  out.list(std::span<const std::uint16_t>(segment.offset));
  out.list(more);

  const std::size_t bytes = round_up(out.bytes().size(), kPageBytes);
  TL_TRY(quiesce());
  TL_TRY_ASSIGN(Reservation memory, budget_->reserve(Tier::host, Purpose::sealing, bytes));
  TL_TRY_ASSIGN(Slot slot, Slot::take(keeping_store(), budget_, Purpose::index, bytes));
  TL_TRY_ASSIGN(Buffer image, Buffer::create(bytes));
  std::memcpy(image.data(), out.bytes().data(), out.bytes().size());
  std::memset(image.data() + out.bytes().size(), 0, bytes - out.bytes().size());
  const std::uint64_t offset = slot.space().offset;
  if (Status written = move_pages(Transfer::Kind::write, slot.space(), 0, image.bytes()); !written)
    return give_up(std::move(written), std::move(image), std::move(memory), std::move(slot));
  place.record = {offset, bytes, page_checksum(image.bytes(), offset)};
  place.record_slot = std::move(slot);
  return {};
}

PageTable::Record PageTable::record_of(const Segment& segment) const {
  const Place& place = places_[segment.id];
  TL_CHECK(place.record.bytes > 0);
  return place.record;
}

Status PageTable::publish(std::span<const std::byte> manifest,
                          std::span<const Segment* const> segments) {
  TL_CHECK(keeps());
  TL_TRY(quiesce());
  std::vector<Extent> extents;
  for (const Segment* segment : segments) {
    const Place& place = places_[segment->id];
    const Record record = record_of(*segment);
    extents.push_back({place.slot.space().offset, place.slot.space().bytes});
    extents.push_back({record.offset, record.bytes});
  }
  RecordWriter out;
  out.value(epoch_);
  out.raw(manifest);
  return keeper()->publish(out.bytes(), extents);
}

Result<std::vector<std::byte>> PageTable::manifest() const {
  TL_CHECK(keeps());
  const auto published = keeper()->manifest();
  if (published.empty()) return std::vector<std::byte>();
  RecordReader in(published, paged_name());
  std::uint64_t epoch = 0;
  TL_TRY(in.value("epoch", &epoch));
  const auto rest = published.subspan(sizeof(epoch));
  return std::vector<std::byte>(rest.begin(), rest.end());
}

Result<PageTable::Restored> PageTable::restore(const Record& record) {
  TL_CHECK(keeps());
  TL_TRY(quiesce());
  const std::string name = paged_name() + ": record at " + std::to_string(record.offset);
  Place place;
  place.used = true;
  place.home = keeping_store()->facts();
  place.purpose = Purpose::rows;
  place.record = record;
  TL_TRY_ASSIGN(place.record_slot, Slot::claim(keeping_store(), budget_, Purpose::index,
                                               {record.offset, record.bytes}));
  TL_TRY_ASSIGN(Reservation memory, budget_->reserve(Tier::host, Purpose::sealing, record.bytes));
  TL_TRY_ASSIGN(Buffer image, Buffer::create(record.bytes));
  if (Status read = move_pages(Transfer::Kind::read, place.record_slot.space(), 0, image.bytes());
      !read)
    return tl::unexpected(
        give_up(std::move(read), std::move(image), std::move(memory), std::move(place.record_slot))
            .error());
  if (page_checksum(image.bytes(), record.offset) != record.checksum)
    return fail(ErrorCode::corrupt, name, " is damaged (the checksum does not match)");

  RecordReader in(image.bytes(), name);
  Fields fields;
  Segment segment;
  Restored restored;
  TL_TRY(in.value("segment", &fields));
  TL_TRY(in.list("checksums", &place.checksum));
  TL_TRY(in.list("offsets", &segment.offset));
  TL_TRY(in.list("more", &restored.more));
  if (fields.layer >= layers_.size())
    return in.corrupt("layer", "is ", fields.layer, " of ", layers_.size());
  const PageTableOptions::Layer& layer = layers_[fields.layer].options;
  if (!same_layout(fields, layer.layout) || fields.heads != layer.heads)
    return in.corrupt("layout", "is not that of layer ", fields.layer);
  if (fields.rows == 0 || fields.rows > kSegmentRows ||
      fields.first_position > ~std::uint32_t{0} - fields.rows)
    return in.corrupt("rows", "is ", fields.rows, " from position ", fields.first_position);
  segment.layer = LayerId{fields.layer};
  segment.layout = layer.layout;
  segment.heads = fields.heads;
  segment.rows = fields.rows;
  segment.first_position = fields.first_position;
  place.layer = fields.layer;
  place.rows = fields.rows;
  place.epoch = fields.epoch;
  place.head_bytes = round_up(std::uint64_t{layer.layout.bytes()} * fields.rows, kPageBytes);
  TL_TRY(check_record(segment, place, {fields.rows_offset, fields.rows_bytes}, in));
  TL_TRY_ASSIGN(place.slot, Slot::claim(keeping_store(), budget_, Purpose::rows,
                                        {fields.rows_offset, fields.rows_bytes}));
  TL_TRY_ASSIGN(place.tables,
                budget_->reserve(Tier::host, Purpose::tables,
                                 segment.offset.size() * sizeof(segment.offset[0]) +
                                     place.checksum.size() * sizeof(place.checksum[0])));
  TL_TRY(number_place(&place));
  epoch_ = std::max(epoch_, place.epoch);
  restored.segment = take_in(std::move(segment), std::move(place));
  TL_TRY(warm(*restored.segment, places_[restored.segment->id]));
  return restored;
}

Status PageTable::check_record(const Segment& segment, const Place& place, const Extent& rows,
                               const RecordReader& in) const {
  if (rows.bytes != place.head_bytes * segment.heads ||
      place.checksum.size() != rows.bytes / kPageBytes)
    return in.corrupt("rows_bytes", "is ", rows.bytes, " with ", place.checksum.size(),
                      " checksums, for ", segment.rows, " rows of ", segment.heads, " heads");
  const std::size_t offsets = std::size_t{segment.heads} * segment.rows;
  if (!segment.offset.empty() && segment.offset.size() != offsets)
    return in.corrupt("offsets", "has ", segment.offset.size(), " entries for ", offsets, " rows");
  for (const std::uint16_t offset : segment.offset)
    if (offset >= segment.rows)
      return in.corrupt("offsets", "has ", offset, " of ", segment.rows, " rows");
  return {};
}

// Head by head, while there is room: what a sealing puts there, too.
Status PageTable::warm(const Segment& segment, const Place& place) {
  Layer& layer = layers_[place.layer];
  const std::size_t pages = place.head_bytes / kPageBytes;
  Buffer head;
  Reservation memory;
  for (std::uint32_t h = 0; h < segment.heads; ++h) {
    if (layer.row_cache[h].capacity() == 0 || layer.row_cache[h].full()) continue;
    if (head.size() == 0) {
      TL_TRY_ASSIGN(memory, budget_->reserve(Tier::host, Purpose::sealing, place.head_bytes));
      TL_TRY_ASSIGN(head, Buffer::create(place.head_bytes));
    }
    TL_TRY(
        move_pages(Transfer::Kind::read, place.slot.space(), h * place.head_bytes, head.bytes()));
    for (std::size_t p = 0; p < pages; ++p)
      if (page_checksum(head.bytes().subspan(p * kPageBytes, kPageBytes),
                        identity(place, h * pages + p)) != place.checksum[h * pages + p])
        return fail(ErrorCode::corrupt, paged_name(), ": the page at ",
                    place.slot.space().offset + (h * pages + p) * kPageBytes,
                    " is damaged (the checksum does not match)");
    counters_.pages_verified += pages;
    fill_row_cache(place, h, head.bytes());
  }
  return {};
}

}  // namespace thermocline
