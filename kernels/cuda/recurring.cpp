#include "kernels/cuda/recurring.h"

#include <algorithm>

#include "kernels/cuda/check.h"

namespace thermocline::cuda {

// What could fail here is an earlier kernel; whoever waited has been told.
void Recurring::DestroyGraph::operator()(cudaGraphExec_t graph) const {
  static_cast<void>(check(cudaGraphExecDestroy(graph), "destroying a graph"));
}

Status Recurring::queue_work(cudaStream_t stream) const {
  for (const Work& work : work_) TL_TRY(check(work.queue(stream), work.call));
  return {};
}

Status Recurring::capture(cudaStream_t stream, Known* known) const {
  TL_TRY(check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal),
               "beginning to capture a graph"));
  const Status queued = queue_work(stream);
  cudaGraph_t captured = nullptr;
  const Status ended = check(cudaStreamEndCapture(stream, &captured), "capturing a graph");
  TL_TRY(queued);
  TL_TRY(ended);
  cudaGraphExec_t graph = nullptr;
  const Status made = check(cudaGraphInstantiateWithFlags(&graph, captured, 0), "making a graph");
  TL_TRY(check(cudaGraphDestroy(captured), "destroying a captured graph"));
  TL_TRY(made);
  known->graph.reset(graph);
  return {};
}

Status Recurring::run(cudaStream_t stream) {
  if (work_.empty()) return {};
  const auto same = std::ranges::find(known_, what_, &Known::what);
  Status done;
  if (same == known_.end()) {
    if (known_.size() == kMostKnown) known_.pop_back();
    known_.push_front({std::move(what_), nullptr});
    done = queue_work(stream);
  } else {
    known_.splice(known_.begin(), known_, same);
    if (!same->graph) done = capture(stream, &*same);
    if (done) done = check(cudaGraphLaunch(same->graph.get(), stream), "launching a graph");
    if (done) ++replays_;
  }
  what_.clear();
  work_.clear();
  return done;
}

}  // namespace thermocline::cuda
