// The headers that rooms share compile under nvcc, which is stricter than g++ on implicit moves,
// and mean the same there. shared_headers.inc is written by CMake.
#include "shared_headers.inc"

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <type_traits>

#include "kernels/cuda/attend.h"

namespace thermocline {
namespace {

class MoveOnly {
 public:
  static Result<MoveOnly> create(int value) {
    if (value < 0) return fail(ErrorCode::invalid_argument, "value ", value, " is negative");
    MoveOnly made;
    made.value_ = std::make_unique<int>(value);
    return made;  // a move into the Result
  }
  int value() const { return *value_; }

 private:
  std::unique_ptr<int> value_;
};

Status accept(int value) {
  TL_TRY(MoveOnly::create(value));
  return {};
}

Result<std::unique_ptr<int>> doubled(int value) {
  TL_TRY(accept(value));
  TL_TRY_ASSIGN(const MoveOnly made, MoveOnly::create(value));
  auto twice = std::make_unique<int>(2 * made.value());
  return twice;
}

TEST(SharedHeaders, ResultsMoveUnderNvcc) {
  const auto good = doubled(21);
  ASSERT_TRUE(good.has_value());
  EXPECT_EQ(**good, 42);
  const auto bad = doubled(-1);
  ASSERT_FALSE(bad.has_value());
  EXPECT_EQ(bad.error().code, ErrorCode::invalid_argument);
  EXPECT_EQ(bad.error().message, "value -1 is negative");
  static_assert(std::is_move_constructible_v<Result<MoveOnly>>);
  static_assert(!std::is_copy_constructible_v<Result<MoveOnly>>);
}

TEST(SharedHeaders, HalvesConvertUnderNvcc) {
  for (std::uint32_t bits = 0; bits < 0x7c00; ++bits) {
    const f16 half{static_cast<std::uint16_t>(bits)};
    ASSERT_EQ(to_f16(to_float(half)).bits, bits);
  }
}

}  // namespace
}  // namespace thermocline
