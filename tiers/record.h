// Values one after the other, as they are kept in a file: little-endian, nothing between them.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "kernels/base/error.h"

namespace thermocline {

static_assert(std::endian::native == std::endian::little, "records are written as memory is");

// What may stand in a record as it is: numbers, and structures of numbers without holes.
template <typename T>
concept Recordable = std::is_trivially_copyable_v<T> &&
    (std::is_arithmetic_v<T> || std::has_unique_object_representations_v<T>);

// Into memory of its own, into memory that is there, or nowhere: only to know how much it would be.
class RecordWriter {
 public:
  RecordWriter() = default;
  // Of at least as many bytes as are written.
  explicit RecordWriter(std::span<std::byte> into) : into_(into), where_(Where::there) {}
  static RecordWriter counting() {
    RecordWriter writer;
    writer.where_ = Where::nowhere;
    return writer;
  }

  template <Recordable T>
  void value(const T& value) {
    raw(std::as_bytes(std::span(&value, 1)));
  }
  // Bytes without their count: the reader knows it.
  void raw(std::span<const std::byte> bytes) {
    if (where_ == Where::own) bytes_.insert(bytes_.end(), bytes.begin(), bytes.end());
    if (where_ == Where::there && !bytes.empty()) {
      TL_CHECK(bytes.size() <= into_.size() - size_);
      std::memcpy(into_.data() + size_, bytes.data(), bytes.size());
    }
    size_ += bytes.size();
  }
  template <Recordable T>
  void list(std::span<const T> values) {
    value(static_cast<std::uint64_t>(values.size()));
    raw(std::as_bytes(values));
  }
  void text(std::string_view text) { list(std::span<const char>(text.data(), text.size())); }

  std::size_t size() const { return size_; }                   // that was written
  std::span<const std::byte> bytes() const { return bytes_; }  // of its own

 private:
  enum class Where : std::uint8_t { own, there, nowhere };
  std::vector<std::byte> bytes_;
  std::span<std::byte> into_;
  std::size_t size_ = 0;
  Where where_ = Where::own;
};

// Writes a record, or a part of one: called twice, first for its size.
using WriteRecord = std::function<void(RecordWriter*)>;
inline std::size_t size_of(const WriteRecord& write) {
  RecordWriter counting = RecordWriter::counting();
  write(&counting);
  return counting.size();
}

// Reads what a RecordWriter wrote, or what claims to be that: every length is compared with the
// bytes that are left before anything is allocated. `name` begins every error: which file it is,
// and which part of it. Of bytes that outlive it.
class RecordReader {
 public:
  RecordReader(std::span<const std::byte> bytes, std::string name)
      : bytes_(bytes), name_(std::move(name)) {}

  template <Recordable T>
  Status value(const char* field, T* out) {
    TL_TRY_ASSIGN(const auto bytes, raw(field, sizeof(T)));
    std::memcpy(out, bytes.data(), sizeof(T));
    return {};
  }
  Result<std::span<const std::byte>> raw(const char* field, std::uint64_t count) {
    if (count > bytes_.size() - at_)
      return corrupt(field, "needs ", count, " bytes at ", at_, " and ", bytes_.size() - at_,
                     " are left");
    const auto found = bytes_.subspan(at_, count);
    at_ += count;
    return found;
  }
  template <Recordable T>
  Status list(const char* field, std::vector<T>* out) {
    std::uint64_t count = 0;
    TL_TRY(value(field, &count));
    if (count > (bytes_.size() - at_) / sizeof(T))
      return corrupt(field, "has ", count, " entries and ", bytes_.size() - at_, " bytes are left");
    TL_TRY_ASSIGN(const auto bytes, raw(field, count * sizeof(T)));
    out->resize(count);
    if (count > 0) std::memcpy(out->data(), bytes.data(), bytes.size());
    return {};
  }
  Status text(const char* field, std::string* out) {
    std::vector<char> letters;
    TL_TRY(list(field, &letters));
    out->assign(letters.begin(), letters.end());
    return {};
  }
  // Nothing may follow.
  Status end() const {
    if (at_ == bytes_.size()) return {};
    return corrupt("end", "comes ", bytes_.size() - at_, " bytes late");
  }
  std::size_t left() const { return bytes_.size() - at_; }
  // An error about a field that was read and makes no sense.
  template <typename... What>
  tl::unexpected<Error> corrupt(const char* field, const What&... what) const {
    return fail(ErrorCode::corrupt, name_, ": field ", field, " ", what...);
  }

 private:
  std::span<const std::byte> bytes_;
  std::size_t at_ = 0;
  std::string name_;
};

}  // namespace thermocline
