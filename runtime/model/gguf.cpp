#include "runtime/model/gguf.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>
#include <variant>

#include "runtime/model/quoted.h"
#include "tiers/io/descriptor.h"

// The file's numbers are read as they lie.
static_assert(std::endian::native == std::endian::little);

namespace thermocline {
namespace {

// A scalar as the widest type of its kind.
using Wide = std::variant<std::uint64_t, std::int64_t, float, double, bool, std::string_view>;

template <typename T>
T load(const std::byte* from) {
  T value;
  std::memcpy(&value, from, sizeof(T));
  return value;
}

// `from` is a scalar of `type`, checked when the file was opened; not for strings and arrays.
Wide wide(GgufType type, const std::byte* from) {
  switch (type) {
    case GgufType::u8:
      return std::uint64_t{load<std::uint8_t>(from)};
    case GgufType::u16:
      return std::uint64_t{load<std::uint16_t>(from)};
    case GgufType::u32:
      return std::uint64_t{load<std::uint32_t>(from)};
    case GgufType::u64:
      return load<std::uint64_t>(from);
    case GgufType::i8:
      return std::int64_t{load<std::int8_t>(from)};
    case GgufType::i16:
      return std::int64_t{load<std::int16_t>(from)};
    case GgufType::i32:
      return std::int64_t{load<std::int32_t>(from)};
    case GgufType::i64:
      return load<std::int64_t>(from);
    case GgufType::f32:
      return load<float>(from);
    case GgufType::f64:
      return load<double>(from);
    case GgufType::boolean:
      return load<std::uint8_t>(from) != 0;
    case GgufType::string:
    case GgufType::array:
      break;
  }
  TL_CHECK(!"a scalar was expected");
  return false;
}

std::string_view text_of(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

template <typename T>
std::optional<T> convert_integer(auto value) {
  if constexpr (std::same_as<T, float> || std::same_as<T, double>) {
    // Exact where the type's mantissa holds it.
    constexpr auto kExact = std::int64_t{1} << std::numeric_limits<T>::digits;
    if (std::cmp_greater(value, kExact) || std::cmp_less(value, -kExact)) return std::nullopt;
    return static_cast<T>(value);
  } else if constexpr (std::integral<T> && !std::same_as<T, bool>) {
    if (!std::in_range<T>(value)) return std::nullopt;
    return static_cast<T>(value);
  } else {
    return std::nullopt;
  }
}

// A double may lose digits to a float, not its magnitude.
template <typename T>
std::optional<T> convert_float(auto value) {
  if constexpr (std::is_floating_point_v<T>) {
    const auto out = static_cast<T>(value);
    if (std::isfinite(value) == std::isfinite(out)) return out;
  }
  return std::nullopt;
}

// Nothing where the value does not fit.
template <typename T>
std::optional<T> convert(const Wide& value) {
  return std::visit(
      [](auto v) -> std::optional<T> {
        using V = decltype(v);
        if constexpr (std::is_same_v<V, T>) {
          return v;
        } else if constexpr (std::is_floating_point_v<V>) {
          return convert_float<T>(v);
        } else if constexpr (std::is_same_v<V, std::uint64_t> || std::is_same_v<V, std::int64_t>) {
          return convert_integer<T>(v);
        } else {
          return std::nullopt;
        }
      },
      value);
}

template <typename T>
std::string_view asked_for() {
  if constexpr (std::same_as<T, bool>) return "a bool";
  if constexpr (std::same_as<T, std::string_view>) return "a string";
  if constexpr (std::floating_point<T>) return "a number";
  if constexpr (std::unsigned_integral<T>)
    return sizeof(T) == 8 ? "a u64" : sizeof(T) == 4 ? "a u32" : sizeof(T) == 2 ? "a u16" : "a u8";
  return sizeof(T) == 8   ? "an i64"
         : sizeof(T) == 4 ? "an i32"
         : sizeof(T) == 2 ? "an i16"
                          : "an i8";
}

std::string show_scalar(const Wide& value) {
  return std::visit(
      [](auto v) -> std::string {
        if constexpr (std::same_as<decltype(v), bool>) {
          return v ? "true" : "false";
        } else if constexpr (std::same_as<decltype(v), std::string_view>) {
          return quoted(v);
        } else {
          char text[64];
          const auto end = std::to_chars(text, text + sizeof(text), v).ptr;
          return {text, end};
        }
      },
      value);
}

// Walks an array's elements; `next` gives each once.
class Elements {
 public:
  explicit Elements(const GgufValue& array) : element_(array.element), at_(array.bytes.data()) {}

  Wide next() {
    if (element_ == GgufType::string) {
      const auto size = load<std::uint64_t>(at_);
      const std::string_view text(reinterpret_cast<const char*>(at_ + 8), size);
      at_ += 8 + size;
      return text;
    }
    const Wide value = wide(element_, at_);
    at_ += gguf_scalar_bytes(element_);
    return value;
  }

 private:
  GgufType element_;
  const std::byte* at_;
};

tl::unexpected<Error> system_error(const std::string& path, const char* what) {
  const int number = errno;
  return fail(number == ENOENT ? ErrorCode::not_found : ErrorCode::io, path, ": ", what, ": ",
              std::strerror(number));
}

}  // namespace

std::uint64_t gguf_scalar_bytes(GgufType type) {
  switch (type) {
    case GgufType::u8:
    case GgufType::i8:
    case GgufType::boolean:
      return 1;
    case GgufType::u16:
    case GgufType::i16:
      return 2;
    case GgufType::u32:
    case GgufType::i32:
    case GgufType::f32:
      return 4;
    case GgufType::u64:
    case GgufType::i64:
    case GgufType::f64:
      return 8;
    case GgufType::string:
    case GgufType::array:
      break;
  }
  return 0;
}

std::string_view gguf_type_name(GgufType type) {
  constexpr std::string_view kNames[] = {"u8",   "i8",     "u16",   "i16", "u32", "i32", "f32",
                                         "bool", "string", "array", "u64", "i64", "f64"};
  const auto id = static_cast<std::uint32_t>(type);
  return id < std::size(kNames) ? kNames[id] : "unknown";
}

std::string TensorInfo::shape() const {
  std::string out = std::to_string(dims[0]);
  for (std::uint32_t d = 1; d < rank; ++d) out += " x " + std::to_string(dims[d]);
  return out;
}

Result<GgufFile> GgufFile::open(const std::string& path, Extent extent) {
  // Not blocking: a pipe in the place of a model is refused below, not waited for.
  const Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!file.open()) return system_error(path, "cannot be opened");
  struct stat status = {};
  if (::fstat(file.number(), &status) != 0) return system_error(path, "cannot be examined");
  if (!S_ISREG(status.st_mode))
    return fail(ErrorCode::io, path, ": not a regular file: give a .gguf model");
  if (status.st_size == 0)
    return fail(ErrorCode::corrupt, path, ": offset 0: the file is empty; fetch it again");
  const auto size = static_cast<std::size_t>(status.st_size);
  void* mapping = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file.number(), 0);
  if (mapping == MAP_FAILED) return system_error(path, "cannot be mapped");
  auto parsed = parse({static_cast<const std::byte*>(mapping), size}, path, extent);
  if (!parsed) {
    ::munmap(mapping, size);
    return parsed;
  }
  parsed->mapping_ = mapping;
  return parsed;
}

GgufFile::GgufFile(GgufFile&& other) noexcept { *this = std::move(other); }

GgufFile& GgufFile::operator=(GgufFile&& other) noexcept {
  std::swap(name_, other.name_);
  std::swap(bytes_, other.bytes_);
  std::swap(mapping_, other.mapping_);
  std::swap(version_, other.version_);
  std::swap(alignment_, other.alignment_);
  std::swap(data_offset_, other.data_offset_);
  std::swap(values_, other.values_);
  std::swap(tensors_, other.tensors_);
  std::swap(value_index_, other.value_index_);
  std::swap(tensor_index_, other.tensor_index_);
  return *this;
}

GgufFile::~GgufFile() {
  if (mapping_ != nullptr) ::munmap(mapping_, bytes_.size());
}

const GgufValue* GgufFile::find(std::string_view key) const {
  const auto found = value_index_.find(key);
  return found == value_index_.end() ? nullptr : &values_[found->second];
}

const TensorInfo* GgufFile::find_tensor(std::string_view name) const {
  const auto found = tensor_index_.find(name);
  return found == tensor_index_.end() ? nullptr : &tensors_[found->second];
}

Result<TensorInfo> GgufFile::tensor(std::string_view name) const {
  if (const TensorInfo* found = find_tensor(name)) return *found;
  return fail(ErrorCode::not_found, name_, ": has no tensor ", quoted(name), " (of ",
              tensors_.size(), "): the file is incomplete, or of another architecture");
}

template <GgufScalar T>
Result<T> GgufFile::get(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr)
    return fail(ErrorCode::not_found, name_, ": has no metadata ", quoted(key),
                ": the file is incomplete, or of another architecture");
  if (value->type == GgufType::array)
    return fail(ErrorCode::corrupt, name_, ": offset ", value->offset, ": metadata ", quoted(key),
                " is an array of ", value->count, ", ", asked_for<T>(), " was expected");
  const Wide scalar = value->type == GgufType::string ? Wide(text_of(value->bytes))
                                                      : wide(value->type, value->bytes.data());
  if (const auto converted = convert<T>(scalar)) return *converted;
  return fail(ErrorCode::corrupt, name_, ": offset ", value->offset, ": metadata ", quoted(key),
              " is ", show_scalar(scalar), " (", gguf_type_name(value->type), "), ", asked_for<T>(),
              " was expected");
}

template <GgufScalar T>
Result<std::vector<T>> GgufFile::get_array(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr)
    return fail(ErrorCode::not_found, name_, ": has no metadata ", quoted(key),
                ": the file is incomplete, or of another architecture");
  if (value->type != GgufType::array)
    return fail(ErrorCode::corrupt, name_, ": offset ", value->offset, ": metadata ", quoted(key),
                " is a ", gguf_type_name(value->type), ", an array was expected");
  std::vector<T> out;
  out.reserve(value->count);
  Elements elements(*value);
  for (std::uint64_t i = 0; i < value->count; ++i) {
    const Wide element = elements.next();
    const auto converted = convert<T>(element);
    if (!converted)
      return fail(ErrorCode::corrupt, name_, ": offset ", value->offset, ": element ", i,
                  " of metadata ", quoted(key), " is ", show_scalar(element), " (",
                  gguf_type_name(value->element), "), ", asked_for<T>(), " was expected");
    out.push_back(*converted);
  }
  return out;
}

#define TL_GGUF_GETTERS(T)                                     \
  template Result<T> GgufFile::get<T>(std::string_view) const; \
  template Result<std::vector<T>> GgufFile::get_array<T>(std::string_view) const;
TL_GGUF_GETTERS(bool)
TL_GGUF_GETTERS(std::uint8_t)
TL_GGUF_GETTERS(std::uint16_t)
TL_GGUF_GETTERS(std::uint32_t)
TL_GGUF_GETTERS(std::uint64_t)
TL_GGUF_GETTERS(std::int8_t)
TL_GGUF_GETTERS(std::int16_t)
TL_GGUF_GETTERS(std::int32_t)
TL_GGUF_GETTERS(std::int64_t)
TL_GGUF_GETTERS(float)
TL_GGUF_GETTERS(double)
TL_GGUF_GETTERS(std::string_view)
#undef TL_GGUF_GETTERS

std::string GgufFile::show(const GgufValue& value, std::size_t max_bytes) {
  if (value.type == GgufType::string) return quoted(text_of(value.bytes), max_bytes);
  if (value.type != GgufType::array) return show_scalar(wide(value.type, value.bytes.data()));
  constexpr std::uint64_t kShown = 4;
  std::string out =
      std::to_string(value.count) + " " + std::string(gguf_type_name(value.element)) + " [";
  Elements elements(value);
  for (std::uint64_t i = 0; i < std::min(kShown, value.count); ++i) {
    const Wide element = elements.next();
    if (i > 0) out += ", ";
    if (const auto* text = std::get_if<std::string_view>(&element))
      out += quoted(*text, max_bytes / kShown);
    else
      out += show_scalar(element);
  }
  return out + (value.count > kShown ? ", ...]" : "]");
}

}  // namespace thermocline
