#include "kernels/cuda/recurring.h"

#include <algorithm>

#include "kernels/cuda/check.h"

namespace thermocline::cuda {

// What could fail here is an earlier kernel; whoever waited has been told.
void Recurring::DestroyGraph::operator()(cudaGraphExec_t graph) const {
  static_cast<void>(check(cudaGraphExecDestroy(graph), "destroying a graph"));
}

void Recurring::DestroyCaptured::operator()(cudaGraph_t graph) const {
  static_cast<void>(check(cudaGraphDestroy(graph), "destroying a captured graph"));
}

Status Recurring::queue_work(cudaStream_t stream) const {
  for (const Work& work : work_) TL_TRY(check(work.queue(stream), work.call));
  return {};
}

Status Recurring::capture(cudaStream_t stream, Known* known) const {
  TL_TRY(check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal),
               "beginning to capture a graph"));
  const Status queued = queue_work(stream);
  cudaGraph_t made = nullptr;
  const Status ended = check(cudaStreamEndCapture(stream, &made), "capturing a graph");
  const std::unique_ptr<CUgraph_st, DestroyCaptured> captured(made);
  TL_TRY(queued);
  TL_TRY(ended);
  cudaGraphExec_t graph = nullptr;
  TL_TRY(check(cudaGraphInstantiateWithFlags(&graph, captured.get(), 0), "making a graph"));
  known->graph.reset(graph);
  return {};
}

Status Recurring::run(cudaStream_t stream) {
  if (work_.empty()) return {};
  const auto same = std::ranges::find(known_, what_, &Known::what);
  Status done;
  if (same == known_.end()) {
    for (; !known_.empty() && known_bytes_ + what_.size() > kMostKnownBytes; known_.pop_back())
      known_bytes_ -= known_.back().what.size();
    known_bytes_ += what_.size();
    known_.push_front({std::move(what_), nullptr});
    done = queue_work(stream);
  } else {
    known_.splice(known_.begin(), known_, same);
    if (same->graph || capture(stream, &*same)) {
      done = check(cudaGraphLaunch(same->graph.get(), stream), "launching a graph");
      if (done) ++replays_;
    } else {
      done = queue_work(stream);
    }
  }
  what_.clear();
  work_.clear();
  return done;
}

}  // namespace thermocline::cuda
