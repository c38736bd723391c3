#include "tests/support/gguf_writer.h"

#include <fstream>

namespace thermocline::test {
namespace {

template <typename T>
Bytes array_of(GgufType element, std::span<const T> values) {
  Bytes out;
  append(&out, static_cast<std::uint32_t>(element));
  append(&out, static_cast<std::uint64_t>(values.size()));
  const Bytes items = bytes_of(values);
  out.insert(out.end(), items.begin(), items.end());
  return out;
}

template <typename T>
Bytes one(T value) {
  Bytes out;
  append(&out, value);
  return out;
}

constexpr std::uint32_t id(GgufType type) { return static_cast<std::uint32_t>(type); }

std::uint64_t aligned(std::uint64_t value, std::uint64_t unit) {
  return unit == 0 ? value : (value + unit - 1) / unit * unit;
}

}  // namespace

Bytes bytes_of(std::string_view text) {
  return bytes_of(std::span<const char>(text.data(), text.size()));
}

void append_string(Bytes* out, std::string_view text) {
  append(out, static_cast<std::uint64_t>(text.size()));
  const Bytes raw = bytes_of(text);
  out->insert(out->end(), raw.begin(), raw.end());
}

GgufWriter& GgufWriter::add_raw(std::string_view key, std::uint32_t type, const Bytes& value) {
  Bytes entry = one(type);
  entry.insert(entry.end(), value.begin(), value.end());
  metadata_.emplace_back(key, std::move(entry));
  return *this;
}

GgufWriter& GgufWriter::add_u32(std::string_view key, std::uint32_t value) {
  return add_raw(key, id(GgufType::u32), one(value));
}
GgufWriter& GgufWriter::add_u64(std::string_view key, std::uint64_t value) {
  return add_raw(key, id(GgufType::u64), one(value));
}
GgufWriter& GgufWriter::add_i32(std::string_view key, std::int32_t value) {
  return add_raw(key, id(GgufType::i32), one(value));
}
GgufWriter& GgufWriter::add_f32(std::string_view key, float value) {
  return add_raw(key, id(GgufType::f32), one(value));
}
GgufWriter& GgufWriter::add_bool(std::string_view key, bool value) {
  return add_raw(key, id(GgufType::boolean), one(static_cast<std::uint8_t>(value)));
}
GgufWriter& GgufWriter::add_string(std::string_view key, std::string_view value) {
  Bytes text;
  append_string(&text, value);
  return add_raw(key, id(GgufType::string), text);
}
GgufWriter& GgufWriter::add_strings(std::string_view key, std::span<const std::string> values) {
  Bytes out = one(id(GgufType::string));
  append(&out, static_cast<std::uint64_t>(values.size()));
  for (const std::string& value : values) append_string(&out, value);
  return add_raw(key, id(GgufType::array), out);
}
GgufWriter& GgufWriter::add_i32s(std::string_view key, std::span<const std::int32_t> values) {
  return add_raw(key, id(GgufType::array), array_of(GgufType::i32, values));
}
GgufWriter& GgufWriter::add_u32s(std::string_view key, std::span<const std::uint32_t> values) {
  return add_raw(key, id(GgufType::array), array_of(GgufType::u32, values));
}
GgufWriter& GgufWriter::add_f32s(std::string_view key, std::span<const float> values) {
  return add_raw(key, id(GgufType::array), array_of(GgufType::f32, values));
}

GgufWriter& GgufWriter::add_tensor(std::string_view name, WeightType type,
                                   std::vector<std::uint64_t> dims, Bytes data) {
  const std::uint64_t offset = aligned(data_end_, alignment_);
  data_end_ = offset + data.size();
  tensors_.push_back(
      {std::string(name), info(type).gguf_id, std::move(dims), offset, std::move(data)});
  return *this;
}
GgufWriter& GgufWriter::add_f32_tensor(std::string_view name, std::vector<std::uint64_t> dims,
                                       std::span<const float> values) {
  return add_tensor(name, WeightType::f32, std::move(dims), bytes_of(values));
}
GgufWriter& GgufWriter::add_raw_tensor(std::string_view name, std::uint32_t type,
                                       std::vector<std::uint64_t> dims, std::uint64_t offset) {
  tensors_.push_back({std::string(name), type, std::move(dims), offset, {}});
  return *this;
}

GgufWriter& GgufWriter::version(std::uint32_t value) {
  version_ = value;
  return *this;
}
GgufWriter& GgufWriter::alignment(std::uint32_t value) {
  alignment_ = value;
  return add_u32("general.alignment", value);
}
GgufWriter& GgufWriter::claim_tensors(std::uint64_t count) {
  claimed_tensors_ = count;
  return *this;
}
GgufWriter& GgufWriter::claim_metadata(std::uint64_t count) {
  claimed_metadata_ = count;
  return *this;
}

Bytes GgufWriter::header() const {
  Bytes out = bytes_of("GGUF");
  append(&out, version_);
  append(&out, claimed_tensors_.value_or(tensors_.size()));
  append(&out, claimed_metadata_.value_or(metadata_.size()));
  for (const auto& [key, value] : metadata_) {
    append_string(&out, key);
    out.insert(out.end(), value.begin(), value.end());
  }
  for (const Tensor& tensor : tensors_) {
    append_string(&out, tensor.name);
    append(&out, static_cast<std::uint32_t>(tensor.dims.size()));
    for (std::uint64_t dim : tensor.dims) append(&out, dim);
    append(&out, tensor.type);
    append(&out, tensor.offset);
  }
  return out;
}

std::size_t GgufWriter::header_bytes() const { return header().size(); }

Bytes GgufWriter::bytes() const {
  Bytes out = header();
  out.resize(aligned(out.size(), alignment_));
  const std::size_t data = out.size();
  for (const Tensor& tensor : tensors_) {
    if (tensor.data.empty()) continue;
    out.resize(data + tensor.offset);
    out.insert(out.end(), tensor.data.begin(), tensor.data.end());
  }
  return out;
}

bool GgufWriter::write(const std::string& path) const {
  const Bytes all = bytes();
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file.write(reinterpret_cast<const char*>(all.data()), static_cast<std::streamsize>(all.size()));
  return static_cast<bool>(file.flush());
}

}  // namespace thermocline::test
