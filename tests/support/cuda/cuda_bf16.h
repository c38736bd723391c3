// bf16 of device code, on the host.
#pragma once

#include "kernels/base/half.h"

using __nv_bfloat16 = thermocline::bf16;
inline __nv_bfloat16 __float2bfloat16_rn(float x) { return thermocline::to_bf16(x); }
