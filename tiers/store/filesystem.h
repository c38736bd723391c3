// What the filesystem below a file of the cache is like.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "kernels/base/error.h"
#include "tiers/store/store.h"

namespace thermocline {

// Whether whole pages can be read and written past the page cache: some filesystems allow larger
// pieces alone, or none, whatever they said when `file` was opened with O_DIRECT. Both ask, and
// then try, since FUSE and older kernels cannot be asked: the first on a file without content,
// which it leaves without any, the second by reading a page of one that has some.
bool direct_pages_work(int file);
bool direct_pages_can_be_read(int file);
// A filesystem whose files are memory.
bool in_memory(int file);
// Nothing: it does not say, as a tmpfs without a limit.
std::optional<std::uint64_t> free_on_filesystem(int file);

// exhausted: there is less room than is planned, with what there would be enough for; what `file`
// holds already is part of the plan. Or this process may not write a file as large (RLIMIT_FSIZE).
// Asked before anything is computed: a disk that fills up half way has wasted the half. `where`
// begins the message ("--kv-dir /data").
Status check_planned(int file, const std::string& where, const PlannedUse& planned);

// What whoever named the file's place should know: that it is memory, or read through the page
// cache; "": nothing.
std::string note_on_filesystem(int file, const std::string& where, bool direct);

}  // namespace thermocline
