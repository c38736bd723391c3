// Decode by a device. Over rows at home there: it chooses among them, where it can, and attends
// what it chose and what stands for the rest; else it attends what the host chose, in one launch a
// layer, while the host attends what lies elsewhere. And, where a method has it fetch, over rows at
// home elsewhere: it chooses among those in host memory and fetches what it has no copy of; what
// the host chose it is sent in launches that take turns: one's rows are gathered while another's
// are attended. Who does what is planned with the cache: it depends on the method and on a layer's
// home, never on what a step found where.
#include <algorithm>

#include "retrieval/index/sketch_index.h"
#include "retrieval/select/sketch_options.h"
#include "runtime/kv_impl.h"

namespace thermocline {

Status KvCache::Impl::open_device_attention() {
  if (plan.device_staging_bytes() == 0) return {};
  TL_TRY_ASSIGN(device_memory,
                budget->reserve(Tier::device, Purpose::staging, plan.device_staging_bytes()));
  TL_TRY_ASSIGN(pinned_memory, budget->reserve(Tier::host, Purpose::staging, plan.pinned_bytes()));
  if (plan.choice.device > 0) {
    TL_TRY_ASSIGN(device_choice, table->device()->open_choice(plan.choice));
  }
  if (plan.device_work_bytes > 0) {
    TL_TRY_ASSIGN(device_attention, table->device()->open_attention(plan.device_work_bytes, 0));
  }
  for (std::uint64_t i = 0; plan.fetch.folds > 0 && i < CachePlan::kFetchLaunches; ++i) {
    TL_TRY_ASSIGN(FetchLaunch launch, FetchLaunch::open(table->device(), plan.fetch));
    fetch_launches.push_back(std::move(launch));
  }
  return {};
}

// Slots are as good as empty once it is not known what is in them.
Status KvCache::Impl::attend_chosen_there(LayerId l) {
  ask_device(l);
  Status answered = answer_questions(l);
  if (!answered)
    for (const Token& row : rows) layer_state(row.timeline, l).slotted.forget();
  return answered;
}

// A step of more rows than there are timelines, which none was planned for, is asked in parts.
Status KvCache::Impl::answer_questions(LayerId l) {
  const SketchFormat format =
      method.select->sketch()->format(shape(l), plan.layers[index(l)].sealed);
  for (std::size_t first = 0; first < questions.size();) {
    TL_TRY_ASSIGN(const std::size_t begun,
                  device_choice->begin(format, std::span(questions).subspan(first)));
    TL_TRY_ASSIGN(const DeviceChoice::Answer answer, device_choice->finish());
    TL_TRY(take_answer(format, first, answer));
    first += begun;
  }
  return {};
}

void KvCache::Impl::ask_device(LayerId l) {
  const auto where = [&](const Run& run, std::uint32_t head) {
    const auto& index = static_cast<const SketchIndex&>(*run.index);
    return SketchedRows{
        .rows = index.rows(),
        .clusters = index.clusters(),
        .codes = index.codes(head),
        .scales = index.scales(head),
        .means = index.means(head),
        .mean_bytes = index.mean_bytes(),
        .starts = index.starts(head).data(),
        .row = table->rows_at(*run.rows, head) + run.rows->layout.key_bytes,
        .summary = table->rows_at(*run.summaries, head),
        .residual = run.codes ? table->rows_at(*run.codes, head) : nullptr,
    };
  };
  std::size_t runs = 0;
  for (const ListQuery& list : list_queries) runs += list.runs.size();
  sketched_rows.clear();
  sketched_rows.reserve(runs);  // questions refer to them
  questions.clear();
  question_lists.clear();
  for (std::size_t i = 0; i < list_queries.size(); ++i) {
    const ListQuery& list = list_queries[i];
    if (list.runs.empty()) continue;
    std::uint32_t sealed = 0;
    for (const Run& run : list.runs) {
      sealed += run.rows->rows;
      sketched_rows.push_back(where(run, list.head));
    }
    const SketchOptions::Budget wanted =
        method.select->sketch()->budget(list.length, list.steady_rows);
    SlottedRows& slotted = layer_state(rows[i / spec(l).kv_heads].timeline, l).slotted;
    questions.push_back({std::span(sketched_rows).last(list.runs.size()), list.query, list.steady,
                         std::min(wanted.read, sealed), std::min(wanted.coded, sealed),
                         slotted.of(list.head, list.runs)});
    question_lists.push_back(static_cast<std::uint32_t>(i));
    // The timeline's next row in this step finds what this one leaves.
    if (list.head + 1 == spec(l).kv_heads) slotted.remember(list.runs);
  }
}

Status KvCache::Impl::take_answer(const SketchFormat& format, std::size_t first,
                                  const DeviceChoice::Answer& answer) {
  const HeadShape heads = format.head;
  counted.device_bytes_exchanged += answer.crossed_bytes;
  for (std::size_t i = 0; i < answer.summaries.size(); ++i) {
    const std::uint32_t list = question_lists[first + i];
    for (std::uint32_t g = 0; g < heads.heads; ++g)
      cpu->attend.merge(answer.states[i * heads.heads + g], heads.value_dim,
                        &steady_states[list * heads.heads + g]);
    count_answer(format, questions[first + i], answer.summaries[i]);
    count_rows(format, questions[first + i], answer.fetched.empty() ? 0 : answer.fetched[i]);
    if (observer) TL_TRY(note_chosen(list, i));
  }
  return {};
}

void KvCache::Impl::count_answer(const SketchFormat& format, const SketchQuestion& question,
                                 std::uint32_t summaries) {
  const std::uint64_t codes = question.coded - std::min(question.coded, question.read);
  const std::uint64_t standing =
      std::uint64_t{summaries} * format.summary_bytes + codes * format.residual_bytes;
  counted.rows_read += question.read;
  counted.summaries_read += summaries;
  counted.codes_read += codes;
  counted.index_bytes_read += standing;
  const std::size_t row = sketch_row_bytes(format.bits, format.head.key_dim) + sizeof(f16);
  for (const SketchedRows& run : question.runs)
    counted.index_bytes_read +=
        round_up(run.rows, kSketchGroup) * row + std::uint64_t{run.clusters} * run.mean_bytes;
}

void KvCache::Impl::count_rows(const SketchFormat& format, const SketchQuestion& question,
                               std::uint32_t fetched) {
  const std::uint32_t there = question.read - fetched;
  counted.device_bytes_read += std::uint64_t{there} * format.row_bytes;
  if (question.slots.memory == nullptr) return;
  counted.device_bytes_fetched += std::uint64_t{fetched} * format.row_bytes;
  counted.host_bytes_read += std::uint64_t{fetched} * format.row_bytes;
  counted.row_cache_hits += there;
  counted.row_cache_misses += fetched;
}

Status KvCache::Impl::note_chosen(std::size_t list, std::size_t answered) {
  ReadList& out = read_lists[list];
  const std::span<const Run> runs = list_queries[list].runs;
  for (const Form form : {Form::rows, Form::codes}) {
    TL_TRY_ASSIGN(const std::vector<RowSet> sets,
                  device_choice->chosen(answered, form == Form::codes));
    const RowSet* set = sets.data();
    for (std::uint32_t r = 0; r < runs.size() && !sets.empty(); ++r) {
      Read read{.run = r, .form = form, .first = static_cast<std::uint32_t>(out.picks.size())};
      for (std::uint32_t b = 0; b < runs[r].rows->blocks(); ++b, ++set)
        if (*set != 0) out.picks.push_back({b, *set});
      read.last = static_cast<std::uint32_t>(out.picks.size());
      if (read.first != read.last) out.reads.push_back(read);
    }
  }
  return {};
}

Result<std::size_t> KvCache::Impl::begin_on_device(LayerId l) {
  device_folds.clear();
  device_partial.clear();
  const HeadShape heads = shape(l);
  for (const ReadyFold& ready : reader->on_device()) {
    device_folds.push_back({ready.fold, list_queries[ready.list].query});
    device_partial.push_back((first_partial[ready.list] + ready.ordinal) * heads.heads);
  }
  if (device_folds.empty()) return 0;
  return device_attention->begin(heads, device_folds, 0);
}

// A step of more rows than there are timelines, which none was planned for, takes several launches.
Status KvCache::Impl::finish_on_device(LayerId l, std::size_t begun) {
  const HeadShape heads = shape(l);
  for (std::size_t first = 0; first < device_folds.size();) {
    TL_TRY_ASSIGN(const DeviceAttention::States states, device_attention->finish());
    take_states(l, states, std::span(device_partial).subspan(first, begun));
    first += begun;
    if (first == device_folds.size()) break;
    TL_TRY_ASSIGN(begun, device_attention->begin(heads, std::span(device_folds).subspan(first), 0));
  }
  return {};
}

void KvCache::Impl::take_states(LayerId l, const DeviceAttention::States& states,
                                std::span<const std::uint32_t> into) {
  const HeadShape heads = shape(l);
  counted.device_bytes_exchanged += states.crossed_bytes;
  workers->parallel(into.size(), 16, [&](std::size_t first, std::size_t last) {
    for (std::size_t f = first; f < last; ++f)
      for (std::uint32_t h = 0; h < heads.heads; ++h) {
        const std::size_t at = f * heads.heads + h;
        AttnState& state = partials[into[f] + h];
        state.max = states.max[at];
        state.sum = states.sum[at];
        std::copy_n(states.acc + at * heads.value_dim, heads.value_dim, state.acc);
      }
  });
}

Status KvCache::Impl::drop_fetched() {
  for (FetchLaunch& launch : fetch_launches) {
    if (!launch.empty()) TL_TRY(launch.finish());
    launch.clear();
  }
  return {};
}

Result<FetchLaunch*> KvCache::Impl::free_launch(LayerId l) {
  FetchLaunch* const launch = &fetch_launches[next_launch];
  next_launch = (next_launch + 1) % fetch_launches.size();
  TL_TRY(finish_launch(l, launch));
  return launch;
}

std::size_t KvCache::Impl::address(LayerId l, std::span<const ReadyFold> wave,
                                   FetchLaunch* launch) const {
  const std::uint32_t heads = shape(l).heads;
  std::size_t folds = 0;
  while (folds < wave.size() &&
         launch->add(wave[folds], list_queries[wave[folds].list].query,
                     (first_partial[wave[folds].list] + wave[folds].ordinal) * heads))
    ++folds;
  TL_CHECK(folds > 0);  // there is room for the largest
  return folds;
}

Status KvCache::Impl::begin_launch(LayerId l, FetchLaunch* launch) {
  if (launch->empty()) return {};
  counted.device_bytes_fetched += launch->row_bytes();
  return launch->begin(shape(l));
}

Status KvCache::Impl::finish_launch(LayerId l, FetchLaunch* launch) {
  if (!launch->empty()) {
    TL_TRY_ASSIGN(const DeviceAttention::States states, launch->finish());
    take_states(l, states, launch->partials());
  }
  launch->clear();
  return {};
}

Status KvCache::Impl::finish_fetched(LayerId l) {
  for (std::size_t i = 0; i < fetch_launches.size(); ++i) TL_TRY(free_launch(l));
  return {};
}

}  // namespace thermocline
