#include "kernels/cpu/make_table.h"
#include "kernels/cpu/vec_avx2.h"
#include "kernels/cpu/vec_avx512.h"

namespace thermocline {

extern const CpuTable kAvx512Table, kAvx512AmxTable;
constinit const CpuTable kAvx512Table = make_table<VecAvx512, VecAvx2>("avx512", GemmType::f32);

// Where there is AMX, bf16 is fast in oneDNN's tiles, and pairs of it are half as fast as floats in
// vector registers (Sapphire Rapids): so attention stays with floats.
constinit const CpuTable kAvx512AmxTable =
    make_table<VecAvx512, VecAvx2>("avx512_amx", GemmType::bf16);

}  // namespace thermocline
