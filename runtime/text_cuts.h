// What a text is cut into on its way through a cache: spans that are read at once, segments that
// are sealed, tails that are saved.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <vector>

#include "runtime/kv_cache.h"
#include "runtime/layer_spec.h"
#include "runtime/method.h"

namespace thermocline {

// Rows that a sliding-window layer keeps beyond its window, so that recent steps can be undone.
inline constexpr std::uint32_t kWindowSlack = 512;

// Positions that a prefill reads at once.
struct ReadSpan {
  std::uint32_t first = 0, end = 0;
};
// In order; of a course that is not known the longest that can be.
std::vector<ReadSpan> read_spans(const CacheOptions& options);
// Its rows; 0: there is none.
std::uint32_t longest_of(std::span<const ReadSpan> spans);

// Of a timeline of options.max_positions. Of a course that is not known everything is the worst
// that it can come to: it need not all come together.
class TextCuts {
 public:
  struct Alike {  // segments
    std::uint32_t rows = 0;
    std::uint64_t count = 0;
    std::uint32_t at_once = 0;  // rows that leave a tail together, from the first one's on
  };
  static TextCuts of(const CacheOptions& options, const Method& method);

  std::uint32_t longest_span() const { return longest_of(spans_); }
  // Raw rows of layer number `layer` that are in hand at once, at most, in a prefill or a cut,
  // which is in no course: those of its tail, which keeps at most `tail_rows`, among them.
  std::uint32_t raw_rows(const LayerSpec& spec, std::size_t layer, std::uint32_t tail_rows) const;
  // Of a layer that seals: rows of a segment -> how many of those there are at the end.
  const std::map<std::uint32_t, std::uint64_t>& segments() const { return segments_; }
  std::uint64_t segment_count() const;
  // That others are formed into (runtime/joint.h); 0: none are.
  std::uint32_t longest_joint() const { return joint_; }
  // Of those others what the last save may refer to, when nobody holds them any more.
  std::uint32_t replaced_rows() const { return replaced_; }
  // That is formed; that is read back from a session's file.
  std::uint32_t longest_segment() const { return longest_; }
  std::uint32_t longest_held() const { return longest_held_; }
  // That is read back for another cache to take; 0: none takes any.
  std::uint32_t longest_copied() const { return copied_; }
  // Rows that leave a tail together, at most.
  std::uint32_t most_at_once() const;
  // Segments as they are formed: each is there while those after it are.
  std::span<const Alike> formed() const { return formed_; }
  // Rows of the tail in each save, one after the other.
  std::vector<std::uint32_t> saved_tails(const LayerSpec& spec, std::size_t layer,
                                         std::uint32_t tail_rows) const;

 private:
  TextCuts(const Method& method, std::uint32_t positions)
      : method_(method), positions_(positions) {}
  void walk(const Course& course);
  void take_held(std::uint32_t sealed);
  void take_worst();
  void seal_read(std::uint32_t begin, std::uint32_t end);
  void seal_steps(std::uint32_t begin, std::uint32_t end);
  void add(const Alike& segments);
  void join(std::span<const Alike> all, std::uint32_t read);
  std::uint32_t full_tail(std::uint32_t length) const;
  std::vector<std::uint32_t> tails(const LayerSpec& spec, std::size_t layer,
                                   std::uint32_t tail_rows) const;

  const Method& method_;
  std::uint32_t positions_;
  std::optional<HeldText> resumed_;  // of a known course
  std::vector<ReadSpan> spans_;
  std::map<std::uint32_t, std::uint64_t> segments_;
  std::vector<Alike> formed_;
  std::uint32_t longest_ = 0, longest_held_ = 0, copied_ = 0;
  std::uint32_t joint_ = 0, replaced_ = 0;
};

}  // namespace thermocline
