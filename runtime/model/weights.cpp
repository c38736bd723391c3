#include "runtime/model/weights.h"

#include <charconv>
#include <cstring>
#include <map>
#include <set>

#include "kernels/base/half.h"
#include "runtime/model/gguf.h"
#include "runtime/model/model.h"

namespace thermocline {
namespace {

// Takes tensors out of a file by name and shape, and remembers which were taken. Vectors are put
// into `vectors`.
class TensorReader {
 public:
  TensorReader(const GgufFile& file, std::vector<std::vector<float>>* vectors)
      : file_(file), vectors_(*vectors) {}

  // A matrix that maps `cols` values to `rows`; rows 0: as many as it has.
  Result<WeightView> matrix(const std::string& name, std::size_t rows, std::size_t cols) {
    TL_TRY_ASSIGN(const TensorInfo tensor, file_.tensor(name));
    const bool fits = tensor.rank == 2 && tensor.cols() == cols && tensor.rows() > 0 &&
                      (rows == 0 || tensor.rows() == rows);
    if (!fits) return wrong_shape(tensor, cols, rows);
    take(tensor);
    return tensor.view();
  }

  Status vector(const std::string& name, std::size_t size, std::span<const float>* out) {
    TL_TRY_ASSIGN(const TensorInfo tensor, file_.tensor(name));
    if (tensor.rank != 1 || tensor.cols() != size) return wrong_shape(tensor, size, 1);
    take(tensor);
    std::vector<float>& floats = vectors_.emplace_back();
    TL_TRY(read_floats(tensor, &floats));
    *out = floats;
    return {};
  }

  Status vector(const std::string& name, std::size_t size, Part part, std::span<const float>* out) {
    if (part == Part::absent) return {};
    if (part == Part::optional && !file_.find_tensor(name)) return {};
    return vector(name, size, out);
  }

  bool has(const std::string& name) const { return file_.find_tensor(name) != nullptr; }
  bool taken(std::string_view name) const { return taken_.contains(name); }
  std::uint64_t parameters() const { return parameters_; }
  std::uint64_t bytes() const { return bytes_; }

  std::string types() const {
    std::string text;
    for (const auto& [type, count] : types_) {
      if (!text.empty()) text += ", ";
      text.append(info(type).name).append(" ").append(std::to_string(count));
    }
    return text;
  }

 private:
  // Vectors are never coded in blocks.
  Status read_floats(const TensorInfo& tensor, std::vector<float>* out) const {
    const std::byte* data = tensor.data.data();
    for (std::size_t i = 0; i < tensor.cols(); ++i) {
      switch (tensor.type) {
        case WeightType::f32:
          out->push_back(read<float>(data, i));
          break;
        case WeightType::f16:
          out->push_back(to_float(read<f16>(data, i)));
          break;
        case WeightType::bf16:
          out->push_back(to_float(read<bf16>(data, i)));
          break;
        default:
          return fail(ErrorCode::unsupported, file_.name(), ": tensor ", tensor.name, " is ",
                      info(tensor.type).name, ", supported for vectors are F32, F16 and BF16");
      }
    }
    return {};
  }
  template <typename T>
  static T read(const std::byte* data, std::size_t i) {
    T value;
    std::memcpy(&value, data + i * sizeof(T), sizeof(T));
    return value;
  }

  void take(const TensorInfo& tensor) {
    taken_.insert(tensor.name);
    ++types_[tensor.type];
    parameters_ += tensor.rows() * tensor.cols();
    bytes_ += tensor.data.size();
  }
  tl::unexpected<Error> wrong_shape(const TensorInfo& tensor, std::size_t cols,
                                    std::size_t rows) const {
    const std::string needed = rows == 0   ? std::to_string(cols) + " x vocabulary"
                               : rows == 1 ? std::to_string(cols)
                                           : std::to_string(cols) + " x " + std::to_string(rows);
    return fail(ErrorCode::corrupt, file_.name(), ": tensor ", tensor.name, " has the shape ",
                tensor.shape(), ", the metadata needs ", needed);
  }

  const GgufFile& file_;
  std::vector<std::vector<float>>& vectors_;
  std::set<std::string_view> taken_;
  std::map<WeightType, int> types_;
  std::uint64_t parameters_ = 0, bytes_ = 0;
};

Result<LayerWeights> read_layer(TensorReader* reader, const ModelSpec& model, std::size_t l) {
  const LayerSpec& spec = model.layers[l];
  const Architecture& architecture = *model.architecture;
  const std::string block = "blk." + std::to_string(l) + ".";
  const std::size_t width = model.width, inner = model.feed_forward;
  const std::size_t q = std::size_t{spec.q_heads} * spec.key_dim;
  const std::size_t k = std::size_t{spec.kv_heads} * spec.key_dim;
  const std::size_t v = std::size_t{spec.kv_heads} * spec.value_dim;
  const std::size_t mixed = std::size_t{spec.q_heads} * spec.value_dim;
  LayerWeights w;
  TL_TRY(reader->vector(block + "attn_norm.weight", width, &w.attention_norm));
  TL_TRY_ASSIGN(w.q, reader->matrix(block + "attn_q.weight", q, width));
  TL_TRY_ASSIGN(w.k, reader->matrix(block + "attn_k.weight", k, width));
  TL_TRY_ASSIGN(w.v, reader->matrix(block + "attn_v.weight", v, width));
  TL_TRY(reader->vector(block + "attn_q.bias", q, architecture.biases, &w.q_bias));
  TL_TRY(reader->vector(block + "attn_k.bias", k, architecture.biases, &w.k_bias));
  TL_TRY(reader->vector(block + "attn_v.bias", v, architecture.biases, &w.v_bias));
  const Part norms = architecture.head_norms, post = architecture.post_norms;
  TL_TRY(reader->vector(block + "attn_q_norm.weight", spec.key_dim, norms, &w.q_norm));
  TL_TRY(reader->vector(block + "attn_k_norm.weight", spec.key_dim, norms, &w.k_norm));
  TL_TRY_ASSIGN(w.output, reader->matrix(block + "attn_output.weight", width, mixed));
  TL_TRY(reader->vector(block + "post_attention_norm.weight", width, post, &w.attention_post_norm));
  TL_TRY(reader->vector(block + "ffn_norm.weight", width, &w.feed_forward_norm));
  TL_TRY_ASSIGN(w.gate, reader->matrix(block + "ffn_gate.weight", inner, width));
  TL_TRY_ASSIGN(w.up, reader->matrix(block + "ffn_up.weight", inner, width));
  TL_TRY_ASSIGN(w.down, reader->matrix(block + "ffn_down.weight", width, inner));
  TL_TRY(reader->vector(block + "post_ffw_norm.weight", width, post, &w.feed_forward_post_norm));
  return w;
}

// Whether a tensor with this name is a part of the network that runs: of one of its layers, or
// around them. Tensors beyond the last layer are extras (heads that predict further tokens).
bool matters(std::string_view name, std::size_t layers) {
  if (name.starts_with("blk.")) {
    std::size_t layer = 0;
    const char* end = name.data() + name.size();
    const auto number = std::from_chars(name.data() + 4, end, layer);
    if (number.ec != std::errc{} || layer >= layers) return false;
    // Rotation tables of old files: what RopePlan works out.
    return !name.ends_with("rot_embd") && !name.ends_with("rot_embd.weight") &&
           !name.ends_with("rope_freqs.weight");
  }
  return name.starts_with("token_") || name.starts_with("output") ||
         name.starts_with("position_") || name.starts_with("per_layer_");
}

}  // namespace

Result<Weights> Weights::read(const GgufFile& file, const ModelSpec& model) {
  Weights weights;
  TensorReader reader(file, &weights.vectors);
  TL_TRY_ASSIGN(weights.embedding, reader.matrix("token_embd.weight", 0, model.width));
  weights.output = weights.embedding;
  if (reader.has("output.weight")) {
    TL_TRY_ASSIGN(weights.output,
                  reader.matrix("output.weight", weights.embedding.rows, model.width));
  }
  TL_TRY(reader.vector("output_norm.weight", model.width, &weights.output_norm));
  for (std::size_t l = 0; l < model.layers.size(); ++l) {
    TL_TRY_ASSIGN(LayerWeights layer, read_layer(&reader, model, l));
    weights.layers.push_back(std::move(layer));
  }
  for (const TensorInfo& tensor : file.tensors())
    if (!reader.taken(tensor.name) && matters(tensor.name, model.layers.size()))
      return fail(ErrorCode::unsupported, file.name(), ": tensor ", tensor.name,
                  " is not part of any ", model.architecture->name,
                  " model that is supported; it would change the result");
  weights.parameters = reader.parameters();
  weights.bytes = reader.bytes();
  weights.types = reader.types();
  return weights;
}

}  // namespace thermocline
