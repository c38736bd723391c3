// Reading a GGUF header. Every number in it is hostile until it has been compared with what is
// left.
#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>

#include "runtime/model/gguf.h"
#include "runtime/model/quoted.h"

namespace thermocline {
namespace {

constexpr std::uint64_t kMaxTensorValues = std::uint64_t{1} << 62;

// ggml's tensor types that we do not read, so that a refusal can name them.
struct ForeignType {
  std::uint32_t id;
  std::string_view name;
};
constexpr ForeignType kForeignTypes[] = {
    {4, "Q4_2 (removed)"},
    {5, "Q4_3 (removed)"},
    {9, "Q8_1"},
    {10, "Q2_K"},
    {11, "Q3_K"},
    {15, "Q8_K"},
    {16, "IQ2_XXS"},
    {17, "IQ2_XS"},
    {18, "IQ3_XXS"},
    {19, "IQ1_S"},
    {20, "IQ4_NL"},
    {21, "IQ3_S"},
    {22, "IQ2_S"},
    {23, "IQ4_XS"},
    {24, "I8"},
    {25, "I16"},
    {26, "I32"},
    {27, "I64"},
    {28, "F64"},
    {29, "IQ1_M"},
    {31, "Q4_0_4_4 (removed)"},
    {32, "Q4_0_4_8 (removed)"},
    {33, "Q4_0_8_8 (removed)"},
    {34, "TQ1_0"},
    {35, "TQ2_0"},
    {39, "MXFP4"},
    {40, "NVFP4"},
    {41, "Q1_0"},
    {42, "Q2_0"},
};

const WeightTypeInfo* weight_type(std::uint32_t id) {
  for (const WeightTypeInfo& type : weight_types())
    if (type.gguf_id == id) return &type;
  return nullptr;
}

std::string supported_types() {
  std::string out;
  for (const WeightTypeInfo& type : weight_types()) {
    if (!out.empty()) out += ' ';
    out += type.name;
  }
  return out;
}

bool multiply(std::uint64_t a, std::uint64_t b, std::uint64_t* product) {
  return !__builtin_mul_overflow(a, b, product);
}

// A name may stand in a message and a terminal: it is not empty and has no control characters.
bool printable(std::string_view name) {
  return !name.empty() && std::none_of(name.begin(), name.end(), [](char c) {
    return static_cast<unsigned char>(c) < 0x20 || c == 0x7f;
  });
}

}  // namespace

class GgufFile::Parser {
 public:
  Parser(GgufFile* file, Extent extent) : file_(*file), bytes_(file->bytes_), extent_(extent) {}

  Status run() {
    TL_TRY(read_preamble());
    TL_TRY(read_metadata());
    TL_TRY(check_alignment());
    if (extent_ == Extent::header) return read_tensors();
    TL_TRY(check_split());
    TL_TRY(read_tensors());
    TL_TRY(check_padding());
    TL_TRY(place_tensors());
    return check_packing();
  }

 private:
  template <typename... Parts>
  tl::unexpected<Error> bad(std::uint64_t offset, const Parts&... parts) const {
    return fail(ErrorCode::corrupt, file_.name_, ": offset ", offset, ": ", parts...);
  }

  std::uint64_t left() const { return bytes_.size() - at_; }

  Status need(std::uint64_t count, std::string_view what) const {
    if (count <= left()) return {};
    return bad(at_, what, " takes ", count, " bytes, the file has ", left(),
               " left: it is cut short or not a model; fetch it again");
  }

  template <typename T>
  Result<T> read(std::string_view what) {
    TL_TRY(need(sizeof(T), what));
    T value;
    std::memcpy(&value, bytes_.data() + at_, sizeof(T));
    at_ += sizeof(T);
    return value;
  }

  std::string_view text(std::uint64_t count) {
    const std::string_view view(reinterpret_cast<const char*>(bytes_.data() + at_), count);
    at_ += count;
    return view;
  }

  Result<std::string_view> read_string(std::string_view what, std::uint64_t max_bytes) {
    const std::uint64_t start = at_;
    TL_TRY_ASSIGN(const auto length, read<std::uint64_t>(what));
    if (length > max_bytes)
      return bad(start, what, " claims ", length, " bytes, more than the limit of ", max_bytes);
    TL_TRY(need(length, what));
    return text(length);
  }

  Result<std::string_view> read_name(std::string_view what) {
    const std::uint64_t start = at_;
    TL_TRY_ASSIGN(const auto name, read_string(what, kGgufMaxNameBytes));
    if (!printable(name))
      return bad(start, what, " is ", quoted(name), ": empty or with control characters");
    return name;
  }

  Status check_header_size(std::string_view what) const {
    if (at_ <= kGgufMaxHeaderBytes) return {};
    return bad(at_, what, " makes the header larger than the limit of ", kGgufMaxHeaderBytes,
               " bytes");
  }

  // `least`: the fewest bytes that one of them takes, so a count is refused before memory is taken.
  Result<std::uint64_t> read_count(std::string_view what, std::uint64_t most, std::uint64_t least) {
    const std::uint64_t start = at_;
    TL_TRY_ASSIGN(const auto count, read<std::uint64_t>(what));
    if (count > most) return bad(start, what, " is ", count, ", more than the limit of ", most);
    if (count > (bytes_.size() - start) / least)
      return bad(start, what, " is ", count, ", the file of ", bytes_.size(),
                 " bytes cannot hold so many: it is cut short or not a model; fetch it again");
    return count;
  }

  Status read_preamble() {
    TL_TRY(need(4, "the magic"));
    const std::string_view magic = text(4);
    if (magic != "GGUF")
      return bad(0, "begins with ", quoted(magic), ", a GGUF model begins with \"GGUF\"");
    TL_TRY_ASSIGN(file_.version_, read<std::uint32_t>("the version"));
    const std::uint32_t version = file_.version_;
    if (version != 0 && (version & 0xffffu) == 0)
      return fail(ErrorCode::unsupported, file_.name_, ": offset 4: version ", version >> 24,
                  " in the other byte order: convert the model to little-endian");
    if (version != 2 && version != 3)
      return fail(ErrorCode::unsupported, file_.name_, ": offset 4: GGUF version ", version,
                  ", this build reads 2 and 3: convert the model again");
    // Name, rank, one dim, type, offset; key, type, value: what each takes at the least.
    TL_TRY_ASSIGN(tensor_count_, read_count("the number of tensors", kGgufMaxTensors, 33));
    TL_TRY_ASSIGN(metadata_count_,
                  read_count("the number of metadata entries", kGgufMaxMetadata, 14));
    return {};
  }

  Result<GgufType> read_type(std::string_view key) {
    const std::uint64_t start = at_;
    TL_TRY_ASSIGN(const auto type, read<std::uint32_t>("the type of a metadata value"));
    if (type > static_cast<std::uint32_t>(GgufType::f64))
      return bad(start, "metadata ", quoted(key), " has type ", type,
                 ", known are 0 (u8) to 12 (f64)");
    return static_cast<GgufType>(type);
  }

  Status check_bools(std::string_view key, std::span<const std::byte> values,
                     std::uint64_t offset) const {
    for (std::size_t i = 0; i < values.size(); ++i)
      if (values[i] > std::byte{1})
        return bad(offset + i, "metadata ", quoted(key), " has a bool of ",
                   static_cast<unsigned>(values[i]), ", not 0 or 1");
    return {};
  }

  Status read_array(GgufValue* value) {
    const std::uint64_t start = at_;
    TL_TRY_ASSIGN(value->element, read_type(value->key));
    if (value->element == GgufType::array)
      return fail(ErrorCode::unsupported, file_.name_, ": offset ", start, ": metadata ",
                  quoted(value->key), " is an array of arrays, which no known model uses");
    const std::uint64_t width = gguf_scalar_bytes(value->element);
    TL_TRY_ASSIGN(value->count,
                  read_count("an array's length", std::numeric_limits<std::uint64_t>::max(),
                             width == 0 ? 8 : width));
    value->offset = at_;
    if (width != 0) {
      std::uint64_t total = 0;
      if (!multiply(value->count, width, &total))
        return bad(start, "metadata ", quoted(value->key), " has ", value->count, " elements of ",
                   width, " bytes, more than fit an address");
      TL_TRY(need(total, "an array"));
      at_ += total;
    } else {
      for (std::uint64_t i = 0; i < value->count; ++i)
        TL_TRY(read_string("a string of an array", kGgufMaxStringBytes));
    }
    value->bytes = bytes_.subspan(value->offset, at_ - value->offset);
    if (value->element == GgufType::boolean)
      return check_bools(value->key, value->bytes, value->offset);
    return {};
  }

  Status read_value(GgufValue* value) {
    if (value->type == GgufType::array) return read_array(value);
    std::uint64_t size = gguf_scalar_bytes(value->type);
    if (value->type == GgufType::string) {
      TL_TRY_ASSIGN(const auto string, read_string("a metadata string", kGgufMaxStringBytes));
      value->offset = at_ - string.size();
      size = string.size();
    } else {
      TL_TRY(need(size, "a metadata value"));
      value->offset = at_;
      at_ += size;
    }
    value->bytes = bytes_.subspan(value->offset, size);
    if (value->type == GgufType::boolean)
      return check_bools(value->key, value->bytes, value->offset);
    return {};
  }

  Status read_metadata() {
    file_.values_.reserve(metadata_count_);
    file_.value_index_.reserve(metadata_count_);
    for (std::uint64_t i = 0; i < metadata_count_; ++i) {
      const std::uint64_t start = at_;
      GgufValue value;
      TL_TRY_ASSIGN(value.key, read_name("a metadata key"));
      TL_TRY_ASSIGN(value.type, read_type(value.key));
      TL_TRY(read_value(&value));
      TL_TRY(check_header_size(value.key));
      if (!file_.value_index_.emplace(value.key, file_.values_.size()).second)
        return bad(start, "metadata ", quoted(value.key), " is there twice");
      file_.values_.push_back(value);
    }
    return {};
  }

  Status check_alignment() {
    const GgufValue* value = file_.find("general.alignment");
    if (value == nullptr) return {};
    if (value->type != GgufType::u32)
      return bad(value->offset, "general.alignment is a ", gguf_type_name(value->type),
                 ", it must be a u32");
    TL_TRY_ASSIGN(file_.alignment_, file_.get<std::uint64_t>("general.alignment"));
    if (!std::has_single_bit(file_.alignment_) || file_.alignment_ < 8 ||
        file_.alignment_ > kGgufMaxAlignment)
      return bad(value->offset, "general.alignment is ", file_.alignment_,
                 ", it must be a power of two from 8 to ", kGgufMaxAlignment);
    return {};
  }

  Status check_split() const {
    TL_TRY_ASSIGN(const auto parts, file_.get_or<std::uint64_t>("split.count", 1));
    if (parts <= 1) return {};
    TL_TRY_ASSIGN(const auto part, file_.get_or<std::uint64_t>("split.no", 0));
    return fail(ErrorCode::unsupported, file_.name_, ": split.no: this is part ", part, " of ",
                parts, " (counted from 0), a model in parts: join them (gguf-split --merge)");
  }

  Status read_dims(TensorInfo* tensor) {
    const std::uint64_t start = at_;
    TL_TRY_ASSIGN(tensor->rank, read<std::uint32_t>("a tensor's rank"));
    if (tensor->rank == 0 || tensor->rank > kGgufMaxDims)
      return bad(start, "tensor ", quoted(tensor->name), " has ", tensor->rank,
                 " dimensions, 1 to ", kGgufMaxDims, " are possible");
    std::uint64_t values = 1;
    for (std::uint32_t d = 0; d < tensor->rank; ++d) {
      const std::uint64_t at = at_;
      TL_TRY_ASSIGN(tensor->dims[d], read<std::uint64_t>("a tensor's dimension"));
      if (tensor->dims[d] == 0)
        return bad(at, "tensor ", quoted(tensor->name), " has a dimension ", d, " of 0");
      if (!multiply(values, tensor->dims[d], &values) || values > kMaxTensorValues)
        return bad(at, "tensor ", quoted(tensor->name), " has a dimension ", d, " of ",
                   tensor->dims[d], ": more values in all than fit an address");
    }
    return {};
  }

  Status read_tensor_type(TensorInfo* tensor) {
    const std::uint64_t start = at_;
    TL_TRY_ASSIGN(const auto id, read<std::uint32_t>("a tensor's type"));
    const WeightTypeInfo* type = weight_type(id);
    if (type == nullptr) {
      const auto* foreign = std::find_if(std::begin(kForeignTypes), std::end(kForeignTypes),
                                         [id](const ForeignType& t) { return t.id == id; });
      const std::string_view name = foreign == std::end(kForeignTypes) ? "unknown" : foreign->name;
      tensor->type_name = name;
      if (extent_ == Extent::header) return {};
      return fail(ErrorCode::unsupported, file_.name_, ": offset ", start, ": tensor ",
                  quoted(tensor->name), " has type ", name, " (", id, "), this build reads ",
                  supported_types(), ": quantise the model to one of them");
    }
    tensor->type = type->type;
    tensor->type_name = type->name;
    if (tensor->dims[0] % type->block_values != 0)
      return bad(start, "tensor ", quoted(tensor->name), " of type ", type->name, " has rows of ",
                 tensor->dims[0], " values, not a multiple of ", type->block_values);
    return {};
  }

  Status read_tensors() {
    file_.tensors_.reserve(tensor_count_);
    file_.tensor_index_.reserve(tensor_count_);
    for (std::uint64_t i = 0; i < tensor_count_; ++i) {
      const std::uint64_t start = at_;
      TensorInfo tensor;
      TL_TRY_ASSIGN(tensor.name, read_name("a tensor's name"));
      TL_TRY(read_dims(&tensor));
      TL_TRY(read_tensor_type(&tensor));
      const std::uint64_t at = at_;
      TL_TRY_ASSIGN(tensor.offset, read<std::uint64_t>("a tensor's offset"));
      if (tensor.offset % file_.alignment_ != 0)
        return bad(at, "tensor ", quoted(tensor.name), " lies at ", tensor.offset,
                   ", not a multiple of the alignment of ", file_.alignment_);
      TL_TRY(check_header_size(tensor.name));
      if (!file_.tensor_index_.emplace(tensor.name, file_.tensors_.size()).second)
        return bad(start, "tensor ", quoted(tensor.name), " is there twice");
      file_.tensors_.push_back(tensor);
    }
    return {};
  }

  // A count that is too small leaves entries unread; they must not pass for padding.
  Status check_padding() {
    const std::uint64_t unit = file_.alignment_;
    // at_ and unit are below 2^27. Without tensors the padding may be missing.
    file_.data_offset_ = std::min<std::uint64_t>((at_ + unit - 1) / unit * unit, bytes_.size());
    for (std::uint64_t at = at_; at < file_.data_offset_; ++at)
      if (bytes_[at] != std::byte{0})
        return bad(at,
                   "the padding after the header is not zero: its counts are wrong; fetch the "
                   "file again");
    return {};
  }

  // From offsets within the tensor data, as stored, to places in the file.
  Status place_tensors() {
    const std::uint64_t space = bytes_.size() - file_.data_offset_;
    for (TensorInfo& tensor : file_.tensors_) {
      const WeightTypeInfo& type = info(tensor.type);
      const std::uint64_t blocks = tensor.cols() / type.block_values * tensor.rows();
      std::uint64_t size = 0;
      if (!multiply(blocks, type.block_bytes, &size) || tensor.offset > space ||
          size > space - tensor.offset)
        return bad(file_.data_offset_, "tensor ", quoted(tensor.name), " of ", tensor.shape(), " ",
                   type.name, " lies at ", tensor.offset, " of the tensor data, which has ", space,
                   " bytes: the file is cut short; fetch it again");
      tensor.offset += file_.data_offset_;
      tensor.data = bytes_.subspan(tensor.offset, size);
    }
    return {};
  }

  // Tensors lie side by side, in any order, with no more than padding between: what is not
  // accounted for is another model's, or this one's with entries lost.
  Status check_packing() const {
    std::vector<const TensorInfo*> sorted;
    sorted.reserve(file_.tensors_.size());
    for (const TensorInfo& tensor : file_.tensors_) sorted.push_back(&tensor);
    std::sort(sorted.begin(), sorted.end(),
              [](const TensorInfo* a, const TensorInfo* b) { return a->offset < b->offset; });
    for (std::size_t i = 1; i < sorted.size(); ++i) {
      const TensorInfo& a = *sorted[i - 1];
      const TensorInfo& b = *sorted[i];
      if (b.offset - a.offset < a.data.size())
        return bad(b.offset, "tensors ", quoted(a.name), " and ", quoted(b.name), " overlap by ",
                   a.data.size() - (b.offset - a.offset), " bytes");
    }
    std::uint64_t end = file_.data_offset_;
    for (const TensorInfo* tensor : sorted) {
      TL_TRY(check_gap(end, tensor->offset));
      end = tensor->offset + tensor->data.size();
    }
    return check_gap(end, bytes_.size());
  }

  Status check_gap(std::uint64_t from, std::uint64_t to) const {
    if (to - from < file_.alignment_) return {};
    return bad(from, to - from,
               " bytes here belong to no tensor: the header's counts or offsets "
               "are wrong; fetch the file again");
  }

  GgufFile& file_;
  std::span<const std::byte> bytes_;
  Extent extent_;
  std::uint64_t at_ = 0, tensor_count_ = 0, metadata_count_ = 0;
};

Result<GgufFile> GgufFile::parse(std::span<const std::byte> bytes, std::string name,
                                 Extent extent) {
  GgufFile file;
  file.name_ = std::move(name);
  file.bytes_ = bytes;
  TL_TRY(Parser(&file, extent).run());
  return file;
}

}  // namespace thermocline
