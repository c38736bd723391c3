#include "runtime/fetch_launch.h"

#include <algorithm>

namespace thermocline {
namespace {

constexpr std::size_t kFoldBlocks = kFoldRows / kBlockRows;

}  // namespace

Result<FetchLaunch> FetchLaunch::open(Device* device, const CachePlan::Fetch& plan) {
  FetchLaunch launch;
  TL_TRY_ASSIGN(launch.attention_, device->open_attention(plan.work_bytes, plan.rows_bytes));
  launch.most_folds_ = plan.folds;
  launch.folds_.reserve(plan.folds);
  launch.partials_.reserve(plan.folds);
  launch.blocks_.reserve(plan.folds * kFoldBlocks);
  return launch;
}

bool FetchLaunch::add(const ReadyFold& ready, const float* query, std::uint32_t partial) {
  if (ready.fold.scored) {
    destinations_.push_back(nullptr);
    return true;
  }
  const std::size_t stride = ready.fold.key_stride, bytes = ready.rows * stride;
  const std::span<std::byte> outbox = attention_->outbox();
  if (folds_.size() == most_folds_ || sent_ + bytes > outbox.size()) return false;

  std::byte* const to = outbox.data() + sent_;
  const BlockView& any = ready.fold.blocks.front();
  const std::ptrdiff_t key_bytes = any.value - any.key;
  for (const BlockView& block : ready.fold.blocks) TL_CHECK(block.log_weight == nullptr);
  const std::size_t first_block = blocks_.size();
  for (std::uint32_t row = 0; row < ready.rows; row += kBlockRows) {
    const std::byte* const key = to + row * stride;
    const auto rows = static_cast<int>(std::min<std::uint32_t>(kBlockRows, ready.rows - row));
    blocks_.push_back({key, key + key_bytes, first_rows(rows)});
  }
  HeadFold& fold = folds_.emplace_back(HeadFold{ready.fold, query});
  fold.fold.blocks = std::span(blocks_).subspan(first_block);
  partials_.push_back(partial);
  destinations_.push_back(to);
  sent_ += round_up(bytes, kWorkApartBytes);
  row_bytes_ += bytes;
  return true;
}

Status FetchLaunch::begin(HeadShape shape) {
  TL_TRY_ASSIGN(const std::size_t begun, attention_->begin(shape, folds_, sent_));
  TL_CHECK(begun == folds_.size());  // its working memory is planned for as many as it takes
  return {};
}

void FetchLaunch::clear() {
  folds_.clear();
  blocks_.clear();
  partials_.clear();
  destinations_.clear();
  sent_ = row_bytes_ = 0;
}

}  // namespace thermocline
