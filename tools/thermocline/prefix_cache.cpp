#include "tools/thermocline/prefix_cache.h"

#include <fcntl.h>
#include <sodium.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <thread>
#include <tuple>

#include "tools/thermocline/common_tokens.h"
#include "tools/thermocline/size.h"
#include "tools/thermocline/user_cache.h"

namespace thermocline {
namespace {

namespace fs = std::filesystem;

// Reading fewer tokens again costs less than looking after them.
constexpr std::size_t kLeastTokens = 256;

// Another process that saves gigabytes takes some seconds.
constexpr std::chrono::seconds kPatience{30};

// Whatever else is in the folder is passed over.
std::vector<std::string> entries_of(const std::string& folder) {
  std::vector<std::string> found;
  std::error_code error;
  for (fs::directory_iterator at(folder, error), end; !error && at != end; at.increment(error))
    if (at->path().extension() == ".tls") found.push_back(at->path().string());
  return found;
}

// What goes first.
struct Evictable {
  bool readable = false;
  std::int64_t used_s = 0, used_ns = 0;
  std::uint64_t disk_bytes = 0;
  std::string path;

  bool operator<(const Evictable& other) const {
    return std::tie(readable, used_s, used_ns, path) <
           std::tie(other.readable, other.used_s, other.used_ns, other.path);
  }
};

std::vector<Evictable> evictable_of(const std::string& folder, const std::string& but) {
  std::vector<Evictable> found;
  for (std::string& path : entries_of(folder)) {
    struct stat file {};
    if (path == but || ::lstat(path.c_str(), &file) != 0 || S_ISDIR(file.st_mode)) continue;
    found.push_back({read_session(path).has_value(), file.st_mtim.tv_sec, file.st_mtim.tv_nsec,
                     static_cast<std::uint64_t>(file.st_blocks) * 512, std::move(path)});
  }
  std::sort(found.begin(), found.end());
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

Result<PrefixCache> PrefixCache::open(std::uint64_t budget_bytes, Missing missing,
                                      std::string folder) {
  if (sodium_init() < 0)
    return fail(ErrorCode::unsupported, "--prefix-cache: libsodium could not be initialised");
  if (folder.empty()) {
    TL_TRY_ASSIGN(folder, default_folder());
  }
  std::error_code error;
  if (missing == Missing::stays && !fs::exists(folder, error)) {
    fs::path above = fs::absolute(folder, error);
    while (above.has_relative_path() && !fs::is_directory(above, error))
      above = above.parent_path();
    PrefixCache none(above.string(), budget_bytes);
    none.missing_ = true;
    return none;
  }
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
  if (missing_) return name_of(facts, tokens);
  std::string best;
  std::size_t most = kLeastTokens, least_else = 0;
  for (const std::string& path : entries_of(folder_)) {
    const Result<SavedSession> session = read_session(path);
    if (!session || !same_facts(facts, session->facts)) continue;
    // The tokens themselves are compared: a name is a hint, and proves nothing.
    const std::size_t common = common_tokens(session->text.tokens, tokens);
    const std::size_t rest = session->text.tokens.size() - common;
    if (common < most || (common == most && !best.empty() && rest >= least_else)) continue;
    if (!session_is_free(path)) continue;
    most = common;
    least_else = rest;
    best = path;
  }
  return best.empty() ? name_of(facts, tokens) : best;
}

Result<std::string> PrefixCache::branch(const std::string& path, std::span<const SessionFact> facts,
                                        std::span<const int> tokens) const {
  const std::string copy = name_of(facts, tokens);
  if (is_session(copy)) return copy;  // of a run that did not come to an end
  TL_TRY_ASSIGN(const Keeping keeping, begin_keeping());
  used(path);  // the last to make room
  struct stat file {};
  const bool found = ::lstat(path.c_str(), &file) == 0;
  const std::uint64_t bytes = found ? static_cast<std::uint64_t>(file.st_blocks) * 512 : 0;
  if (bytes > budget_bytes_ / 2 || !make_room(keeping, bytes, copy))
    return fail(ErrorCode::exhausted, "it is too small for it beside one that begins alike, of ",
                format_size(bytes));
  std::error_code error;
  if (!fs::copy_file(path, copy, error)) {
    (void)::unlink(copy.c_str());
    return fail(ErrorCode::io, "one that begins alike could not be copied: ", error.message());
  }
  return copy;
}

PrefixCache::Keeping::~Keeping() {
  if (folder_ >= 0) ::close(folder_);  // and the lock with it
}

Result<PrefixCache::Keeping> PrefixCache::begin_keeping() const {
  constexpr std::chrono::milliseconds kPause{20};
  Keeping keeping(::open(folder_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  for (auto waited = kPause * 0; ::flock(keeping.folder_, LOCK_EX | LOCK_NB) != 0;
       waited += kPause) {
    if ((errno != EWOULDBLOCK && errno != EINTR) || waited >= kPatience)
      return fail(ErrorCode::io, folder_, " could not be locked: ", std::strerror(errno));
    std::this_thread::sleep_for(kPause);
  }
  return keeping;
}

bool PrefixCache::make_room(const Keeping&, std::uint64_t bytes, const std::string& path) const {
  if (bytes > budget_bytes_) return false;
  const std::vector<Evictable> others = evictable_of(folder_, path);
  std::uint64_t held = bytes;
  for (const Evictable& entry : others) held += entry.disk_bytes;
  for (const Evictable& entry : others) {
    if (held <= budget_bytes_) break;
    remove(entry.path);
    if (::access(entry.path.c_str(), F_OK) != 0) held -= entry.disk_bytes;
  }
  return held <= budget_bytes_;
}

void PrefixCache::hold_budget(std::uint64_t bytes, const std::string& path) const {
  const auto keeping = begin_keeping();
  if (!keeping) return;
  struct stat file {};
  const std::uint64_t held =
      ::lstat(path.c_str(), &file) == 0 ? static_cast<std::uint64_t>(file.st_blocks) * 512 : 0;
  const std::uint64_t due = std::max(bytes, held);
  (void)(due <= budget_bytes_ ? make_room(*keeping, due, path) : make_room(*keeping, 0, {}));
}

void PrefixCache::used(const std::string& path) const {
  (void)::utimensat(AT_FDCWD, path.c_str(), nullptr, AT_SYMLINK_NOFOLLOW);
}

void PrefixCache::name(const Keeping&, const std::string& path, std::span<const SessionFact> facts,
                       std::span<const int> tokens) const {
  const std::string due = name_of(facts, tokens);
  if (due != path) (void)::rename(path.c_str(), due.c_str());
}

void PrefixCache::remove(const std::string& path) const {
  const Status removed = remove_session(path);
  // What does not even begin like a session is in the way all the same.
  if (!removed && removed.error().code != ErrorCode::not_found && session_is_free(path))
    (void)::unlink(path.c_str());
}

}  // namespace thermocline
