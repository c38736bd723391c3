#include "kernels/cpu/table.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <algorithm>
#include <array>
#include <cstdint>
#include <iterator>

namespace thermocline {

extern const CpuTable kScalarTable;
extern const CpuTable kAvx2Table, kAvx512Table, kAvx512Bf16Table, kAvx512AmxTable;

namespace {

std::string_view lacking_for_scalar() { return {}; }

#if defined(__x86_64__)
struct CpuidLeaf {
  std::uint32_t a = 0, b = 0, c = 0, d = 0;
};

CpuidLeaf cpuid(std::uint32_t leaf, std::uint32_t part = 0) {
  CpuidLeaf r;  // stays zero where the leaf does not exist
  __get_cpuid_count(leaf, part, &r.a, &r.b, &r.c, &r.d);
  return r;
}

// XCR0: the registers that the operating system saves. Only to be read where OSXSAVE is set.
std::uint64_t saved_registers() {
  std::uint32_t low = 0, high = 0;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return std::uint64_t{high} << 32 | low;
}

// What CMakeLists.txt lets the compiler use in avx2.cpp.
std::string_view lacking_for_avx2() {
  const CpuidLeaf one = cpuid(1), seven = cpuid(7);
  constexpr std::uint64_t kYmmState = 0x6;
  if (!(one.c & bit_OSXSAVE) || (saved_registers() & kYmmState) != kYmmState)
    return "the operating system's support for ymm registers";
  if (!(one.c & bit_AVX)) return "AVX";
  if (!(seven.b & bit_AVX2)) return "AVX2";
  if (!(one.c & bit_FMA)) return "FMA";
  if (!(one.c & bit_F16C)) return "F16C";
  return {};
}

// And in avx512.cpp.
std::string_view lacking_for_avx512() {
  if (const std::string_view what = lacking_for_avx2(); !what.empty()) return what;
  const CpuidLeaf seven = cpuid(7);
  constexpr std::uint64_t kZmmState = 0xe6;
  if (!(seven.b & bit_AVX512F)) return "AVX512F";
  if (!(seven.b & bit_AVX512BW)) return "AVX512BW";
  if (!(seven.b & bit_AVX512DQ)) return "AVX512DQ";
  if (!(seven.b & bit_AVX512VL)) return "AVX512VL";
  if (!(seven.c & bit_AVX512VNNI)) return "AVX512VNNI";
  if ((saved_registers() & kZmmState) != kZmmState)
    return "the operating system's support for zmm registers";
  return {};
}

// And in avx512_bf16.cpp.
std::string_view lacking_for_avx512_bf16() {
  if (const std::string_view what = lacking_for_avx512(); !what.empty()) return what;
  if (!(cpuid(7, 1).a & bit_AVX512BF16)) return "AVX512_BF16";
  return {};
}

// oneDNN asks the system for the tiles' registers itself.
std::string_view lacking_for_avx512_amx() {
  if (const std::string_view what = lacking_for_avx512(); !what.empty()) return what;
  constexpr std::uint32_t kAmxBf16 = 1u << 22, kAmxTile = 1u << 24;  // of leaf 7's d
  constexpr std::uint64_t kTileState = 0x60000;
  const CpuidLeaf seven = cpuid(7);
  if (!(seven.d & kAmxTile)) return "AMX_TILE";
  if (!(seven.d & kAmxBf16)) return "AMX_BF16";
  if ((saved_registers() & kTileState) != kTileState)
    return "the operating system's support for AMX tiles";
  return {};
}
#endif

struct InstructionSet {
  const CpuTable* table;
  std::string_view (*lacking)();
};
constexpr InstructionSet kInstructionSets[] = {
    {&kScalarTable, lacking_for_scalar},
#if defined(__x86_64__)
    {&kAvx2Table, lacking_for_avx2},
    {&kAvx512Table, lacking_for_avx512},
    {&kAvx512Bf16Table, lacking_for_avx512_bf16},
    {&kAvx512AmxTable, lacking_for_avx512_amx},
#endif
};

constexpr auto kTables = [] {
  std::array<const CpuTable*, std::size(kInstructionSets)> tables{};
  std::transform(std::begin(kInstructionSets), std::end(kInstructionSets), tables.begin(),
                 [](const InstructionSet& set) { return set.table; });
  return tables;
}();

}  // namespace

std::span<const CpuTable* const> all_cpu_tables() { return kTables; }

std::string_view lacking(const CpuTable& table) {
  const auto set = std::find_if(std::begin(kInstructionSets), std::end(kInstructionSets),
                                [&](const InstructionSet& s) { return s.table == &table; });
  TL_CHECK(set != std::end(kInstructionSets));
  return set->lacking();
}

Result<const CpuTable*> choose_cpu_table(std::string_view name) {
  const CpuTable* best = nullptr;
  std::string names = "auto";
  for (const CpuTable* table : kTables) {
    names.append(", ").append(table->name);
    if (usable(*table)) best = table;
    if (name != table->name) continue;
    if (usable(*table)) return table;
    return fail(ErrorCode::unsupported, "instruction set ", name, ": this machine lacks ",
                lacking(*table), "; choose auto, or one that it has");
  }
  if (name == "auto") return best;
  return fail(ErrorCode::invalid_argument, "no instruction set is called \"", name,
              "\"; there are ", names);
}

}  // namespace thermocline
