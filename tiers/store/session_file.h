// The disk tier's bytes in a file that is kept: the session from its first row on, so that saving
// it rewrites nothing.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "kernels/base/error.h"
#include "tiers/io/descriptor.h"
#include "tiers/store/extents.h"
#include "tiers/store/keeper.h"
#include "tiers/store/publication.h"

namespace thermocline {

// A new one has no name until it is first published, so that a process which is killed leaves
// nothing; one that is there is opened in place. Either is one process's at a time: another that
// asks for it is refused at once, or, where it could not be seen (tiers/io/name_claim.h), when it
// publishes, and what is there stays. 0600; a symbolic link, another user's file or one that others
// may write to is refused. O_DIRECT where the filesystem allows it for whole pages.
// Space is taken as of a ScratchFile. What was taken and not published is given back to the
// filesystem when it is given back here, or when the file is next opened.
class SessionFile final : public Store, public Keeper {
 public:
  static constexpr StoreFacts kFacts = {Tier::disk, Reach::pages};
  // exhausted: it holds more than `budget_bytes` already; corrupt, unsupported: see
  // read_publication().
  static Result<SessionFile> open(const std::string& path, std::uint64_t budget_bytes,
                                  const PlannedUse& planned = {});
  // What open() would say, an error or note(), with nothing made or changed.
  static Result<std::string> probe(const std::string& path, const PlannedUse& planned = {});
  SessionFile() = default;
  int descriptor() const { return file_.number(); }

  StoreFacts facts() const override { return kFacts; }
  const std::string& name() const override { return name_; }
  std::string note() const override { return note_; }
  Result<Space> take(std::uint64_t bytes) override {
    return (keeps() ? extents_ : scratch_).take(bytes);
  }
  void give(const Space& space) override;
  Keeper* keeper() override { return this; }

  std::vector<std::byte> take_manifest() override { return std::exchange(manifest_, {}); }
  std::uint64_t kept_bytes() const override {
    return kSessionHeaderBytes + records_bytes_ + unheld_bytes_;
  }
  std::uint64_t publication_bytes(std::uint64_t manifest_bytes,
                                  std::uint64_t extents) const override {
    return record_bytes(manifest_bytes, extents);
  }
  Status stop_keeping() override;
  bool keeps() const override { return !scratch_file_.open(); }
  Result<Space> claim(const Extent& extent) override;
  Status publish(const WriteRecord& manifest, std::span<const Extent> extents) override;

 private:
  using Places = std::map<std::uint64_t, std::uint64_t>;  // offset -> bytes, whole pages
  // The file, locked, or the claim to its name.
  Status find();
  Status take_publication(std::uint64_t budget_bytes);
  Status lock() const;
  Status allocate_headers() const;
  Status write_record(const Buffer& record, std::uint64_t offset);
  Status write_header(std::uint64_t generation, std::uint64_t record_offset, const Buffer& record);
  Status write(const Buffer& pages, std::uint64_t offset) const;
  Status sync(int file);
  Status give_a_name() const;
  bool has_its_name() const;
  Status check_whole() const;
  // The record at `record` counts, of the next generation, and what only the one before it names
  // is given back.
  void take_effect(std::span<const Extent> extents, const Extent& record);
  void give_back(const Extent& extent);

  std::string path_, name_, note_;
  Descriptor directory_, file_;
  Descriptor claim_;  // to its name, until it has it
  Extents extents_;
  Descriptor scratch_file_;  // beside it, once nothing is kept any more
  Extents scratch_;          // of that
  bool named_ = false;
  // Something could not be brought to the disk, or a header of a named file not be written: nobody
  // knows what is there, and asking once more would not tell.
  bool uncertain_ = false;
  std::uint64_t generation_ = 0;
  Extent record_;
  std::uint64_t records_bytes_ = 0;  // that one, or of both
  std::vector<std::byte> manifest_;  // as it was found, until it is taken
  Places published_;  // extents of the last publication, or of both that may be the last
  Places unheld_;     // those of them that nobody holds
  std::uint64_t unheld_bytes_ = 0;
};

}  // namespace thermocline
