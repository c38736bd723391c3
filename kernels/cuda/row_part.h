// What a lane of a warp reads of a coded row: kPart neighbouring channels. Device code.
//
// A reader has
//   Raw                       the bytes of a part, in registers
//   load(row, dim, part)      asks for them; nothing waits yet
//   unpack(raw, out)          out[kPart]: the floats that kernels/format/row.h defines
// so that several rows can be asked for before the first is needed.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "kernels/format/q8_0.h"
#include "kernels/format/row_int8.h"
#include "kernels/format/row_rotated.h"

namespace thermocline::cuda {

inline constexpr int kPart = 8;  // 16 bytes of f16, the widest load

__device__ inline float half_bits_to_float(unsigned bits) {
  const __half_raw raw = {static_cast<unsigned short>(bits)};
  return __half2float(__half(raw));
}

template <typename T>
__device__ T read_as(const std::byte* at) {
  return *reinterpret_cast<const T*>(at);
}

// Rows lie at 2 bytes, nearly all at 4.
__device__ inline unsigned read_word(const std::byte* at) {
  if (reinterpret_cast<std::uintptr_t>(at) % sizeof(unsigned) == 0) return read_as<unsigned>(at);
  return read_as<std::uint16_t>(at) | unsigned{read_as<std::uint16_t>(at + 2)} << 16;
}

// At 16 bytes they take a quarter of the loads. (Beside bytes f16 lies at 2 or 4.)
struct PartF16 {
  using Raw = uint4;
  __device__ static Raw load(const std::byte* row, std::uint32_t, int part) {
    const std::byte* at = row + part * kPart * 2;
    if (reinterpret_cast<std::uintptr_t>(at) % sizeof(uint4) == 0) return read_as<uint4>(at);
    return {read_word(at), read_word(at + 4), read_word(at + 8), read_word(at + 12)};
  }
  __device__ static void unpack(const Raw& raw, float* out) {
    const unsigned pairs[] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (int i = 0; i < kPart / 2; ++i) {
      out[2 * i] = half_bits_to_float(pairs[i] & 0xffffu);
      out[2 * i + 1] = half_bits_to_float(pairs[i] >> 16);
    }
  }
};

// A key that was rebuilt (rebuild.h), at 16 bytes.
struct PartF32 {
  struct Raw {
    float4 halves[2];
  };
  __device__ static Raw load(const std::byte* row, std::uint32_t, int part) {
    const auto* at = reinterpret_cast<const float4*>(row) + part * kPart / 4;
    return {{at[0], at[1]}};
  }
  __device__ static void unpack(const Raw& raw, float* out) {
#pragma unroll
    for (int i = 0; i < kPart / 4; ++i) {
      out[4 * i] = raw.halves[i].x;
      out[4 * i + 1] = raw.halves[i].y;
      out[4 * i + 2] = raw.halves[i].z;
      out[4 * i + 3] = raw.halves[i].w;
    }
  }
};

struct PartInt8 {
  struct Raw {
    unsigned codes[2];
    std::uint16_t scale;
  };
  __device__ static Raw load(const std::byte* row, std::uint32_t dim, int part) {
    const std::byte* at = row + part * kPart;
    return {{read_word(at), read_word(at + 4)}, read_as<std::uint16_t>(row + dim)};
  }
  __device__ static void unpack(const Raw& raw, float* out) {
    const float scale = half_bits_to_float(raw.scale);
#pragma unroll
    for (int i = 0; i < kPart; ++i)
      out[i] =
          static_cast<float>(static_cast<std::int8_t>(raw.codes[i / 4] >> 8 * (i % 4))) * scale;
  }
};

// Codes lie at 2 bytes, every other group's: each is read by halves, so that lanes do the same.
struct PartQ8_0 {
  static constexpr int kParts = kRowGroup / kPart;  // of a group
  struct Raw {
    std::uint16_t pairs[kPart / 2];
    std::uint16_t scale;
  };
  __device__ static Raw load(const std::byte* row, std::uint32_t, int part) {
    const std::byte* group = row + part / kParts * sizeof(Q8_0::Block);
    const std::byte* at = group + offsetof(Q8_0::Block, word) + part % kParts * kPart;
    return {{read_as<std::uint16_t>(at), read_as<std::uint16_t>(at + 2),
             read_as<std::uint16_t>(at + 4), read_as<std::uint16_t>(at + 6)},
            read_as<std::uint16_t>(group)};
  }
  __device__ static void unpack(const Raw& raw, float* out) {
    const float scale = half_bits_to_float(raw.scale);
#pragma unroll
    for (int i = 0; i < kPart; ++i)
      out[i] =
          static_cast<float>(static_cast<std::int8_t>(raw.pairs[i / 2] >> 8 * (i % 2))) * scale;
  }
};

// Of the rotated row.
template <int kBits>
struct PartRotated {
  using Row = RowRotated<kBits>;
  struct Raw {
    unsigned codes;
    std::uint16_t scale;
  };
  __device__ static Raw load(const std::byte* row, std::uint32_t dim, int part) {
    const std::byte* at = row + part * kPart * kBits / 8;
    Raw raw = {read_as<std::uint16_t>(at), read_as<std::uint16_t>(row + Row::codes_bytes(dim))};
    if constexpr (kBits == 4) raw.codes |= unsigned{read_as<std::uint16_t>(at + 2)} << 16;
    return raw;
  }
  __device__ static void unpack(const Raw& raw, float* out) {
    const float scale = half_bits_to_float(raw.scale);
#pragma unroll
    for (int i = 0; i < kPart; ++i)
      out[i] =
          (static_cast<float>(raw.codes >> i * kBits & (Row::kLevels - 1)) - Row::kMiddle) * scale;
  }
};

}  // namespace thermocline::cuda
