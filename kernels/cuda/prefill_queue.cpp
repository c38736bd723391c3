#include "kernels/cuda/prefill_queue.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "kernels/cuda/attend.h"
#include "kernels/cuda/make_current.h"
#include "kernels/cuda/pieces.h"
#include "kernels/device.h"

namespace thermocline::cuda {
namespace {

constexpr std::size_t kPieces = 2;
constexpr std::size_t kStretchBytes =
    round_up(DevicePrefill::kMostStretches * sizeof(RowStretch), kWorkApartBytes);
// Lists of a launch: the stretches, then where each KV head's begin.
constexpr std::size_t kListBytes =
    kStretchBytes + round_up((std::size_t{kMaxHeads} + 1) * sizeof(std::uint32_t), kWorkApartBytes);

// Queries and states, cut from `memory`, or counted.
std::size_t cut(std::byte* memory, const PrefillShape& shape, std::byte** queries,
                PrefillStates* states) {
  const std::size_t count = std::size_t{tiles_of(shape)} * kPrefillTile * shape.kv_heads;
  Pieces pieces(memory);
  pieces.take(shape.rows * shape.query_row_bytes(), queries);
  pieces.take(count, &states->max);
  pieces.take(count, &states->sum);
  pieces.take(count * shape.head.value_dim, &states->acc);
  return pieces.bytes();
}

}  // namespace

PrefillBytes PrefillQueue::bytes(const PrefillShape& shape, std::uint32_t row_bytes,
                                 std::uint64_t piece) {
  PrefillBytes bytes;
  bytes.piece = round_up(std::max({piece, shape.query_row_bytes(), shape.result_row_bytes(),
                                   std::uint64_t{kFoldRows} * row_bytes,
                                   std::uint64_t{kBlockRows} * shape.kv_heads * row_bytes}),
                         kWorkApartBytes);
  std::byte* queries = nullptr;
  PrefillStates states;
  bytes.host = kPieces * (bytes.piece + kListBytes);
  bytes.device = bytes.host + cut(nullptr, shape, &queries, &states);
  return bytes;
}

Result<std::unique_ptr<PrefillQueue>> PrefillQueue::create(std::uint32_t number,
                                                           const PrefillBytes& bytes) {
  TL_CHECK(bytes.piece % kWorkApartBytes == 0);
  TL_TRY(make_current(number));
  TL_TRY_ASSIGN(Stream copies, Stream::create());
  TL_TRY_ASSIGN(Stream work, Stream::create());
  std::unique_ptr<PrefillQueue> made(
      new PrefillQueue(number, bytes, std::move(copies), std::move(work)));
  TL_TRY_ASSIGN(made->device_,
                take_device_bytes(bytes.device, "taking device memory for a prefill"));
  TL_TRY_ASSIGN(made->pinned_, take_pinned_bytes(bytes.host));
  const std::size_t of_one = bytes.piece + kListBytes;
  TL_CHECK(kPieces * of_one <= std::min(bytes.device, bytes.host));
  for (std::size_t i = 0; i < kPieces; ++i) {
    TL_TRY_ASSIGN(Event copied, Event::create());
    TL_TRY_ASSIGN(Event used, Event::create());
    made->pieces_.push_back({made->pinned_.get() + i * of_one, made->device_.get() + i * of_one,
                             std::move(copied), std::move(used)});
  }
  return made;
}

// What is queued reads and writes memory that goes now.
PrefillQueue::~PrefillQueue() { static_cast<void>(wait()); }

Status PrefillQueue::wait() {
  const Status copied = copies_.wait();
  TL_TRY(work_.wait());
  return copied;
}

Status PrefillQueue::begin(const PrefillShape& shape) {
  TL_TRY(make_current(number_));
  TL_TRY(wait());
  shape_ = shape;
  const std::size_t pieces = kPieces * (bytes_.piece + kListBytes);
  TL_CHECK(pieces + cut(device_.get() + pieces, shape, &queries_, &states_) <= bytes_.device);
  return clear_states(work_, shape_, states_);
}

PrefillQueue::Piece& PrefillQueue::turn() {
  return pieces_[std::exchange(next_, (next_ + 1) % kPieces)];
}

Result<std::span<std::byte>> PrefillQueue::outbox() {
  TL_TRY(make_current(number_));
  TL_TRY(pieces_[next_].copied.wait());
  return std::span(pieces_[next_].here, bytes_.piece);
}

Status PrefillQueue::copy_over(std::byte* there, const std::byte* here, std::size_t bytes) {
  return copies_.copy(there, here, bytes, cudaMemcpyHostToDevice,
                      "copying a prefill's rows to a device");
}

Status PrefillQueue::send_queries(std::uint32_t first, std::uint32_t rows) {
  TL_CHECK(first + rows <= shape_.rows && rows * shape_.query_row_bytes() <= bytes_.piece);
  TL_TRY(make_current(number_));
  Piece& piece = turn();
  TL_TRY(copy_over(queries_ + first * shape_.query_row_bytes(), piece.here,
                   rows * shape_.query_row_bytes()));
  TL_TRY(piece.copied.record(copies_));
  return piece.copied.hold_back(work_);
}

PrefillLaunch PrefillQueue::list(const StretchFormat& format, std::span<const RowStretch> stretches,
                                 std::uint64_t sent, const Piece& piece) const {
  PrefillLaunch launch;
  launch.format = format;
  auto* const here = reinterpret_cast<RowStretch*>(piece.here + bytes_.piece);
  auto* const first_of_head =
      reinterpret_cast<std::uint32_t*>(piece.here + bytes_.piece + kStretchBytes);
  std::uint64_t oldest = ~std::uint64_t{0}, newest = 0;  // positions of masked rows
  std::uint32_t head = 0;
  for (std::size_t i = 0; i < stretches.size(); ++i) {
    RowStretch stretch = stretches[i];
    TL_CHECK(stretch.count > 0 && stretch.head < shape_.kv_heads && stretch.head + 1 >= head);
    while (head <= stretch.head) first_of_head[head++] = static_cast<std::uint32_t>(i);
    if (sent > 0) {
      const std::uint64_t bytes = std::uint64_t{stretch.count} * format.row_bytes;
      TL_CHECK(stretch.rows >= piece.here && stretch.rows + bytes <= piece.here + sent);
      stretch.rows = piece.there + (stretch.rows - piece.here);
    }
    oldest = std::min<std::uint64_t>(oldest, stretch.first_position);
    newest =
        std::max<std::uint64_t>(newest, std::uint64_t{stretch.first_position} + stretch.count - 1);
    here[i] = stretch;
  }
  while (head <= shape_.kv_heads)
    first_of_head[head++] = static_cast<std::uint32_t>(stretches.size());
  launch.stretches = reinterpret_cast<const RowStretch*>(piece.there + bytes_.piece);
  launch.first_of_head =
      reinterpret_cast<const std::uint32_t*>(piece.there + bytes_.piece + kStretchBytes);
  launch.last_tile = tiles_of(shape_);
  if (!format.masked) return launch;
  // Queries from the oldest row on, and up to those whose window begins behind the newest.
  const auto tile_of = [&](std::uint64_t position) {
    const std::uint64_t row = position - std::min<std::uint64_t>(position, shape_.first_position);
    return static_cast<std::uint32_t>(
        std::min<std::uint64_t>(row * shape_.head.heads / kPrefillTile, launch.last_tile));
  };
  launch.first_tile = tile_of(oldest);
  if (shape_.window > 0) {
    const std::uint64_t end = newest + shape_.window;
    if (end < shape_.first_position)
      launch.last_tile = 0;
    else
      launch.last_tile = std::min(launch.last_tile, tile_of(end) + 1);
  }
  return launch;
}

Status PrefillQueue::attend(const StretchFormat& format, std::span<const RowStretch> stretches,
                            std::uint64_t sent) {
  TL_CHECK(stretches.size() <= kMostStretches && sent <= bytes_.piece);
  if (stretches.empty()) return {};
  TL_TRY(make_current(number_));
  Piece& piece = turn();
  TL_TRY(piece.copied.wait());  // or its lists would be others
  const PrefillLaunch launch = list(format, stretches, sent, piece);
  TL_TRY(piece.used.hold_back(copies_));
  if (sent > 0) TL_TRY(copy_over(piece.there, piece.here, sent));
  TL_TRY(copy_over(piece.there + bytes_.piece, piece.here + bytes_.piece, kListBytes));
  TL_TRY(piece.copied.record(copies_));
  TL_TRY(piece.copied.hold_back(work_));
  TL_TRY(attend_tiles(work_, shape_, queries_, launch, states_));
  return piece.used.record(work_);
}

std::uint32_t PrefillQueue::rows_of_results() const {
  return static_cast<std::uint32_t>(
      std::min<std::uint64_t>(bytes_.piece / shape_.result_row_bytes(), shape_.rows));
}

Status PrefillQueue::queue_results(std::uint32_t first) {
  Piece& piece = pieces_[first / rows_of_results() % kPieces];
  const std::uint32_t rows = std::min(rows_of_results(), shape_.rows - first);
  TL_TRY(piece.copied.hold_back(work_));
  TL_TRY(finish_rows(work_, shape_, states_, first, rows, reinterpret_cast<float*>(piece.here)));
  return piece.used.record(work_);
}

Result<MatView<const float>> PrefillQueue::results(std::uint32_t first) {
  const std::uint32_t most = rows_of_results();
  TL_CHECK(first < shape_.rows && first % most == 0);
  TL_TRY(make_current(number_));
  if (first == 0) TL_TRY(queue_results(0));
  if (first + most < shape_.rows) TL_TRY(queue_results(first + most));
  const Piece& piece = pieces_[first / most % kPieces];
  TL_TRY(piece.used.wait());
  return MatView<const float>(reinterpret_cast<const float*>(piece.here),
                              std::min(most, shape_.rows - first),
                              shape_.result_row_bytes() / sizeof(float));
}

}  // namespace thermocline::cuda
