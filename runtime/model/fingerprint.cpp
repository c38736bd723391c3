#include "runtime/model/fingerprint.h"

#include <algorithm>
#include <string_view>

#include "kernels/base/buffer.h"
#include "tiers/io/checksum.h"

namespace thermocline {
namespace {

// Of pieces, each of which begins with a name: the same bytes under another name differ.
class Print {
 public:
  void add(std::string_view name, std::span<const std::byte> bytes) {
    hash_ = page_checksum(std::as_bytes(std::span(name)), hash_);
    hash_ = page_checksum(bytes, hash_ + bytes.size());
  }
  std::string text() const { return checksum_text(hash_); }

 private:
  std::uint64_t hash_ = 0;
};

}  // namespace

std::string model_fingerprint(const GgufFile& file) {
  const std::string architecture(
      file.get_or<std::string_view>("general.architecture", "").value_or(""));
  Print print;
  print.add("architecture", std::as_bytes(std::span(architecture)));
  for (const GgufValue& value : file.metadata())
    if (value.key.starts_with(architecture + ".")) print.add(value.key, value.bytes);
  for (const TensorInfo& tensor : file.tensors()) {
    print.add(tensor.name, std::as_bytes(std::span(tensor.dims)));
    const std::size_t piece = std::min<std::size_t>(tensor.data.size(), kPageBytes);
    print.add(tensor.type_name, tensor.data.first(piece));
    print.add("end", tensor.data.last(piece));
  }
  const auto name = file.get_or<std::string_view>("general.name", "");
  return (name && !name->empty() ? std::string(*name) + ", " : "") + print.text();
}

std::string tokenizer_fingerprint(const GgufFile& file) {
  Print print;
  for (const GgufValue& value : file.metadata())
    if (value.key.starts_with("tokenizer.ggml.")) print.add(value.key, value.bytes);
  return print.text();
}

}  // namespace thermocline
