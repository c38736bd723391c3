#include "runtime/session_manifest.h"

namespace thermocline {

namespace {

void write_rows(const RawRows& rows, RecordWriter* out) {
  const std::uint64_t head_bytes = std::uint64_t{rows.rows} * rows.layout.bytes();
  out->value(head_bytes * rows.heads);
  for (std::uint32_t h = 0; h < rows.heads && head_bytes > 0; ++h)
    out->raw({rows.row(h, 0), head_bytes});
}

template <typename Layer, typename WriteRest>
void write_manifest(std::span<const SessionFact> facts, const NamedMethod& method,
                    const SessionText& text, std::uint32_t length, const std::vector<Layer>& layers,
                    RecordWriter* out, const WriteRest& write_rest) {
  out->value(static_cast<std::uint32_t>(facts.size()));
  for (const SessionFact& fact : facts) {
    out->text(fact.name);
    out->text(fact.value);
  }
  out->text(method.name);
  out->value(static_cast<std::uint32_t>(method.overrides.size()));
  for (const std::string& one : method.overrides) out->text(one);
  out->list(std::span<const int>(text.tokens));
  out->list(std::span<const float>(text.logits));
  out->value(text.seed);
  out->text(text.sampler);
  out->text(text.note);
  out->value(length);
  out->value(static_cast<std::uint32_t>(layers.size()));
  for (const Layer& layer : layers) {
    out->value(layer.tail_first);
    write_rest(layer);
  }
}

}  // namespace

void ManifestView::write(RecordWriter* out) const {
  write_manifest(facts, method, text, length, layers, out, [&](const Layer& layer) {
    write_rows(layer.sinks, out);
    write_rows(layer.tail, out);
    out->value(std::uint64_t{layer.runs.size()});
    for (const Run& run : layer.runs) out->value(table->record_of(*run.rows));
  });
}

std::vector<std::byte> SessionManifest::encode() const {
  RecordWriter out;
  write_manifest(facts, method, text, length, layers, &out, [&](const Layer& layer) {
    out.list(std::span<const std::byte>(layer.sinks));
    out.list(std::span<const std::byte>(layer.tail));
    out.list(std::span<const PageTable::Record>(layer.runs));
  });
  return {out.bytes().begin(), out.bytes().end()};
}

Result<SessionManifest> SessionManifest::decode(std::span<const std::byte> bytes,
                                                const std::string& name) {
  SessionManifest manifest;
  RecordReader in(bytes, name);
  std::uint32_t facts = 0, layers = 0;
  TL_TRY(in.value("facts", &facts));
  for (std::uint32_t f = 0; f < facts; ++f) {
    SessionFact fact;
    TL_TRY(in.text("fact", &fact.name));
    TL_TRY(in.text("fact", &fact.value));
    manifest.facts.push_back(std::move(fact));
  }
  std::uint32_t overrides = 0;
  TL_TRY(in.text("method", &manifest.method.name));
  TL_TRY(in.value("overrides", &overrides));
  for (std::uint32_t o = 0; o < overrides; ++o)
    TL_TRY(in.text("override", &manifest.method.overrides.emplace_back()));
  TL_TRY(in.list("tokens", &manifest.text.tokens));
  TL_TRY(in.list("logits", &manifest.text.logits));
  TL_TRY(in.value("seed", &manifest.text.seed));
  TL_TRY(in.text("sampler", &manifest.text.sampler));
  TL_TRY(in.text("note", &manifest.text.note));
  TL_TRY(in.value("length", &manifest.length));
  if (manifest.length > manifest.text.tokens.size() && !manifest.text.tokens.empty())
    return in.corrupt("length", "is ", manifest.length, " of ", manifest.text.tokens.size(),
                      " tokens");
  TL_TRY(in.value("layers", &layers));
  for (std::uint32_t l = 0; l < layers; ++l) {
    Layer layer;
    TL_TRY(in.value("tail_first", &layer.tail_first));
    TL_TRY(in.list("sinks", &layer.sinks));
    TL_TRY(in.list("tail", &layer.tail));
    TL_TRY(in.list("runs", &layer.runs));
    manifest.layers.push_back(std::move(layer));
  }
  TL_TRY(in.end());
  return manifest;
}

}  // namespace thermocline
