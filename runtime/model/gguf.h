// A GGUF model file (version 2 or 3), read only. The file is untrusted: every length is compared
// with the bytes that remain before anything is allocated, sizes are added and multiplied with
// overflow checks, and a file that is wrong anywhere is refused whole, in one line that names the
// file, the field, the offset, what was found and what to do. Nothing is ever loaded partially.
#pragma once

#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "kernels/base/error.h"
#include "kernels/format/weight.h"

namespace thermocline {

// Limits that no sound model comes near; beyond them a file is refused.
inline constexpr std::uint64_t kGgufMaxTensors = 1u << 18;
inline constexpr std::uint64_t kGgufMaxMetadata = 1u << 16;
inline constexpr std::uint64_t kGgufMaxStringBytes = 64u << 20;
inline constexpr std::uint64_t kGgufMaxNameBytes = 64u << 10;      // a key or a tensor's name
inline constexpr std::uint64_t kGgufMaxHeaderBytes = 100'000'000;  // everything before tensor data
inline constexpr std::uint64_t kGgufMaxAlignment = 1u << 20;
inline constexpr std::uint32_t kGgufMaxDims = 4;

// The types of a metadata value, numbered as in the file.
enum class GgufType : std::uint32_t {
  u8 = 0,
  i8 = 1,
  u16 = 2,
  i16 = 3,
  u32 = 4,
  i32 = 5,
  f32 = 6,
  boolean = 7,
  string = 8,
  array = 9,
  u64 = 10,
  i64 = 11,
  f64 = 12,
};
std::string_view gguf_type_name(GgufType type);  // "u32", "string" ...
std::uint64_t gguf_scalar_bytes(GgufType type);  // of one value; 0 for strings and arrays

// One metadata entry, still coded: everything in it was checked when the file was opened.
// `bytes` are the value's own (a string's text without its length; an array's elements, each string
// with its 8-byte length before it). Unaligned: read with GgufFile's getters.
struct GgufValue {
  std::string_view key;
  GgufType type = GgufType::u8;
  GgufType element = GgufType::u8;  // of an array
  std::uint64_t count = 1;          // elements of an array
  std::uint64_t offset = 0;         // of `bytes` in the file
  std::span<const std::byte> bytes;
};

// One tensor. dims[0] is the fastest, as in the file: a matrix that maps n_in values to n_out has
// dims {n_in, n_out}. Dims beyond `rank` are 1, none is 0; dims[0] is a multiple of the type's
// block.
struct TensorInfo {
  std::string_view name;
  WeightType type = WeightType::f32;
  std::string_view type_name;  // "Q4_1"; of a file whose header alone was read, any type's
  std::uint32_t rank = 0;
  std::array<std::uint64_t, kGgufMaxDims> dims{1, 1, 1, 1};
  std::uint64_t offset = 0;  // of `data` in the file
  std::span<const std::byte> data;

  std::uint64_t cols() const { return dims[0]; }
  std::uint64_t rows() const { return dims[1] * dims[2] * dims[3]; }
  WeightView view() const { return {type, data.data(), rows(), cols()}; }
  std::string shape() const;  // "576 x 49152"
};

// What get() and get_array() convert to. Integers convert losslessly or are refused (a negative or
// too large value, a float: an error that names the key); float and double take floats only, and
// integers that they hold exactly; bool takes bool; std::string_view takes strings.
template <typename T>
concept GgufScalar = std::same_as<T, bool> || std::same_as<T, std::string_view> ||
    std::same_as<T, float> || std::same_as<T, double> || std::integral<T>;

// Moves, does not copy; views and spans stay valid as long as the file (moved or not) lives.
// Immutable once open: any thread may read. The mapping is the file itself: whoever truncates a
// model while it runs takes the process down with SIGBUS, which only the program may catch.
class GgufFile {
 public:
  // How much is asked of a file: all of it; or its header alone, to show what a file is that cannot
  // be run: tensors of types that this build does not read are listed, and none has data.
  enum class Extent : std::uint8_t { whole, header };
  // Maps the file. io / not_found: it cannot be read; corrupt: it is not sound; unsupported: a
  // version, byte order or tensor type that this build does not read, with the list of what it
  // does, or one part of a split model.
  static Result<GgufFile> open(const std::string& path, Extent extent = Extent::whole);
  // The same over bytes that the caller keeps alive; `name` stands for the path in messages.
  static Result<GgufFile> parse(std::span<const std::byte> bytes, std::string name,
                                Extent extent = Extent::whole);

  GgufFile(GgufFile&& other) noexcept;
  GgufFile& operator=(GgufFile&& other) noexcept;
  ~GgufFile();

  const std::string& name() const { return name_; }
  std::uint32_t version() const { return version_; }
  std::uint64_t size_bytes() const { return bytes_.size(); }
  std::uint64_t alignment() const { return alignment_; }

  // In the file's order.
  std::span<const GgufValue> metadata() const { return values_; }
  std::span<const TensorInfo> tensors() const { return tensors_; }

  // nullptr if there is no such key.
  const GgufValue* find(std::string_view key) const;
  bool has(std::string_view key) const { return find(key) != nullptr; }

  // T: bool, an integer, float, double, std::string_view. not_found: no such key; corrupt: it has
  // another type or its value does not fit T.
  template <GgufScalar T>
  Result<T> get(std::string_view key) const;
  // `otherwise` only where the key is absent: a key of the wrong type stays an error.
  template <GgufScalar T>
  Result<T> get_or(std::string_view key, T otherwise) const {
    return has(key) ? get<T>(key) : Result<T>(otherwise);
  }
  // All elements of an array, converted as get() does. Strings are views into the file.
  template <GgufScalar T>
  Result<std::vector<T>> get_array(std::string_view key) const;

  // not_found: the message names the file and the tensor.
  Result<TensorInfo> tensor(std::string_view name) const;
  const TensorInfo* find_tensor(std::string_view name) const;  // nullptr if there is none

  // A value as `inspect` shows it, one line, control characters escaped: numbers in full, strings
  // cut at `max_bytes`, of an array the count and the first few elements.
  static std::string show(const GgufValue& value, std::size_t max_bytes = 80);

 private:
  class Parser;
  GgufFile() = default;

  std::string name_;
  std::span<const std::byte> bytes_;
  void* mapping_ = nullptr;  // of bytes_.size(), owned; nullptr when the bytes are the caller's
  std::uint32_t version_ = 0;
  std::uint64_t alignment_ = 32, data_offset_ = 0;
  std::vector<GgufValue> values_;
  std::vector<TensorInfo> tensors_;
  std::unordered_map<std::string_view, std::size_t> value_index_, tensor_index_;
};

}  // namespace thermocline
