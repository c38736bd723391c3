#include <boost/context/fiber.hpp>
#include <boost/context/pooled_fixedsize_stack.hpp>
#include <chrono>
#include <cstdlib>
#include <deque>
#include <map>
#include <vector>

#include <sys/mman.h>

#include <cuda_runtime.h>

using Work = std::function<cudaError_t()>;
struct CUgraph_st {
  std::vector<Work> work;
};
struct CUgraphExec_st {
  std::vector<Work> work;
};
struct CUstream_st {
  std::deque<Work> queued;
  cudaError_t failed = cudaSuccess;  // after which nothing runs
  CUgraph_st* captured = nullptr;    // while one is

  void add(Work work) {
    if (captured)
      captured->work.push_back(std::move(work));
    else
      queued.push_back(std::move(work));
  }
};
struct CUevent_st {
  std::chrono::steady_clock::time_point at;
  cudaStream_t stream = nullptr;            // where it was recorded last
  std::uint64_t recorded = 0, reached = 0;  // how often; and how often that stream got there
};

// As much as the smallest of the devices has that this is built for.
alignas(32) thread_local constinit uint4 launch_shared[(99 << 10) / sizeof(uint4)] = {};

namespace {

thread_local cudaError_t last_error = cudaSuccess;

cudaError_t said(cudaError_t code) {
  if (code != cudaSuccess) last_error = code;
  return code;
}

struct Name {
  cudaError_t code;
  const char *name, *text;
};
constexpr Name kNames[] = {
    {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
    {cudaErrorInvalidConfiguration, "cudaErrorInvalidConfiguration",
     "invalid configuration argument"},
    {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {cudaErrorLaunchFailure, "cudaErrorLaunchFailure", "unspecified launch failure"},
    {cudaErrorStreamCaptureUnsupported, "cudaErrorStreamCaptureUnsupported",
     "operation not permitted when stream is capturing"},
};

constexpr std::size_t kAlignment = 256;  // as cudaMalloc's

// The device's memory: addresses that nobody reaches but while the device works. To shut them takes
// time with every page: what uses more than a few, a benchmark, is not guarded.
class DeviceMemory {
 public:
  static constexpr std::size_t kBytes = std::size_t{1} << 30;
  static constexpr std::size_t kGuardedBytes = std::size_t{32} << 20;

  // While some live, on the only thread that drives the device.
  class Reached {
   public:
    Reached() {
      if (the().reached_++ == 0) the().allow(PROT_READ | PROT_WRITE);
    }
    ~Reached() {
      if (--the().reached_ == 0) the().allow(PROT_NONE);
    }
    Reached(const Reached&) = delete;
    Reached& operator=(const Reached&) = delete;
  };

  static DeviceMemory& the() {
    static DeviceMemory memory;
    return memory;
  }
  void* take(std::size_t bytes) {
    const std::size_t size = (bytes / kAlignment + 1) * kAlignment;
    std::size_t at = 0;  // the first gap that is large enough
    for (const auto& [begin, taken] : taken_) {
      if (begin - at >= size) break;
      at = begin + taken;
    }
    if (kBytes - at < size) return nullptr;
    taken_.emplace(at, size);
    end_ = std::max(end_, at + size);
    held_ += size;
    return base_ + at;
  }
  void give(void* memory) {
    const auto found = taken_.find(static_cast<std::size_t>(static_cast<char*>(memory) - base_));
    if (found == taken_.end()) std::abort();  // cudaMalloc() did not return it
    {
      const Reached reached;
      std::memset(memory, 0xff, found->second);  // whoever still reads it sees no number
    }
    held_ -= found->second;
    taken_.erase(found);
  }
  std::size_t free_bytes() const { return kBytes - held_; }

 private:
  DeviceMemory()
      : base_(static_cast<char*>(
            mmap(nullptr, kBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0))) {
    if (base_ == MAP_FAILED) std::abort();
  }
  void allow(int protection) {
    if (end_ > kGuardedBytes) protection = PROT_READ | PROT_WRITE;
    if (protection == allowed_ && end_ == allowed_end_) return;
    if (end_ > 0 && mprotect(base_, end_, protection) != 0) std::abort();
    allowed_ = protection;
    allowed_end_ = end_;
  }

  char* base_;
  std::map<std::size_t, std::size_t> taken_;  // begin -> bytes
  std::size_t end_ = 0, held_ = 0;            // the highest that was ever taken
  int reached_ = 0, allowed_ = PROT_NONE;
  std::size_t allowed_end_ = 0;
};

}  // namespace

cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }
cudaError_t cudaPeekAtLastError() { return last_error; }
const char* cudaGetErrorName(cudaError_t code) {
  for (const Name& known : kNames)
    if (known.code == code) return known.name;
  return "unknown";
}
const char* cudaGetErrorString(cudaError_t code) {
  for (const Name& known : kNames)
    if (known.code == code) return known.text;
  return "unknown";
}
cudaError_t cudaDriverGetVersion(int* version) {
  *version = 13000;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) { return cudaDriverGetVersion(version); }
cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  return said(device == 0 ? cudaSuccess : cudaErrorInvalidDevice);
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  *properties = {"this processor, which stands in for a device", DeviceMemory::kBytes, 1};
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* total) {
  *free = DeviceMemory::the().free_bytes();
  *total = DeviceMemory::kBytes;
  return cudaSuccess;
}
cudaError_t cudaMalloc(void** memory, std::size_t bytes) {
  *memory = DeviceMemory::the().take(bytes);
  if (*memory == nullptr) return said(cudaErrorMemoryAllocation);
  const DeviceMemory::Reached reached;
  std::memset(*memory, 0xff, bytes);
  return cudaSuccess;
}
cudaError_t cudaFree(void* memory) {
  if (memory != nullptr) DeviceMemory::the().give(memory);
  return cudaSuccess;
}
cudaError_t cudaHostAlloc(void** memory, std::size_t bytes, unsigned) {
  *memory = std::aligned_alloc(kAlignment, (bytes / kAlignment + 1) * kAlignment);
  if (*memory == nullptr) return said(cudaErrorMemoryAllocation);
  std::memset(*memory, 0xff, bytes);
  return cudaSuccess;
}
cudaError_t cudaFreeHost(void* memory) {
  std::free(memory);
  return cudaSuccess;
}
cudaError_t cudaMemcpy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind) {
  const DeviceMemory::Reached reached;
  if (bytes > 0) std::memcpy(to, from, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  stream->add([=] { return cudaMemcpy(to, from, bytes, kind); });
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* memory, int value, std::size_t bytes, cudaStream_t stream) {
  stream->add([=] {
    const DeviceMemory::Reached reached;
    std::memset(memory, value, bytes);
    return cudaSuccess;
  });
  return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  *stream = new CUstream_st;
  return cudaSuccess;
}
// Does what is queued, until `done` says so or nothing is left.
template <typename Done>
static void run_queued(cudaStream_t stream, const Done& done) {
  while (!done() && !stream->queued.empty()) {
    const auto next = std::move(stream->queued.front());
    stream->queued.pop_front();
    if (stream->failed == cudaSuccess) stream->failed = next();
  }
}
static void run_up_to(cudaEvent_t event, std::uint64_t recorded) {
  if (event->stream != nullptr)
    run_queued(event->stream, [=] { return event->reached >= recorded; });
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  if (stream->captured) return said(cudaErrorStreamCaptureUnsupported);
  if (stream->queued.empty()) return said(std::exchange(stream->failed, cudaSuccess));
  const DeviceMemory::Reached reached;  // for all of it: each change takes time
  run_queued(stream, [] { return false; });
  return said(std::exchange(stream->failed, cudaSuccess));
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  stream->add([event, recorded = event->recorded] {
    run_up_to(event, recorded);
    return cudaSuccess;
  });
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  const cudaError_t last = cudaStreamSynchronize(stream);  // what is queued still runs
  delete stream;
  return last;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  stream->captured = new CUgraph_st;
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  *graph = std::exchange(stream->captured, nullptr);
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* exec, cudaGraph_t graph,
                                          unsigned long long) {
  *exec = new CUgraphExec_st{graph->work};
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  for (const Work& work : exec->work) stream->add(work);
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  delete exec;
  return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t* event) {
  *event = new CUevent_st;
  return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  return cudaEventCreate(event);
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  event->stream = stream;
  stream->add([event, recorded = ++event->recorded] {
    event->at = std::chrono::steady_clock::now();
    event->reached = recorded;
    return cudaSuccess;
  });
  return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  run_up_to(event, event->recorded);
  return event->stream != nullptr ? said(event->stream->failed) : cudaSuccess;
}
cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t first, cudaEvent_t last) {
  *ms = std::chrono::duration<float, std::milli>(last->at - first->at).count();
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}

namespace emulated {
namespace {

namespace context = boost::context;

// A thread of the block that runs.
struct Fiber {
  enum class State { runs, at_warp, at_block, ended };
  context::fiber body, scheduler;
  State state = State::runs;
  uint3 index{};
  // What it gave at this exchange and at the one before: a thread that is released goes on, and may
  // give again before others have taken.
  std::uint64_t given[2] = {};
  unsigned exchanges = 0;
  std::uint64_t products = 0;  // of its warp that it has come to
};

struct Trapped {};

std::vector<Fiber> fibers;
Fiber* running = nullptr;
bool trapped = false;

void wait_as(Fiber::State state) {
  Fiber* self = running;
  self->state = state;
  self->scheduler = std::move(self->scheduler).resume();
  if (trapped) throw Trapped();
}

// Runs a thread until it waits or ends.
void resume(Fiber* fiber) {
  running = fiber;
  threadIdx = fiber->index;
  fiber->body = std::move(fiber->body).resume();
}

// Lets the threads [first, last) go on that wait there, if all of them do. False: they do not, or
// some lanes of a warp came to a product that others did not come to.
bool release(std::size_t first, std::size_t last, Fiber::State state) {
  bool some = false;
  for (std::size_t i = first; i < last; ++i) {
    const Fiber::State now = fibers[i].state;
    if (now != state && now != Fiber::State::ended) return false;
    if (now == state && fibers[i].products != fibers[i / kWarp * kWarp].products) return false;
    some = some || now == state;
  }
  for (std::size_t i = first; i < last; ++i)
    if (fibers[i].state == state) fibers[i].state = Fiber::State::runs;
  return some;
}

// A warp runs as far as it can by itself before another has begun, which shows what a barrier is
// missing for; its lanes one after the other, from either end in turn, which shows it within a
// warp.
void run_warp(std::size_t first) {
  static bool backwards = false;
  const std::size_t last = std::min(first + kWarp, fibers.size());
  do {
    backwards = !backwards;
    for (std::size_t i = first; i < last; ++i) {
      Fiber* const next = &fibers[backwards ? last - 1 - (i - first) : i];
      if (next->state == Fiber::State::runs) resume(next);
    }
  } while (!trapped && release(first, last, Fiber::State::at_warp));
}

void run_block(dim3 block, const std::function<void()>& body,
               context::pooled_fixedsize_stack& stacks) {
  trapped = false;
  fibers.clear();
  fibers.resize(std::size_t{block.x} * block.y * block.z);
  std::size_t i = 0;
  for (unsigned z = 0; z < block.z; ++z)
    for (unsigned y = 0; y < block.y; ++y)
      for (unsigned x = 0; x < block.x; ++x, ++i) {
        Fiber* self = &fibers[i];
        self->index = {x, y, z};
        self->body = context::fiber(std::allocator_arg, stacks, [self, &body](context::fiber back) {
          self->scheduler = std::move(back);
          try {
            body();
          } catch (const Trapped&) {
          }
          self->state = Fiber::State::ended;
          return std::move(self->scheduler);
        });
      }
  const std::size_t warps = (fibers.size() + kWarp - 1) / kWarp;
  bool backwards = false;
  do {
    for (std::size_t w = 0; w < warps; ++w) run_warp((backwards ? warps - 1 - w : w) * kWarp);
    backwards = !backwards;
  } while (!trapped && release(0, fibers.size(), Fiber::State::at_block));
  for (const Fiber& fiber : fibers) trapped = trapped || fiber.state != Fiber::State::ended;
  for (Fiber& fiber : fibers)  // unwound, each from where it waits
    if (fiber.state != Fiber::State::ended) resume(&fiber);
}

}  // namespace

void wait_for_warp() { wait_as(Fiber::State::at_warp); }
void wait_for_block() { wait_as(Fiber::State::at_block); }

void give(const void* value, std::size_t bytes) {
  std::memcpy(&running->given[running->exchanges % 2], value, bytes);
  ++running->exchanges;
}

void take(int lane, void* value, std::size_t bytes) {
  const auto self = static_cast<std::size_t>(running - fibers.data());
  const Fiber& from = fibers[self / kWarp * kWarp + static_cast<std::size_t>(lane)];
  std::memcpy(value, &from.given[(running->exchanges - 1) % 2], bytes);
}

void count_product() { ++running->products; }

void trap() {
  trapped = true;
  throw Trapped();
}

namespace {

cudaError_t run(const cudaLaunchConfig_t& config, const std::function<void()>& body) {
  const DeviceMemory::Reached reached;
  // Kept from launch to launch: taking them anew, page by page, is most of a small one.
  static context::pooled_fixedsize_stack stacks(256 << 10);
  const dim3 grid = gridDim = config.gridDim, block = blockDim = config.blockDim;
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) {
        blockIdx = {x, y, z};
        std::memset(launch_shared, 0xff, config.dynamicSmemBytes);
        run_block(block, body, stacks);
        if (trapped) return cudaErrorLaunchFailure;
      }
  return cudaSuccess;
}

}  // namespace

cudaError_t queue(const cudaLaunchConfig_t& config, std::function<void()> body) {
  const dim3 grid = config.gridDim, block = config.blockDim;
  if (grid.x == 0 || grid.y > 65535 || grid.z > 65535 || block.x * block.y * block.z > 1024 ||
      config.dynamicSmemBytes > sizeof launch_shared)
    return said(cudaErrorInvalidConfiguration);
  config.stream->add([config, body = std::move(body)] { return run(config, body); });
  return cudaSuccess;
}

}  // namespace emulated
