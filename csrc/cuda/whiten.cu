// Masked whitening in two kernels and no wait for the host: each block finds count, mean and sum of
// squared distances of its share (Chan et al. 1979, merged in a fixed order); then every block of
// the second kernel combines the shares, in fp64, and writes. The second kernel starts at the end,
// where the first one has left its data in the cache.
#include "cuda/common.cuh"
#include "cuda/ops.h"

namespace fastrl::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kEach = 4;
constexpr int kLoads = 4;  // vectors of kEach in flight
constexpr double kEpsilon = 1e-8;

struct Moments {
  float count, mean, square;  // square: sum of (x - mean)^2

  __device__ Moments from_higher_lane(int offset) const {
    return {__shfl_down_sync(kWholeWarp, count, offset), __shfl_down_sync(kWholeWarp, mean, offset),
            __shfl_down_sync(kWholeWarp, square, offset)};
  }
};

__device__ __forceinline__ Moments merge(const Moments& a, const Moments& b) {
  if (b.count == 0.0f) return a;
  if (a.count == 0.0f) return b;
  const float count = a.count + b.count;
  const float gap = b.mean - a.mean;
  const float share = b.count / count;
  return {count, a.mean + gap * share, a.square + b.square + gap * gap * a.count * share};
}

template <int kCount>
__device__ __forceinline__ Moments moments_of(const float (&x)[kCount], const bool (&on)[kCount]) {
  float count = 0.0f;
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    count += on[i] ? 1.0f : 0.0f;
    sum += on[i] ? x[i] : 0.0f;
  }
  if (count == 0.0f) return {0.0f, 0.0f, 0.0f};
  const float mean = sum / count;
  float square = 0.0f;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const float gap = on[i] ? x[i] - mean : 0.0f;
    square = fmaf(gap, gap, square);
  }
  return {count, mean, square};
}

// The vectors of kEach; `tail` elements behind them go to the first threads of the last block.
__global__ __launch_bounds__(kThreads) void find_moments(const float* x, const uint8_t* mask,
                                                         int64_t vectors, int tail,
                                                         double* shares) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  const int64_t thread = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  Moments total = {0.0f, 0.0f, 0.0f};
  for (int64_t base = thread; base < vectors; base += kLoads * stride) {
    float value[kLoads * kEach];
    bool on[kLoads * kEach];
#pragma unroll
    for (int load = 0; load < kLoads; ++load) {
      const int64_t v = base + load * stride;
      const bool there = v < vectors;
      const float4 four = there ? reinterpret_cast<const float4*>(x)[v] : float4{};
      const uchar4 flag = there ? reinterpret_cast<const uchar4*>(mask)[v] : uchar4{};
      value[load * kEach] = four.x;
      value[load * kEach + 1] = four.y;
      value[load * kEach + 2] = four.z;
      value[load * kEach + 3] = four.w;
      on[load * kEach] = flag.x != 0;
      on[load * kEach + 1] = flag.y != 0;
      on[load * kEach + 2] = flag.z != 0;
      on[load * kEach + 3] = flag.w != 0;
    }
    total = merge(total, moments_of(value, on));
  }
  if (blockIdx.x == gridDim.x - 1 && threadIdx.x < tail) {
    const int64_t i = vectors * kEach + threadIdx.x;
    const float value[1] = {x[i]};
    const bool on[1] = {mask[i] != 0};
    total = merge(total, moments_of(value, on));
  }
  total = reduce_block(total, [](const Moments& a, const Moments& b) { return merge(a, b); });
  if (threadIdx.x != 0) return;
  double* mine = shares + blockIdx.x * static_cast<int64_t>(3);
  mine[0] = total.count;
  mine[1] = total.mean;
  mine[2] = total.square;
}

struct Scale {
  float mean, factor, back;  // out = (x - mean) * factor + back
};

__device__ Scale scale_of(const double* shares, int count, bool shift_mean) {
  double n = 0.0;
  double sum = 0.0;
  for (int i = threadIdx.x; i < count; i += kThreads) {
    n += shares[3 * i];
    sum += shares[3 * i] * shares[3 * i + 1];
  }
  n = broadcast(sum_of_block(n));
  const double mean = broadcast(sum_of_block(sum)) / n;  // NaN if nothing counts
  double square = 0.0;
  for (int i = threadIdx.x; i < count; i += kThreads) {
    const double gap = shares[3 * i + 1] - mean;
    if (shares[3 * i] > 0.0) square += shares[3 * i + 2] + shares[3 * i] * gap * gap;
  }
  square = broadcast(sum_of_block(square));
  const double variance = square / (n - 1.0);  // n = 1: 0 / 0, NaN as in TRL
  const float centre = static_cast<float>(mean);
  return {centre, static_cast<float>(1.0 / sqrt(variance + kEpsilon)), shift_mean ? 0.0f : centre};
}

__global__ __launch_bounds__(kThreads) void apply(const float* x, int64_t vectors, int tail,
                                                  const double* shares, int count, bool shift_mean,
                                                  float* out) {
  const Scale scale = scale_of(shares, count, shift_mean);
  const auto whiten = [&scale](float value) {
    return (value - scale.mean) * scale.factor + scale.back;
  };
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  const int64_t thread = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  if (thread < tail) out[vectors * kEach + thread] = whiten(x[vectors * kEach + thread]);
  for (int64_t v = vectors - 1 - thread; v >= 0; v -= stride) {
    const float4 four = reinterpret_cast<const float4*>(x)[v];
    __stcs(reinterpret_cast<float4*>(out) + v,
           make_float4(whiten(four.x), whiten(four.y), whiten(four.z), whiten(four.w)));
  }
}

}  // namespace

int whiten_shares(int64_t n) {
  const int64_t useful = n / (kThreads * kEach * kLoads) + 1;
  const int64_t most = 8 * static_cast<int64_t>(processors());
  return static_cast<int>(useful < most ? useful : most);
}

cudaError_t whiten(const float* x, const uint8_t* mask, int64_t n, bool shift_mean, int share_count,
                   double* shares, float* out, cudaStream_t stream) {
  if (n == 0) return cudaSuccess;
  const bool aligned = reinterpret_cast<uintptr_t>(x) % 16 == 0 &&
                       reinterpret_cast<uintptr_t>(out) % 16 == 0 &&
                       reinterpret_cast<uintptr_t>(mask) % 4 == 0;
  if (!aligned) return cudaErrorMisalignedAddress;
  const int64_t vectors = n / kEach;
  const int tail = static_cast<int>(n % kEach);
  const cudaError_t status =
      launch(find_moments, share_count, kThreads, stream, x, mask, vectors, tail, shares);
  if (status != cudaSuccess) return status;
  return launch(apply, share_count, kThreads, stream, x, vectors, tail, shares, share_count,
                shift_mean, out);
}

}  // namespace fastrl::cuda
