// Which NUMA nodes the memory of a cache lies on: those of the processors that compute with it.
#pragma once

#include <cstddef>
#include <memory>
#include <span>

struct hwloc_topology;

namespace thermocline {

// Any thread may use it.
class NumaNodes {
 public:
  // Of the processors that this process may run on when it is first asked. Of a machine that cannot
  // be read: none.
  static const NumaNodes& of_process();
  // Of a machine as hwloc describes it, in tests: "numa:2 core:2 pu:1".
  static NumaNodes described(const char* synthetic);
  NumaNodes(NumaNodes&&) noexcept;
  ~NumaNodes();

  std::size_t count() const { return count_; }
  // Whole pages that nobody has touched yet: each is taken from the next node, since every thread
  // reads all of them. With one node that is where they come from anyway: nothing is done, nor
  // with little memory. False: the system refused, and pages lie where they are first written.
  bool spread(std::span<std::byte> memory) const;

 private:
  struct Machine;
  NumaNodes();
  std::unique_ptr<Machine> machine_;
  std::size_t count_ = 0;
};

}  // namespace thermocline
