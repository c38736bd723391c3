#include "runtime/text_cuts.h"

#include <algorithm>
#include <utility>

#include "runtime/joint.h"

namespace thermocline {

std::vector<ReadSpan> read_spans(const CacheOptions& options) {
  if (!options.course) return {{0, std::min(options.max_positions, kSpanRows)}};
  std::vector<ReadSpan> spans;
  std::uint32_t at = options.course->resumed.positions;
  for (const std::uint32_t end : options.course->reads)
    while (at < end) {
      const std::uint32_t next = std::min(end, at - at % kSpanRows + kSpanRows);
      spans.push_back({at, next});
      at = next;
    }
  return spans;
}

std::uint32_t longest_of(std::span<const ReadSpan> spans) {
  std::uint32_t rows = 0;
  for (const ReadSpan& span : spans) rows = std::max(rows, span.end - span.first);
  return rows;
}

TextCuts TextCuts::of(const CacheOptions& options, const Method& method) {
  TextCuts cuts(method, options.max_positions);
  cuts.spans_ = read_spans(options);
  if (options.course)
    cuts.walk(*options.course);
  else
    cuts.take_worst();
  return cuts;
}

// Segments are multiples of the shortest, and take no more than so many of those.
void TextCuts::take_worst() {
  const std::uint32_t sealed = method_.tail_begin(positions_) - method_.sink;
  if (sealed == 0) return;
  seal_steps(method_.sink, method_.sink + sealed);
  longest_ = longest_held_ = std::min(method_.cell_rows(), sealed);
  const std::uint32_t of_last_cell = sealed % method_.cell_rows();
  const std::uint32_t last = of_last_cell > 0 ? of_last_cell : longest_;
  // A tail before it and a span that leaves none of its own.
  const std::uint32_t at_once = (kSpanRows - 1) / method_.seal_rows() + 1;
  formed_ = {{longest_, 1, std::min(sealed, at_once * method_.seal_rows())}, {last, 1, last}};
  if (!method_.joins() || sealed < method_.joint_rows()) return;
  joint_ = method_.joint_rows();
  // Saved when short texts had filled a cell, and the next one nearly.
  replaced_ = std::min(sealed, 2 * joint_);
}

void TextCuts::walk(const Course& course) {
  resumed_ = course.resumed;
  std::uint32_t begin = method_.tail_begin(course.resumed.positions);
  take_held(begin);
  longest_held_ = std::max(std::exchange(longest_, 0), course.resumed.longest_segment);
  if (course.is_copied) copied_ = longest_held_;
  std::vector<Alike> all = std::exchange(formed_, {});
  for (const ReadSpan& span : spans_) {
    seal_read(begin, method_.tail_begin(span.end));
    begin = method_.tail_begin(span.end);
  }
  seal_steps(begin, method_.tail_begin(positions_));
  all.insert(all.end(), formed_.begin(), formed_.end());
  const std::uint32_t read_to = spans_.empty() ? resumed_->positions : spans_.back().end;
  if (method_.joins() && positions_ > read_to) join(all, begin - method_.sink);
}

// Steps that follow `read` sealed rows join what is short, of those as well.
void TextCuts::join(std::span<const Alike> all, std::uint32_t read) {
  std::vector<std::uint32_t> rows;
  for (const Alike& alike : all) rows.insert(rows.end(), alike.count, alike.rows);
  std::uint32_t at = 0, replaced = 0;
  std::size_t i = 0;
  const auto rows_of = [&](std::size_t number) { return rows[number]; };
  const std::size_t first = segment_from(newest_cell(method_, read), rows.size(), rows_of);
  while (const auto joint = next_joint(method_, rows.size(), rows_of, std::max(i, first))) {
    while (i < joint->first) at += rows[i++];
    if (at >= read + method_.cell_rows()) break;  // as those before it
    joint_ = std::max(joint_, joint->rows);
    // A save among the steps may come when a cell is nearly full.
    replaced_ = std::max(replaced_, at + joint->rows > read ? joint->rows : 0);
    replaced += std::min(joint->rows, read - std::min(read, at));
    at += joint->rows;
    i += joint->count;
  }
  replaced_ = std::max(replaced_, replaced);
  longest_ = std::max(longest_, joint_);
}

// Cut as they are, unless that is not what this method cuts: then opening the file refuses it.
void TextCuts::take_held(std::uint32_t sealed) {
  std::uint64_t end = method_.sink;
  bool is_cut_so = true;
  for (const std::uint32_t one : resumed_->segments) {
    end += one;
    is_cut_so = is_cut_so && one > 0 && one % method_.seal_rows() == 0;
  }
  if (!is_cut_so || end != sealed) return seal_steps(method_.sink, sealed);
  for (const std::uint32_t one : resumed_->segments) add({one, 1});
}

// No segment crosses a line between cells.
void TextCuts::seal_read(std::uint32_t begin, std::uint32_t end) {
  while (begin < end) {
    const std::uint32_t in_cell = (begin - method_.sink) % method_.cell_rows();
    const std::uint32_t rows = std::min(method_.cell_rows() - in_cell, end - begin);
    add({rows, 1, end - begin});
    begin += rows;
  }
}

void TextCuts::seal_steps(std::uint32_t begin, std::uint32_t end) {
  const std::uint32_t rows = method_.seal_rows();
  if (begin < end) add({rows, (end - begin) / rows, rows});
}

void TextCuts::add(const Alike& segments) {
  segments_[segments.rows] += segments.count;
  formed_.push_back(segments);
  longest_ = std::max(longest_, segments.rows);
}

std::uint32_t TextCuts::most_at_once() const {
  std::uint32_t rows = 0;
  for (const Alike& alike : formed_) rows = std::max(rows, alike.at_once);
  return rows;
}

std::uint64_t TextCuts::segment_count() const {
  std::uint64_t count = 0;
  for (const auto& [rows, of_those] : segments_) count += of_those;
  return count;
}

std::uint32_t TextCuts::full_tail(std::uint32_t length) const {
  return length - std::min(length, method_.tail_begin(length));
}

// Where each span begins, and where the last one ends.
std::vector<std::uint32_t> TextCuts::tails(const LayerSpec& spec, std::size_t layer,
                                           std::uint32_t tail_rows) const {
  std::uint32_t at = resumed_->positions, tail = full_tail(at);
  if (spec.window > 0)
    tail = std::min(layer < resumed_->tails.size() ? resumed_->tails[layer] : at, tail_rows);
  std::vector<std::uint32_t> tails = {tail};
  for (const ReadSpan& span : spans_) {
    tail = spec.window > 0 ? tail + span.end - at : full_tail(span.end);
    if (spec.window > 0 && tail > tail_rows) tail = spec.window + kWindowSlack / 2;
    at = span.end;
    tails.push_back(tail);
  }
  return tails;
}

std::uint32_t TextCuts::raw_rows(const LayerSpec& spec, std::size_t layer,
                                 std::uint32_t tail_rows) const {
  if (!resumed_) return std::min(positions_, kSpanRows + tail_rows);
  const std::vector<std::uint32_t> before = tails(spec, layer, tail_rows);
  std::uint32_t rows = 0;
  for (std::size_t s = 0; s < spans_.size(); ++s)
    rows = std::max(rows, before[s] + spans_[s].end - spans_[s].first);
  return rows;
}

std::vector<std::uint32_t> TextCuts::saved_tails(const LayerSpec& spec, std::size_t layer,
                                                 std::uint32_t tail_rows) const {
  if (!resumed_) return {tail_rows, tail_rows};
  std::vector<std::uint32_t> saved = tails(spec, layer, tail_rows);
  const std::uint32_t tail = saved.back();
  const std::uint32_t at = spans_.empty() ? resumed_->positions : spans_.back().end;
  if (resumed_->positions == 0) saved.erase(saved.begin());
  // Steps lead to a tail that is as long as it gets, unless they end before it.
  const bool seals = method_.tail_begin(positions_) > method_.tail_begin(at);
  const std::uint32_t last = seals && spec.window == 0 ? tail_rows : tail + positions_ - at;
  saved.push_back(std::min(tail_rows, last));
  // And a long text is saved now and then: beside one that is as long.
  if (positions_ > at) saved.push_back(saved.back());
  return saved;
}

}  // namespace thermocline
