#include <limits>
#include <string_view>

#include "runtime/model/gguf.h"
#include "runtime/thermocline.h"

namespace thermocline {

Result<ModelFile> read_model_file(const std::string& path) {
  TL_TRY_ASSIGN(const GgufFile file, GgufFile::open(path, GgufFile::Extent::header));
  ModelFile out;
  out.path = path;
  out.version = file.version();
  out.bytes = file.size_bytes();
  // A file may say something else than a text there: that is among its metadata.
  out.architecture = file.get<std::string_view>("general.architecture").value_or("");
  out.name = file.get<std::string_view>("general.name").value_or("");
  for (const GgufValue& value : file.metadata())
    out.metadata.emplace_back(value.key,
                              GgufFile::show(value, std::numeric_limits<std::size_t>::max()));
  for (const TensorInfo& tensor : file.tensors())
    out.tensors.emplace_back(tensor.name, std::string(tensor.type_name) + " " + tensor.shape());
  return out;
}

}  // namespace thermocline
