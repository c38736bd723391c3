// Decode attention on the device: the algebra of kernels/attend.h, a layer of a step in one launch.
// A fold's partial state depends on the fold alone (its rows by rank), and partials are merged in
// list order: the same bits wherever rows lie and whatever else is in the launch.
#pragma once

#include <cstdint>
#include <span>
#include <type_traits>

#include "kernels/attend.h"
#include "kernels/cuda/stream.h"

namespace thermocline::cuda {

inline constexpr std::uint32_t kMaxHeadDim = 256;  // of keys and of values, in steps of 16
inline constexpr std::uint32_t kMaxHeads = 1024;   // query heads a KV head

static_assert(std::is_trivially_copyable_v<HeadFold>);  // copied to the device as bytes

// Attention states in device memory: max and sum are [states][heads], acc is
// [states][heads][value_dim].
struct States {
  float* max = nullptr;
  float* sum = nullptr;
  float* acc = nullptr;
};

// Whether these kernels take heads of this shape and folds like `fold`, of which only its formats
// and whether it is scored matter: what a method chooses, so to be asked before anything is queued.
// unsupported names the limit.
Status can_attend(HeadShape shape, const Fold& fold);

// Both only queue work and allocate nothing; the spans are in memory that the device reaches and
// stay as they are until the stream has got there.
//
// Fold i becomes state i of `partial`, which is overwritten. All pointers of a fold, those in its
// blocks included, are to memory that the device reaches: its own, or pinned. Rows and their
// strides are aligned to 2 bytes (in f16, at 16 they take a quarter of the loads). A fold of more
// than kFoldRows rows, or that can_attend() refuses, stops the kernel, and with it the device's
// context. Keys at low rank are floats by then, as rebuild() left them.
Status attend(Stream& stream, HeadShape shape, std::span<const HeadFold> folds, States partial);

// List i is partials [first[i], first[i + 1]), merged in their order into state i of `merged`,
// which is overwritten: the identity where a list is empty. Its bits depend on those that are not
// empty, wherever others are between them. `first` has one entry more than there are lists.
Status merge(Stream& stream, HeadShape shape, States partial, std::span<const std::uint32_t> first,
             States merged);

}  // namespace thermocline::cuda
