// First, clusters: the scores of their means, of all of them or, where they are very many, of those
// in the best groups, while a group stands for its other rows.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/topk.h"
#include "retrieval/select/sketch_list.h"
#include "retrieval/select/sketch_units.h"

namespace thermocline {

// Clusters [first, last) of a run, whose means are scored.
struct SketchPatch {
  std::uint32_t run = 0, first = 0, last = 0;
  std::size_t at = 0;  // of cluster `first` among the units
  std::uint32_t clusters() const { return last - first; }
};

class SketchMeans {
 public:
  void score(const SketchList& list);
  // How much mass the best row of each scored cluster may have: units().rating of the patches'
  // clusters; negative where a group stands for it.
  void rate(const SketchList& list);

  // By run, ascending.
  std::span<const SketchPatch> patches() const { return patches_; }
  // Of all patches.
  std::size_t clusters() const { return clusters_; }
  // Whether only the best groups' clusters are scored.
  bool grouped() const { return grouped_; }
  // The patches' clusters; then, if grouped, the groups of all runs: their rows in no patch.
  const SketchUnits& units() const { return units_; }
  SketchUnits& units() { return units_; }

 private:
  void find_patches(const SketchList& list);
  void rate_groups(const SketchList& list);
  void add_patches(const SketchList& list, std::uint32_t run, std::size_t first_group);
  void leave_groups(const SketchList& list);

  bool grouped_ = false;
  SketchUnits groups_;  // of all runs, one after the other, if so
  std::vector<RowSet> taken_groups_;
  std::vector<SketchPatch> patches_;
  std::vector<std::uint32_t> lent_;  // the units in patches of groups that are not taken
  std::size_t clusters_ = 0;
  SketchUnits units_;
  TopRowsScratch top_;
};

}  // namespace thermocline
