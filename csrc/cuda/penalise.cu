// Repetition penalty: the logits as fp32, those of seen tokens divided (positive) or multiplied. A
// block a row. Repeated ids write the same value, computed from the input, so their order is of no
// consequence.
#include "cuda/common.cuh"
#include "cuda/ops.h"

namespace fastrl::cuda {
namespace {

constexpr int kThreads = 512;

template <typename T>
__global__ __launch_bounds__(kThreads) void penalise_rows(const T* logits, int64_t vocab,
                                                          const int64_t* seen, int64_t length,
                                                          float penalty, float* out) {
  const T* row = logits + blockIdx.x * vocab;
  const int64_t* ids = seen + blockIdx.x * length;
  float* to = out + blockIdx.x * vocab;
  int bad = 0;
  for (int64_t i = threadIdx.x; i < length; i += kThreads) bad |= ids[i] < -1 || ids[i] >= vocab;
  if (__syncthreads_or(bad)) {
    for (int64_t v = threadIdx.x; v < vocab; v += kThreads) to[v] = nanf("");
    return;
  }
  for (int64_t v = threadIdx.x; v < vocab; v += kThreads) to[v] = read(row[v]);
  __syncthreads();
  for (int64_t i = threadIdx.x; i < length; i += kThreads) {
    if (ids[i] < 0) continue;
    const float x = read(row[ids[i]]);
    to[ids[i]] = x < 0.0f ? x * penalty : x / penalty;
  }
}

}  // namespace

cudaError_t penalise(const void* logits, int dtype, int64_t rows, int64_t vocab,
                     const int64_t* seen, int64_t length, double penalty, float* out,
                     cudaStream_t stream) {
  return with_element(dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    return launch(penalise_rows<T>, rows, kThreads, stream, static_cast<const T*>(logits), vocab,
                  seen, length, penalty, out);
  });
}

}  // namespace fastrl::cuda
