#include "tools/thermocline/npy.h"

#include <bit>

#include "tools/thermocline/new_file.h"

namespace thermocline {
namespace {

static_assert(std::endian::native == std::endian::little, "numbers are written as they lie");

template <typename T>
Status write(const std::string& path, std::string_view type, std::span<const std::uint64_t> shape,
             std::span<const T> values) {
  std::uint64_t count = 1;
  for (const std::uint64_t size : shape) count *= size;
  TL_CHECK(count == values.size());
  return write_new_file(path,
                        {npy_header(type, shape),
                         {reinterpret_cast<const char*>(values.data()), values.size_bytes()}});
}

}  // namespace

std::string npy_header(std::string_view type, std::span<const std::uint64_t> shape) {
  std::string sizes;
  for (const std::uint64_t size : shape) sizes += std::to_string(size) + ", ";
  std::string header =
      "{'descr': '" + std::string(type) + "', 'fortran_order': False, 'shape': (" + sizes + "), }";
  // The numbers begin at a multiple of 64 bytes, after ten of magic, version and length and the
  // header's line end.
  constexpr std::size_t kBefore = 10, kAligned = 64;
  const std::size_t padding = kAligned - (kBefore + header.size() + 1) % kAligned;
  header.append(padding % kAligned, ' ');
  header += '\n';
  std::string out("\x93NUMPY\x01\x00", 8);
  out += static_cast<char>(header.size() & 0xff);
  out += static_cast<char>(header.size() >> 8);
  return out + header;
}

Status write_npy(const std::string& path, std::span<const std::uint64_t> shape,
                 std::span<const f16> values) {
  return write(path, "<f2", shape, values);
}
Status write_npy(const std::string& path, std::span<const std::uint64_t> shape,
                 std::span<const float> values) {
  return write(path, "<f4", shape, values);
}
Status write_npy(const std::string& path, std::span<const std::uint64_t> shape,
                 std::span<const std::uint32_t> values) {
  return write(path, "<u4", shape, values);
}
Status write_npy(const std::string& path, std::span<const std::uint64_t> shape,
                 std::span<const std::uint64_t> values) {
  return write(path, "<u8", shape, values);
}

}  // namespace thermocline
