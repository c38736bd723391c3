#include "retrieval/select/sketch_reads.h"

#include <algorithm>
#include <bit>

namespace thermocline {
namespace {

// Where the new ones begin.
float* grow_by(std::size_t count, std::vector<float>* to) {
  to->resize(to->size() + count);
  return to->data() + (to->size() - count);
}

// A read of `form`, whose picks and weights begin where the list ends.
Read begin_read(std::uint32_t run, Form form, std::uint32_t heads, bool residual,
                const ReadList& out) {
  return {.run = run,
          .form = form,
          .first = static_cast<std::uint32_t>(out.picks.size()),
          .weights_a_row = heads,
          .scored = true,
          .residual = residual,
          .first_weight = static_cast<std::uint32_t>(out.log_weight.size())};
}

// Adds the picks of `sets`, a word a block. Returns how many rows they have.
std::size_t add_picks(const RowSet* sets, std::size_t blocks, ReadList* out) {
  std::size_t rows = 0;
  for (std::uint32_t b = 0; b < blocks; ++b) {
    if (sets[b] == 0) continue;
    out->picks.push_back({b, sets[b]});
    rows += static_cast<std::size_t>(count(sets[b]));
  }
  return rows;
}

// Adds a read whose picks are there, unless there are none.
void end_read(Read read, ReadList* out) {
  read.last = static_cast<std::uint32_t>(out->picks.size());
  if (read.first != read.last) out->reads.push_back(read);
}

}  // namespace

std::uint64_t SketchReads::write(const SketchList& list, const SketchMeans& means, SketchRows* rows,
                                 ReadList* out) {
  out->clear();
  sets_.assign(list.blocks, 0);
  coded_.assign(list.codes_values() ? list.blocks : 0, 0);
  rows->take(list, means, sets_.data(), coded_.data());
  write_rows(list, out);
  std::uint64_t bytes = 0;
  if (list.codes_values()) bytes += write_codes(list, means, *rows, out);
  bytes += write_summaries(list, means, out);
  const std::uint32_t heads = list.shape.heads;
  list.cpu.sketch.log_weights(out->log_weight.data(), out->log_weight.size() / heads,
                              means.units().shift.data(), static_cast<int>(heads));
  return bytes;
}

void SketchReads::write_rows(const SketchList& list, ReadList* out) const {
  const RowSet* sets = sets_.data();
  for (std::uint32_t r = 0; r < list.indexes.size(); ++r) {
    if (!list.indexes[r]) {
      out->reads.push_back({.run = r, .everything = true});
      continue;
    }
    const Read read{.run = r, .first = static_cast<std::uint32_t>(out->picks.size())};
    const std::uint32_t blocks = list.asked->runs[r].rows->blocks();
    add_picks(sets, blocks, out);
    end_read(read, out);
    sets += blocks;
  }
}

// Rows that are not worth a read but worth their codes: what their values differ by from their
// clusters' means. The means come with the clusters' summaries, whose weight these rows' is part
// of.
std::uint64_t SketchReads::write_codes(const SketchList& list, const SketchMeans& means,
                                       const SketchRows& rows, ReadList* out) {
  const std::size_t units = means.units().count;
  const std::uint32_t heads = list.shape.heads;
  coded_weight_.assign(units * heads, 0.0f);
  has_coded_.assign(set_words(units), 0);
  for (std::size_t b = 0; b < coded_.size(); ++b) coded_[b] &= ~sets_[b];
  std::uint64_t bytes = 0;
  const RowSet* coded = coded_.data();
  std::size_t s = 0;
  for (std::uint32_t r = 0; r < list.indexes.size(); ++r) {
    if (!list.indexes[r]) continue;
    const Run& run = list.asked->runs[r];
    const Read read = begin_read(r, Form::codes, heads, true, *out);
    const std::size_t found = add_picks(coded, run.rows->blocks(), out);
    float* to = grow_by(found * heads, &out->log_weight);
    for (; s < rows.stretches().size(); ++s) {
      const SketchStretch& stretch = rows.stretches()[s];
      const SketchPatch& patch = means.patches()[stretch.patch];
      if (patch.run != r) break;
      const std::uint16_t* starts = list.starts(r).data() + patch.first;
      std::uint32_t cluster = stretch.cluster;
      for (std::uint32_t i = 0, bits; i < stretch.count; i += bits) {
        const std::uint32_t row = stretch.first + i, low = row % kBlockRows;
        bits = std::min<std::uint32_t>(stretch.count - i, kBlockRows - low);
        RowSet left = coded[row / kBlockRows] >> low & first_rows(static_cast<int>(bits));
        for (; left != 0; left &= left - 1) {
          const auto in_word = static_cast<std::uint32_t>(std::countr_zero(left));
          while (starts[cluster + 1] <= row + in_word) ++cluster;
          const std::size_t unit = patch.at + cluster;
          set_add(has_coded_, unit);
          const float* weight = rows.weight(stretch.at + i + in_word);
          float* of_cluster = coded_weight_.data() + unit;
          for (std::uint32_t h = 0; h < heads; ++h) {
            *to++ = *weight;
            *of_cluster += *weight;
            weight += rows.rows();
            of_cluster += units;
          }
        }
      }
    }
    end_read(read, out);
    coded += run.rows->blocks();
    bytes += found * run.codes->layout.bytes();
  }
  return bytes;
}

// A summary row is weighed by its unread rows, as its mean estimates them, and by its coded ones,
// as their codes do.
std::uint64_t SketchReads::write_summaries(const SketchList& list, const SketchMeans& means,
                                           ReadList* out) {
  const SketchUnits& units = means.units();
  const std::span<const SketchPatch> patches = means.patches();
  const std::uint32_t heads = list.shape.heads;
  grow(&unread_, units.count);
  if (list.codes_values())
    for (std::size_t b = 0; b < sets_.size(); ++b) coded_[b] |= sets_[b];
  const RowSet* sets = list.codes_values() ? coded_.data() : sets_.data();
  std::uint64_t bytes = 0;
  std::size_t patch = 0, group = means.clusters();
  for (std::uint32_t r = 0; r < list.indexes.size(); ++r) {
    const SketchIndex* index = list.indexes[r];
    if (!index) continue;
    const Run& run = list.asked->runs[r];
    find_estimated(list, means, r, sets, patch, group);
    const Read read = begin_read(r, Form::summaries, heads, false, *out);
    const std::size_t summaries = add_picks(estimated_.data(), estimated_.size(), out);
    float* to = grow_by(summaries * heads, &out->log_weight);
    for (std::size_t p = read.first; p < out->picks.size(); ++p) {
      const std::uint32_t first = out->picks[p].block * kBlockRows;
      for (RowSet left = out->picks[p].rows; left != 0; left &= left - 1) {
        const std::uint32_t c = first + static_cast<std::uint32_t>(std::countr_zero(left));
        const bool of_group = c >= index->clusters();
        while (!of_group && patches[patch].last <= c) ++patch;
        std::size_t u = of_group ? group + (c - index->clusters())
                                 : patches[patch].at + (c - patches[patch].first);
        const auto unread = static_cast<float>(unread_[u]);
        for (std::uint32_t h = 0; h < heads; ++h, u += units.count)
          *to++ = unread * units.weight[u] + (list.codes_values() ? coded_weight_[u] : 0.0f);
      }
    }
    end_read(read, out);
    while (patch < patches.size() && patches[patch].run == r) ++patch;
    group += means.grouped() ? index->groups() : 0;
    sets += run.rows->blocks();
    bytes += summaries * run.summaries->layout.value_bytes;
  }
  return bytes;
}

// The summaries of a run's clusters that are estimated: those with mass in unread rows, as the mean
// estimates it, and those with coded ones. From a run's patches, whose first is `patch`, and its
// groups, whose first is unit `group`.
void SketchReads::find_estimated(const SketchList& list, const SketchMeans& means,
                                 std::uint32_t run, const RowSet* sets, std::size_t patch,
                                 std::size_t group) {
  const SketchUnits& units = means.units();
  const SketchIndex& index = *list.indexes[run];
  estimated_.assign(set_words(index.clusters() + index.groups()), 0);
  for (; patch < means.patches().size() && means.patches()[patch].run == run; ++patch) {
    const SketchPatch& of = means.patches()[patch];
    grow(&found_, set_words(of.clusters()));
    list.cpu.sketch.find_unread(sets, list.starts(run).data() + of.first, units.mass.data() + of.at,
                                of.clusters(), kSketchNegligible, unread_.data() + of.at,
                                found_.data());
    set_add_bits(found_.data(), 0, of.clusters(), estimated_.data(), of.first);
    if (list.codes_values())
      set_add_bits(has_coded_.data(), of.at, of.clusters(), estimated_.data(), of.first);
  }
  for (std::uint32_t g = 0; means.grouped() && g < index.groups(); ++g) {
    const float left = units.size[group + g];
    unread_[group + g] = static_cast<std::uint16_t>(left);
    if (left > 0.0f && units.mass[group + g] * left >= kSketchNegligible)
      set_add(estimated_, index.clusters() + g);
  }
}

}  // namespace thermocline
