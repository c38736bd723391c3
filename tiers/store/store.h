// Where a tier keeps bytes. A store gives space and takes it back; what lies there, and where in
// it, is the page table's business. Another store is a file here and a line in stores.cpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

#include "kernels/base/error.h"
#include "kernels/device.h"
#include "tiers/budget.h"
#include "tiers/tier.h"

namespace thermocline {

// How what is in a store is reached. It decides how a segment is laid out and planned.
enum class Reach : std::uint8_t {
  memory,  // by address: rows are attended where they lie
  device,  // by a device alone, which attends them; copied to where the host reaches them
  pages,   // through a Sink, in whole pages of a file: each has a checksum, rows in use are cached
};

struct StoreFacts {
  Tier tier = Tier::host;
  Reach reach = Reach::memory;
};

// What will be taken of a store in the end, and for how many positions.
struct PlannedUse {
  std::uint64_t bytes = 0, positions = 0;
};

// What a store gave. Its content is undefined.
struct Space {
  std::uint64_t bytes = 0;
  std::byte* address = nullptr;  // Reach::memory; Reach::device: where the device has it
  int file = -1;                 // Reach::pages: an extent of this file, whole pages
  std::uint64_t offset = 0;      // that begins here
};

// A part of a file, whole pages.
struct Extent {
  std::uint64_t offset = 0, bytes = 0;
};

class Keeper;

// Belongs to one thread; what it gave may be read and written from any.
class Store {
 public:
  virtual ~Store() = default;
  virtual StoreFacts facts() const = 0;
  // What messages call it, with its place: "--session notes.tls".
  virtual const std::string& name() const = 0;
  // exhausted: what is needed, what there is, which flag to change.
  virtual Result<Space> take(std::uint64_t bytes) = 0;
  // What take() returned. No transfer may be in flight to it: it could arrive over what the next
  // owner has written.
  virtual void give(const Space& space) = 0;
  // Itself, where its content outlives the process; else null.
  virtual Keeper* keeper() { return nullptr; }
  // Reach::device: whose memory it is; else null.
  virtual Device* device() { return nullptr; }
  // What whoever asked for the store should know; "": nothing.
  virtual std::string note() const { return {}; }
};

// Space of a store and the same bytes in the ledger of its tier: both go back when it goes, before
// which neither store nor ledger may go. Move-only.
class Slot {
 public:
  Slot() = default;
  // exhausted: the ledger's refusal, or the store's.
  static Result<Slot> take(Store* store, Budget* budget, Purpose purpose, std::uint64_t bytes);
  // Of an extent that was in a kept store before it was opened; its bytes are in the ledger
  // already, among those of `kept`.
  static Result<Slot> claim(Store* store, Budget* budget, Purpose purpose, const Extent& extent,
                            Reservation* kept);
  Slot(Slot&& other) noexcept
      : store_(std::exchange(other.store_, nullptr)),
        space_(other.space_),
        held_(std::move(other.held_)) {}
  Slot& operator=(Slot&& other) noexcept {
    std::swap(store_, other.store_);
    std::swap(space_, other.space_);
    std::swap(held_, other.held_);
    return *this;
  }
  ~Slot() {
    if (store_) store_->give(space_);
  }
  const Space& space() const { return space_; }
  // The space stays taken for as long as the store lives: something may still come there.
  void leave() { store_ = nullptr; }

 private:
  Store* store_ = nullptr;
  Space space_;
  Reservation held_;
};

}  // namespace thermocline
