// Decode by a device that chooses. Questions go there, and a state a list comes back: of what it
// chose and of what stands for the rest. Rows at home there it attends where they are, of others it
// has copies in slots. Those that no slot holds it fetches from host memory itself; of those on a
// disk it gives the host a list, is sent them and then goes on.
#include <algorithm>

#include "kernels/sketch.h"
#include "retrieval/select/device_rule.h"
#include "runtime/kv_impl.h"

namespace thermocline {
namespace {

// The same rows of `runs`, which are numbered run after run, each run's in whole blocks.
void list_rows(std::span<const Run> runs, std::span<const std::uint32_t> rows, ReadList* out) {
  out->clear();
  std::uint32_t first_block = 0;
  auto row = rows.begin();
  for (std::uint32_t r = 0; r < runs.size(); ++r) {
    const std::uint32_t end_block = first_block + runs[r].rows->blocks();
    Read read{.run = r, .first = static_cast<std::uint32_t>(out->picks.size())};
    for (; row != rows.end() && *row / kBlockRows < end_block; ++row) {
      const std::uint32_t block = *row / kBlockRows - first_block;
      if (out->picks.size() == read.first || out->picks.back().block != block)
        out->picks.push_back({block, 0});
      out->picks.back().rows |= RowSet{1} << (*row % kBlockRows);
    }
    read.last = static_cast<std::uint32_t>(out->picks.size());
    if (read.first != read.last) out->reads.push_back(read);
    first_block = end_block;
  }
}

}  // namespace

// Slots are as good as empty once it is not known what is in them.
Status KvCache::Impl::attend_chosen_there(LayerId l) {
  ask_device(l, &questions);
  Status answered = answer_questions(l);
  if (!answered)
    for (const Token& row : rows) layer_state(row.timeline, l).slotted.forget();
  return answered;
}

ChoiceFormat KvCache::Impl::choice_format(LayerId l) const {
  ChoiceFormat format =
      method.select->device_rule()->format(shape(l), plan.layers[index(l)].sealed);
  format.rotation = rotation_of(l, Side::keys);
  return format;
}

// A step of more rows than there are timelines, which none was planned for, is asked in parts.
Status KvCache::Impl::answer_questions(LayerId l) {
  for (std::size_t first = 0; first < questions.of.size();) {
    TL_TRY_ASSIGN(const std::size_t begun,
                  device_choice->begin(choice_format(l), std::span(questions.of).subspan(first)));
    if (plan.layers[index(l)].in_pages()) TL_TRY(send_missed(l, first));
    TL_TRY_ASSIGN(const DeviceChoice::Answer answer, device_choice->finish());
    TL_TRY(take_answer(l, first, answer));
    first += begun;
  }
  return {};
}

// From the disk, or what is in front of it, to the slots that those rows have there: all are asked
// for at once, and as many at a time cross as there is pinned memory for.
Status KvCache::Impl::send_missed(LayerId l, std::size_t first) {
  TL_TRY_ASSIGN(const auto missed, device_choice->missed());
  if (std::ranges::all_of(missed, [](const auto& of_list) { return of_list.empty(); })) return {};
  if (missed_lists.size() < missed.size()) missed_lists.resize(missed.size());
  requests.clear();
  for (std::size_t i = 0; i < missed.size(); ++i) {
    const ListQuery& list = list_queries[questions.lists[first + i]];
    list_rows(list.runs, missed[i], &missed_lists[i]);
    requests.push_back({list.head, list.runs, &missed_lists[i]});
  }
  TL_TRY(reader->start(index(l), FoldOrder::any, DeviceRows::sent));
  TL_TRY(reader->add(requests));
  while (true) {
    TL_TRY_ASSIGN(const auto wave, reader->next());
    if (wave.empty()) return {};
    TL_TRY(send_wave(l, wave));
  }
}

Status KvCache::Impl::send_wave(LayerId l, std::span<const ReadyFold> wave) {
  const std::size_t row_bytes = plan.layers[index(l)].sealed.bytes();
  while (!wave.empty()) {
    TL_TRY_ASSIGN(std::span<std::byte> room, device_choice->room(wave.front().rows * row_bytes));
    packed.clear();
    packed_at.clear();
    for (const ReadyFold& fold : wave) {
      const std::size_t bytes = fold.rows * row_bytes;
      if (bytes > room.size()) break;
      packed.push_back({fold.list, fold.before, fold.rows, room.data()});
      packed_at.push_back(room.data());
      room = room.subspan(bytes);
    }
    TL_TRY(choose_and_take(l, 0, 0, wave.first(packed.size()), packed_at));
    TL_TRY(device_choice->send(packed));
    wave = wave.subspan(packed.size());
  }
  return {};
}

void KvCache::Impl::ask_device(LayerId l, Questions* asked) {
  const bool in_pages = plan.layers[index(l)].in_pages();
  const DeviceRule& rule = *method.select->device_rule();
  const auto where = [&](const Run& run, std::uint32_t head) {
    IndexedRows made = rule.indexed(shape(l), run, head);
    if (!in_pages) made.row = table->rows_at(*run.rows, head) + run.rows->layout.key_bytes;
    if (run.summaries) made.summary = table->rows_at(*run.summaries, head);
    if (run.codes) made.residual = table->rows_at(*run.codes, head);
    made.low_rank = low_rank_there(*run.rows, head);
    return made;
  };
  std::size_t runs = 0;
  for (const ListQuery& list : list_queries) runs += list.runs.size();
  asked->runs.clear();
  asked->runs.reserve(runs);  // questions refer to them
  asked->of.clear();
  asked->lists.clear();
  for (std::size_t i = 0; i < list_queries.size(); ++i) {
    const ListQuery& list = list_queries[i];
    if (list.runs.empty()) continue;
    std::uint32_t sealed = 0;
    for (const Run& run : list.runs) {
      sealed += run.rows->rows;
      asked->runs.push_back(where(run, list.head));
    }
    const DeviceRule::Budget wanted = rule.budget(list.length, list.steady_rows, sealed);
    SlottedRows& slotted = layer_state(rows[i / spec(l).kv_heads].timeline, l).slotted;
    asked->of.push_back({std::span(asked->runs).last(list.runs.size()), list.query, list.steady,
                         std::min(wanted.read, sealed), std::min(wanted.coded, sealed),
                         wanted.estimated, slotted.of(list.head, list.runs)});
    asked->lists.push_back(static_cast<std::uint32_t>(i));
    // The timeline's next row in this step finds what this one leaves.
    if (list.head + 1 == spec(l).kv_heads) slotted.remember(list.runs);
  }
}

Status KvCache::Impl::take_answer(LayerId l, std::size_t first,
                                  const DeviceChoice::Answer& answer) {
  const ChoiceFormat format = choice_format(l);
  const HeadShape heads = format.head;
  const bool goes_on_there = there_begun > 0 && there_layers[there_begun - 1].layer == l;
  counted.device_bytes_exchanged += answer.crossed_bytes;
  for (std::size_t i = 0; i < answer.summaries.size(); ++i) {
    const std::uint32_t list = questions.lists[first + i];
    const ChoiceQuestion& question = questions.of[first + i];
    const auto states = answer.states.subspan(i * heads.heads, heads.heads);
    if (goes_on_there) {
      TL_TRY(device_step->give(list, states));
    } else {
      for (std::uint32_t g = 0; g < heads.heads; ++g)
        cpu->attend.merge(states[g], heads.value_dim, &steady_states[list * heads.heads + g]);
    }
    count_answer(format, question, answer.read[i], answer.summaries[i]);
    count_rows(format, question, answer.read[i], answer.fetched.empty() ? 0 : answer.fetched[i]);
    if (!answer.of_runs.empty())
      count_rebuilt(list_queries[list].runs, answer.of_runs.subspan(i * answer.runs, answer.runs));
    if (observer) TL_TRY(note_chosen(list, i));
  }
  return {};
}

void KvCache::Impl::count_answer(const ChoiceFormat& format, const ChoiceQuestion& question,
                                 std::uint32_t read, std::uint32_t summaries) {
  const std::uint64_t codes = question.coded - std::min(question.coded, question.read);
  const std::uint64_t standing =
      std::uint64_t{summaries} * format.summary_bytes + codes * format.residual_bytes;
  counted.rows_read += read;
  counted.summaries_read += summaries;
  counted.codes_read += codes;
  counted.index_bytes_read += standing;
  const std::size_t row =
      format.bits > 0 ? sketch_row_bytes(format.bits, format.head.key_dim) + sizeof(f16) : 0;
  for (const IndexedRows& run : question.runs)
    counted.index_bytes_read +=
        round_up(run.rows, kSketchGroup) * row +
        std::uint64_t{run.units} * (run.unit_key_bytes + (run.always != nullptr ? 1 : 0));
}

// Those that came from a disk were counted where they were read.
void KvCache::Impl::count_rows(const ChoiceFormat& format, const ChoiceQuestion& question,
                               std::uint32_t read, std::uint32_t fetched) {
  const std::uint32_t there = read - fetched;
  counted.device_bytes_read += std::uint64_t{there} * format.row_bytes;
  if (question.slots.memory == nullptr) return;
  counted.device_bytes_fetched += std::uint64_t{fetched} * format.row_bytes;
  counted.row_cache_hits += there;
  if (question.runs.front().row == nullptr) return;
  counted.host_bytes_read += std::uint64_t{fetched} * format.row_bytes;
  counted.row_cache_misses += fetched;
}

void KvCache::Impl::count_rebuilt(std::span<const Run> runs,
                                  std::span<const std::uint32_t> of_runs) {
  for (std::size_t r = 0; r < runs.size(); ++r) {
    if (of_runs[r] == 0) continue;
    const FitFacts& facts = runs[r].rows->fit(Side::keys).facts;
    counted.device_bytes_read += facts.head_bytes + std::uint64_t{of_runs[r]} * facts.row_bytes;
  }
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

}  // namespace thermocline
