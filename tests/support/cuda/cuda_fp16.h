// 16-bit floats of device code, on the host.
#pragma once

#include "kernels/base/half.h"

struct __half_raw {
  unsigned short x;
};
struct __half {
  __half() = default;
  explicit __half(__half_raw raw) : bits(raw.x) {}
  unsigned short bits;
};
inline __half __float2half(float x) {
  return __half(__half_raw{thermocline::to_f16(x).bits});
}
inline float __half2float(__half half) {
  return thermocline::to_float(thermocline::f16{half.bits});
}
inline __half __float2half_rn(float x) { return __half(__half_raw{thermocline::to_f16(x).bits}); }
inline unsigned short __half_as_ushort(__half half) { return half.bits; }
