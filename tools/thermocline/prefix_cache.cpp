#include "tools/thermocline/prefix_cache.h"

#include <fcntl.h>
#include <sodium.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <filesystem>

#include "tools/thermocline/user_cache.h"

namespace thermocline {
namespace {

namespace fs = std::filesystem;

// Reading fewer tokens again costs less than looking after them.
constexpr std::size_t kLeastTokens = 256;

bool free_to_use(const std::string& path) {
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
  if (file < 0) return false;
  const bool free = ::flock(file, LOCK_EX | LOCK_NB) == 0;
  ::close(file);
  return free;
}

struct Entry {
  std::string path;
  SavedSession session;
};

// Whatever else is in the folder is passed over.
std::vector<Entry> entries_of(const std::string& folder) {
  std::vector<Entry> found;
  std::error_code error;
  for (fs::directory_iterator at(folder, error), end; !error && at != end; at.increment(error)) {
    if (at->path().extension() != ".tls") continue;
    Result<SavedSession> session = read_session(at->path().string());
    if (session) found.push_back({at->path().string(), std::move(*session)});
  }
  return found;
}

bool same_facts(std::span<const SessionFact> due, std::span<const SessionFact> held) {
  return std::all_of(due.begin(), due.end(), [&](const SessionFact& one) {
    return std::any_of(held.begin(), held.end(), [&](const SessionFact& other) {
      return other.name == one.name && other.value == one.value;
    });
  });
}

class Hash {
 public:
  Hash() { crypto_generichash_init(&state_, nullptr, 0, kBytes); }
  // With its length: what follows cannot be taken for a part of it.
  void add(std::span<const std::byte> bytes) {
    const std::uint64_t length = bytes.size();
    add_raw(std::as_bytes(std::span(&length, 1)));
    add_raw(bytes);
  }
  std::string text() {
    std::array<unsigned char, kBytes> hash{};
    crypto_generichash_final(&state_, hash.data(), hash.size());
    std::array<char, 2 * kBytes + 1> hex{};
    return sodium_bin2hex(hex.data(), hex.size(), hash.data(), hash.size());
  }

 private:
  static constexpr std::size_t kBytes = 32;
  void add_raw(std::span<const std::byte> bytes) {
    crypto_generichash_update(&state_, reinterpret_cast<const unsigned char*>(bytes.data()),
                              bytes.size());
  }
  crypto_generichash_state state_;
};

}  // namespace

Result<std::string> PrefixCache::default_folder() {
  if (const auto cache = user_cache()) return *cache + "/thermocline/prefixes";
  return fail(ErrorCode::not_found,
              "--prefix-cache: neither XDG_CACHE_HOME nor HOME says where the user's cache is");
}

Result<PrefixCache> PrefixCache::open(std::uint64_t budget_bytes, std::string folder) {
  if (sodium_init() < 0)
    return fail(ErrorCode::unsupported, "--prefix-cache: libsodium could not be initialised");
  if (folder.empty()) {
    TL_TRY_ASSIGN(folder, default_folder());
  }
  std::error_code error;
  fs::create_directories(fs::path(folder).parent_path(), error);
  if (::mkdir(folder.c_str(), 0700) != 0 && errno != EEXIST)
    return fail(ErrorCode::io, "--prefix-cache: the folder ", folder,
                " could not be made: ", std::strerror(errno));
  struct stat found {};
  if (::lstat(folder.c_str(), &found) != 0 || !S_ISDIR(found.st_mode) ||
      found.st_uid != ::geteuid() || (found.st_mode & (S_IWGRP | S_IWOTH)))
    return fail(ErrorCode::invalid_argument, "--prefix-cache: ", folder,
                " is no folder of this user's alone: remove it, or take the others' rights away");
  return PrefixCache(std::move(folder), budget_bytes);
}

std::string PrefixCache::name_of(std::span<const SessionFact> facts,
                                 std::span<const int> tokens) const {
  Hash hash;
  for (const SessionFact& fact : facts) {
    hash.add(std::as_bytes(std::span(fact.name)));
    hash.add(std::as_bytes(std::span(fact.value)));
  }
  hash.add(std::as_bytes(tokens));
  return folder_ + "/" + hash.text() + ".tls";
}

std::string PrefixCache::choose(std::span<const SessionFact> facts,
                                std::span<const int> tokens) const {
  std::string best;
  std::size_t most = std::max(kLeastTokens, tokens.size() / 4) - 1;
  for (const Entry& entry : entries_of(folder_)) {
    if (!same_facts(facts, entry.session.facts)) continue;
    // The tokens themselves are compared: a name is a hint, and proves nothing.
    const std::vector<int>& held = entry.session.text.tokens;
    const auto differs = std::mismatch(held.begin(), held.end(), tokens.begin(), tokens.end());
    const auto common = static_cast<std::size_t>(differs.first - held.begin());
    if (common <= most || !free_to_use(entry.path)) continue;
    most = common;
    best = entry.path;
  }
  return best.empty() ? name_of(facts, tokens) : best;
}

bool PrefixCache::make_room(std::uint64_t bytes, const std::string& path) const {
  if (bytes > budget_bytes_) return false;
  std::vector<Entry> others = entries_of(folder_);
  std::erase_if(others, [&](const Entry& entry) { return entry.path == path; });
  std::sort(others.begin(), others.end(),
            [](const Entry& a, const Entry& b) { return a.session.saved_at < b.session.saved_at; });
  std::uint64_t held = bytes;
  for (const Entry& entry : others) held += entry.session.disk_bytes;
  for (const Entry& entry : others) {
    if (held <= budget_bytes_) break;
    if (remove_session(entry.path)) held -= entry.session.disk_bytes;
  }
  return held <= budget_bytes_;
}

void PrefixCache::used(const std::string& path) const {
  (void)::utimensat(AT_FDCWD, path.c_str(), nullptr, AT_SYMLINK_NOFOLLOW);
}

void PrefixCache::name(const std::string& path, std::span<const SessionFact> facts,
                       std::span<const int> tokens) const {
  const std::string due = name_of(facts, tokens);
  if (due != path) (void)::rename(path.c_str(), due.c_str());
}

}  // namespace thermocline
