// The best keys that one query head has found while a graph is walked, best first.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

namespace thermocline {

// In memory that someone else owns: score and key [most]. Keys are below 2^31. Equal scores go to
// the lower key.
class GraphBeam {
 public:
  GraphBeam(float* score, std::uint32_t* key, std::uint32_t most)
      : score_(score), key_(key), most_(most) {}

  // Whether it is one of the best.
  bool offer(float score, std::uint32_t key) {
    const auto before = [&](std::uint32_t at) {  // does what is there come first?
      return score_[at] > score || (score_[at] == score && (key_[at] & ~kFollowed) < key);
    };
    if (!(score > kNone) || (count_ == most_ && before(count_ - 1))) return false;
    std::uint32_t low = 0, high = count_;
    while (low < high) {
      const std::uint32_t middle = (low + high) / 2;
      if (before(middle))
        low = middle + 1;
      else
        high = middle;
    }
    if (count_ < most_) ++count_;
    std::copy_backward(score_ + low, score_ + count_ - 1, score_ + count_);
    std::copy_backward(key_ + low, key_ + count_ - 1, key_ + count_);
    score_[low] = score;
    key_[low] = key;
    next_ = std::min(next_, low);
    return true;
  }
  // The best key whose links are still to be followed; false: there is none.
  bool next(std::uint32_t* key) {
    while (next_ < count_ && (key_[next_] & kFollowed)) ++next_;
    if (next_ == count_) return false;
    *key = key_[next_];
    key_[next_] |= kFollowed;
    return true;
  }

 private:
  static constexpr float kNone = -std::numeric_limits<float>::infinity();
  static constexpr std::uint32_t kFollowed = 1u << 31;  // its links were followed

  float* score_;
  std::uint32_t* key_;
  std::uint32_t most_, count_ = 0, next_ = 0;
};

}  // namespace thermocline
