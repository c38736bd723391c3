#include "retrieval/rows_read.h"

namespace thermocline {

std::uint64_t rows_read(std::span<const Run> runs, const ReadList& list, Form form) {
  std::uint64_t rows = 0;
  for (const Read& read : list.reads) {
    if (read.form != form) continue;
    const Run& run = runs[read.run];
    if (read.everything) rows += run.in(form).rows;
    for (std::uint32_t p = read.first; !read.everything && p < read.last; ++p)
      rows += static_cast<std::uint64_t>(count(list.picks[p].rows));
  }
  return rows;
}

}  // namespace thermocline
