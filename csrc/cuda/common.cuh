// What every kernel here uses: launching, 16-byte loads and stores of the three element types, and
// reductions over a warp or a block in a fixed order.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

#include "dtype.h"

namespace fastrl::cuda {

constexpr unsigned kWholeWarp = 0xFFFFFFFFu;
constexpr int kWarp = 32;
constexpr float kInfinity = __builtin_huge_valf();

template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), int64_t blocks, int threads, cudaStream_t stream,
                   Arguments... arguments) {
  if (blocks == 0) return cudaSuccess;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
}

// Multiprocessors of the current device.
inline int processors() {
  int device = 0;
  int count = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return 1;
  if (cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) != cudaSuccess) {
    return 1;
  }
  return count > 0 ? count : 1;
}

// Calls body with a typed null pointer for the code; an unknown code is an error, not a launch.
template <typename Body>
cudaError_t with_element(int dtype, const Body& body) {
  if (dtype == kFloat32) return body(static_cast<float*>(nullptr));
  if (dtype == kBFloat16) return body(static_cast<bf16*>(nullptr));
  if (dtype == kFloat16) return body(static_cast<fp16*>(nullptr));
  return cudaErrorInvalidValue;
}

// ---- elements --------------------------------------------------------------------------------

__device__ __forceinline__ float read(float value) { return value; }
__device__ __forceinline__ float read(bf16 value) {
  return __uint_as_float(static_cast<uint32_t>(value.bits) << 16);
}
__device__ __forceinline__ float read(fp16 value) {
  return __half2float(__ushort_as_half(value.bits));
}

__device__ __forceinline__ void write(float* to, float value) { *to = value; }
__device__ __forceinline__ void write(bf16* to, float value) {
  to->bits = __bfloat16_as_ushort(__float2bfloat16_rn(value));
}
__device__ __forceinline__ void write(fp16* to, float value) {
  to->bits = __half_as_ushort(__float2half_rn(value));
}

// 16 bytes of elements.
template <typename T>
struct Pack {
  static constexpr int kSize = 16 / sizeof(T);
  T at[kSize];
};

template <typename T>
__device__ __forceinline__ Pack<T> load_pack(const T* from) {
  const uint4 raw = __ldcs(reinterpret_cast<const uint4*>(from));
  Pack<T> pack;
  memcpy(&pack, &raw, sizeof(raw));
  return pack;
}

template <typename T>
__device__ __forceinline__ void store_pack(T* to, const Pack<T>& pack) {
  uint4 raw;
  memcpy(&raw, &pack, sizeof(raw));
  __stcs(reinterpret_cast<uint4*>(to), raw);
}

// Elements from `from` to the next multiple of 16 bytes.
template <typename T>
__device__ __forceinline__ int64_t until_aligned(const T* from) {
  const uint64_t past = reinterpret_cast<uint64_t>(from) & 15;
  return past == 0 ? 0 : static_cast<int64_t>((16 - past) / sizeof(T));
}

// ---- arithmetic ------------------------------------------------------------------------------

// 2^x to 2 ulp; results below the smallest normal number are 0.
__device__ __forceinline__ float fast_exp2(float x) {
#if defined(__CUDA_ARCH__)
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
#else
  const float result = exp2f(x);
  return result < 1.17549435e-38f ? 0.0f : result;
#endif
}

// ---- reductions ------------------------------------------------------------------------------

// Combines the values of a block's threads in a fixed tree; thread 0 gets the result. `combine` is
// called with (lower, higher) lanes. All threads must call; blockDim.x is a multiple of kWarp.
template <typename Value, typename Combine>
__device__ Value reduce_block(Value value, const Combine& combine) {
  __shared__ Value of_warp[kWarp];
  const int lane = threadIdx.x % kWarp;
  const int warp = threadIdx.x / kWarp;
  const int warps = blockDim.x / kWarp;
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    value = combine(value, value.from_higher_lane(offset));
  }
  __syncthreads();  // an earlier call may still be reading
  if (lane == 0) of_warp[warp] = value;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int other = 1; other < warps; ++other) value = combine(value, of_warp[other]);
  }
  return value;
}

// A number that reduce_block takes.
template <typename T>
struct Number {
  T value;
  __device__ Number from_higher_lane(int offset) const {
    return {__shfl_down_sync(kWholeWarp, value, offset)};
  }
};

template <typename T>
__device__ T sum_of_block(T value) {
  using N = Number<T>;
  return reduce_block(N{value}, [](N a, N b) { return N{a.value + b.value}; }).value;
}

// The value of thread 0 for all threads of the block.
template <typename T>
__device__ T broadcast(T value) {
  __shared__ T shared;
  __syncthreads();
  if (threadIdx.x == 0) shared = value;
  __syncthreads();
  return shared;
}

}  // namespace fastrl::cuda
