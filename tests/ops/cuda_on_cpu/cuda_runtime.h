// CUDA on the CPU, for tests: enough of the language and runtime to run csrc/cuda with a C++ compiler
// where there is no GPU. A block's threads are fibres on one processor; they switch at barriers and warp
// operations, and a program that would deadlock or diverge there stops with a message. Kernels run to
// their end inside the launch. It shows what a kernel computes, not how it races or how fast it is.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __shared__ static
#define __launch_bounds__(...)
#define CUDART_VERSION 0

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3() = default;
  explicit dim3(unsigned a) : x(a) {}
};
struct uint4 {
  unsigned x, y, z, w;
};
struct float4 {
  float x, y, z, w;
};
struct uchar4 {
  unsigned char x, y, z, w;
};
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

enum cudaError_t { cudaSuccess, cudaErrorInvalidValue, cudaErrorMisalignedAddress };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount };
struct cudaFuncAttributes {};
using cudaStream_t = struct Stream*;
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
};

inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : "refused";
}
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
// Few, so that rows of a test's size are split and shares have several members.
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = 3;
  return cudaSuccess;
}
template <typename Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, Kernel) {
  return cudaSuccess;
}

namespace emulation {

[[noreturn]] inline void stop(const char* message) {
  std::fprintf(stderr, "CUDA emulation: %s\n", message);
  std::abort();
}

enum class State { kReady, kWarp, kBlock, kDone };
constexpr size_t kStack = 64 * 1024;

struct Fibre {
  State state = State::kReady;
  const char* operation = "";  // the warp operation waited in
  bool started = false;
  jmp_buf place;
  ucontext_t context;
  std::unique_ptr<char[]> stack;
};

struct Lane {
  uint64_t slot[2];  // of this warp operation and of the one before
};

struct Block {
  std::vector<Fibre> fibres;
  std::vector<Lane> lanes;
  std::vector<unsigned> turn;  // warp operations done, by thread
  std::function<void()> body;
  jmp_buf scheduler;
  int current = 0;
  int threads = 0;
  int any = 0;  // __syncthreads_or
};

inline Block& block() {
  static Block one;
  return one;
}

}  // namespace emulation

struct Position {
  unsigned x = 0;
};
inline Position threadIdx_of_fibre() { return {static_cast<unsigned>(emulation::block().current)}; }
#define threadIdx (threadIdx_of_fibre())
inline Position blockIdx;
inline Position blockDim;
inline Position gridDim;

namespace emulation {

inline void wait(State state, const char* operation) {
  Fibre& fibre = block().fibres[block().current];
  fibre.state = state;
  fibre.operation = operation;
  if (_setjmp(fibre.place) == 0) _longjmp(block().scheduler, 1);
}

inline void enter() {
  block().body();
  block().fibres[block().current].state = State::kDone;
  _longjmp(block().scheduler, 1);
}

// Lets the waiting threads [begin, end) go if all that have not ended wait for the same thing.
inline bool release(int begin, int end, State state) {
  Block& b = block();
  const char* operation = nullptr;
  for (int i = begin; i < end; ++i) {
    const Fibre& fibre = b.fibres[i];
    if (state == State::kWarp && fibre.state == State::kDone) stop("a warp operation misses a lane");
    if (fibre.state == State::kDone) continue;
    if (fibre.state != state) return false;
    if (operation && std::strcmp(operation, fibre.operation)) stop("lanes in different operations");
    operation = fibre.operation;
  }
  if (!operation) return false;
  for (int i = begin; i < end; ++i) {
    if (b.fibres[i].state == state) b.fibres[i].state = State::kReady;
  }
  return true;
}

inline void run_block() {
  Block& b = block();
  for (Fibre& fibre : b.fibres) {
    fibre.state = State::kReady;
    fibre.started = false;
  }
  std::fill(b.turn.begin(), b.turn.end(), 0u);
  for (;;) {
    bool moved = false;
    bool alive = false;
    // From the last thread to the first: a missing barrier between a write of thread 0 and a read shows.
    for (int i = b.threads - 1; i >= 0; --i) {
      Fibre& fibre = b.fibres[i];
      alive |= fibre.state != State::kDone;
      if (fibre.state != State::kReady) continue;
      moved = true;
      b.current = i;
      if (_setjmp(b.scheduler) != 0) continue;
      if (fibre.started) _longjmp(fibre.place, 1);
      fibre.started = true;
      getcontext(&fibre.context);
      fibre.context.uc_stack.ss_sp = fibre.stack.get();
      fibre.context.uc_stack.ss_size = kStack;
      fibre.context.uc_link = nullptr;
      makecontext(&fibre.context, enter, 0);
      setcontext(&fibre.context);
    }
    if (!alive) return;
    if (moved) continue;
    bool released = false;
    for (int warp = 0; warp < b.threads; warp += 32) {
      bool waits = false;
      for (int i = warp; i < warp + 32; ++i) waits |= b.fibres[i].state == State::kWarp;
      if (waits) released |= release(warp, warp + 32, State::kWarp);
    }
    if (!released && !release(0, b.threads, State::kBlock)) stop("deadlock");
  }
}

template <typename T>
T exchange(T value, int from, const char* operation) {
  static_assert(sizeof(T) <= 8);
  Block& b = block();
  const int me = b.current;
  const unsigned turn = b.turn[me]++ % 2;
  std::memcpy(&b.lanes[me].slot[turn], &value, sizeof(T));
  wait(State::kWarp, operation);
  std::memcpy(&value, &b.lanes[me / 32 * 32 + from].slot[turn], sizeof(T));
  return value;
}

inline int lane() { return block().current % 32; }

}  // namespace emulation

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  emulation::Block& b = emulation::block();
  b.threads = static_cast<int>(config->blockDim.x);
  if (b.threads % 32 != 0 || b.threads > 1024) return cudaErrorInvalidValue;
  while (static_cast<int>(b.fibres.size()) < b.threads) {
    b.fibres.emplace_back();
    b.fibres.back().stack.reset(new char[emulation::kStack]);
  }
  b.lanes.resize(b.fibres.size());
  b.turn.resize(b.fibres.size());
  for (size_t i = b.threads; i < b.fibres.size(); ++i) b.fibres[i].state = emulation::State::kDone;
  b.body = [&] { kernel(arguments...); };
  blockDim.x = config->blockDim.x;
  gridDim.x = config->gridDim.x;
  for (unsigned i = 0; i < config->gridDim.x; ++i) {
    blockIdx.x = i;
    emulation::run_block();
  }
  return cudaSuccess;
}

inline void __syncthreads() { emulation::wait(emulation::State::kBlock, "__syncthreads"); }
inline int __syncthreads_or(int predicate) {
  static int either[2];
  static unsigned turn = 0;
  emulation::Block& b = emulation::block();
  if (b.any++ % b.threads == 0) either[++turn % 2] = 0;
  const unsigned mine = turn % 2;
  either[mine] |= predicate;
  emulation::wait(emulation::State::kBlock, "__syncthreads_or");
  return either[mine];
}
template <typename T>
T __shfl_sync(unsigned, T value, int from) {
  return emulation::exchange(value, from % 32, "__shfl_sync");
}
template <typename T>
T __shfl_down_sync(unsigned, T value, int offset) {
  const int from = emulation::lane() + offset;
  return emulation::exchange(value, from < 32 ? from : emulation::lane(), "__shfl_down_sync");
}
template <typename T>
T __shfl_up_sync(unsigned, T value, int offset) {
  const int from = emulation::lane() - offset;
  return emulation::exchange(value, from >= 0 ? from : emulation::lane(), "__shfl_up_sync");
}

inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __uint2float_rn(unsigned a) { return static_cast<float>(a); }
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>((static_cast<uint64_t>(a) * b) >> 32);
}
inline float __uint_as_float(unsigned bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
inline unsigned __float_as_uint(float value) {
  unsigned bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}
template <typename T>
T __ldcs(const T* from) {
  if (reinterpret_cast<uintptr_t>(from) % sizeof(T)) emulation::stop("misaligned load");
  return *from;
}
template <typename T>
void __stcs(T* to, T value) {
  if (reinterpret_cast<uintptr_t>(to) % sizeof(T)) emulation::stop("misaligned store");
  *to = value;
}
template <typename T>
T atomicAdd(T* to, T value) {
  const T before = *to;
  *to += value;
  return before;
}
template <typename T>
T atomicMax(T* to, T value) {
  const T before = *to;
  *to = std::max(before, value);
  return before;
}
