// Makes GGUF files in memory: tiny sound ones with any metadata and tensors, and (through raw() and
// the knobs) unsound ones.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kernels/format/weight.h"
#include "runtime/model/gguf.h"

namespace thermocline::test {

using Bytes = std::vector<std::byte>;

Bytes bytes_of(std::string_view text);
template <typename T>
Bytes bytes_of(std::span<const T> values) {
  const auto raw = std::as_bytes(values);
  return {raw.begin(), raw.end()};
}
template <typename T>
void append(Bytes* out, T value) {
  const auto raw = std::as_bytes(std::span<const T, 1>(&value, 1));
  out->insert(out->end(), raw.begin(), raw.end());
}
void append_string(Bytes* out, std::string_view text);  // its 8-byte length, then its bytes

// Entries come in the order of the calls. bytes() may be called often.
class GgufWriter {
 public:
  GgufWriter& add_u32(std::string_view key, std::uint32_t value);
  GgufWriter& add_u64(std::string_view key, std::uint64_t value);
  GgufWriter& add_i32(std::string_view key, std::int32_t value);
  GgufWriter& add_f32(std::string_view key, float value);
  GgufWriter& add_bool(std::string_view key, bool value);
  GgufWriter& add_string(std::string_view key, std::string_view value);
  GgufWriter& add_strings(std::string_view key, std::span<const std::string> values);
  GgufWriter& add_i32s(std::string_view key, std::span<const std::int32_t> values);
  GgufWriter& add_u32s(std::string_view key, std::span<const std::uint32_t> values);
  GgufWriter& add_f32s(std::string_view key, std::span<const float> values);
  // Any entry: the type's number and the value's coded bytes (an array: element type, count,
  // items).
  GgufWriter& add_raw(std::string_view key, std::uint32_t type, const Bytes& value);

  // dims[0] is the fastest; the data must be what the type and dims ask for unless it is a test of
  // files that are wrong. Offsets are given in order, aligned.
  GgufWriter& add_tensor(std::string_view name, WeightType type, std::vector<std::uint64_t> dims,
                         Bytes data);
  GgufWriter& add_f32_tensor(std::string_view name, std::vector<std::uint64_t> dims,
                             std::span<const float> values);
  // Says anything about a tensor: the type's number and the offset are written as given.
  GgufWriter& add_raw_tensor(std::string_view name, std::uint32_t type,
                             std::vector<std::uint64_t> dims, std::uint64_t offset);

  // What the file says instead of the truth.
  GgufWriter& version(std::uint32_t value);
  GgufWriter& alignment(std::uint32_t value);  // also adds general.alignment
  GgufWriter& claim_tensors(std::uint64_t count);
  GgufWriter& claim_metadata(std::uint64_t count);

  Bytes bytes() const;
  // Everything before the tensor data, unpadded.
  std::size_t header_bytes() const;
  // Writes bytes() to a file; false if it cannot.
  bool write(const std::string& path) const;

 private:
  struct Tensor {
    std::string name;
    std::uint32_t type;
    std::vector<std::uint64_t> dims;
    std::uint64_t offset;
    Bytes data;
  };
  Bytes header() const;

  std::vector<std::pair<std::string, Bytes>> metadata_;  // key; type and value
  std::vector<Tensor> tensors_;
  std::uint32_t version_ = 3, alignment_ = 32;
  std::uint64_t data_end_ = 0;
  std::optional<std::uint64_t> claimed_tensors_, claimed_metadata_;
};

}  // namespace thermocline::test
