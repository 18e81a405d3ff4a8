// Generalised advantage estimation: A_t = delta_t + c A_{t+1} with c = gamma lam, as a suffix scan.
// A block owns a row and walks its tiles from the end. A thread holds 4 neighbouring columns of
// each of kParts parts of the tile; within a warp the scan uses shuffles, and all segments of 128
// columns (8 warps x kParts parts <= 32) are then scanned by one warp's lanes at once. The tree is
// fixed, so results are the same every run; against the serial loop they differ by rounding only.
#include "cuda/common.cuh"
#include "cuda/ops.h"

namespace fastrl::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kEach = 4;                 // neighbouring columns of a thread
constexpr int kPart = kThreads * kEach;  // columns of a block at once
constexpr int kPowers = 13;              // c^1, c^2, c^4, ... c^4096

struct Powers {
  float of[kPowers];
};

// value * factor, where nothing times an overflowing factor is nothing.
__device__ __forceinline__ float carried(float factor, float value) {
  return value == 0.0f ? 0.0f : factor * value;
}

// c^(count << shift) of count <= 32 from the repeated squares.
__device__ float power(const Powers& c, int count, int shift) {
  float result = 1.0f;
  for (int bit = 0; bit < 6; ++bit) {
    if ((count >> bit) & 1 && bit + shift < kPowers) result *= c.of[bit + shift];
  }
  return result;
}

struct Row {
  const float* rewards;
  const float* values;
  const uint8_t* mask;
  int64_t columns;
};

// Four columns from t on, 0 where they are masked or beyond the row.
template <bool kVector>
__device__ __forceinline__ void load_four(const Row& row, int64_t t, float (&reward)[kEach],
                                          float (&value)[kEach]) {
  if (kVector && t < row.columns) {  // then columns % 4 == 0 and all four exist
    const float4 r = __ldcs(reinterpret_cast<const float4*>(row.rewards + t));
    const float4 v = __ldcs(reinterpret_cast<const float4*>(row.values + t));
    const uchar4 m = __ldcs(reinterpret_cast<const uchar4*>(row.mask + t));
    reward[0] = m.x ? r.x : 0.0f;
    reward[1] = m.y ? r.y : 0.0f;
    reward[2] = m.z ? r.z : 0.0f;
    reward[3] = m.w ? r.w : 0.0f;
    value[0] = m.x ? v.x : 0.0f;
    value[1] = m.y ? v.y : 0.0f;
    value[2] = m.z ? v.z : 0.0f;
    value[3] = m.w ? v.w : 0.0f;
    return;
  }
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const bool counts = t + i < row.columns && row.mask[t + i];
    reward[i] = counts ? row.rewards[t + i] : 0.0f;
    value[i] = counts ? row.values[t + i] : 0.0f;
  }
}

__device__ __forceinline__ float value_at(const Row& row, int64_t t) {
  return t < row.columns && row.mask[t] ? row.values[t] : 0.0f;
}

template <bool kVector>
__device__ __forceinline__ void store_four(float* to, int64_t t, int64_t columns,
                                           const float (&x)[kEach]) {
  if (kVector && t < columns) {
    __stcs(reinterpret_cast<float4*>(to + t), make_float4(x[0], x[1], x[2], x[3]));
    return;
  }
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    if (t + i < columns) to[t + i] = x[i];
  }
}

template <int kParts, bool kVector>
__global__ __launch_bounds__(kThreads) void gae_rows(const float* rewards, const float* values,
                                                     const uint8_t* mask, int64_t columns,
                                                     float gamma, Powers c, float* advantages,
                                                     float* returns) {
  constexpr int kSegments = kParts * kWarps;
  __shared__ float segment_sum[kSegments];
  const int lane = threadIdx.x % kWarp;
  const int warp = threadIdx.x / kWarp;
  const int64_t start = blockIdx.x * columns;
  const Row row = {rewards + start, values + start, mask + start, columns};
  const float after_lane = power(c, kWarp - 1 - lane, 2);  // c^(4 * lanes to the right)
  const float after_segment = power(c, lane < kSegments ? kSegments - lane : 0, 7);
  const int64_t tile = kParts * static_cast<int64_t>(kPart);
  float carry = 0.0f;  // A at the first column behind the tile
  for (int64_t first = (columns - 1) / tile * tile; first >= 0; first -= tile) {
    float delta[kParts][kEach];
    float value[kParts][kEach];
    float sum[kParts];  // of the lane's columns and those to their right in the segment
#pragma unroll
    for (int p = 0; p < kParts; ++p) {
      load_four<kVector>(row, first + p * kPart + threadIdx.x * kEach, delta[p], value[p]);
    }
#pragma unroll
    for (int p = 0; p < kParts; ++p) {
      const int64_t t = first + p * kPart + threadIdx.x * kEach;
      float next = __shfl_down_sync(kWholeWarp, value[p][0], 1);
      if (lane == kWarp - 1) next = value_at(row, t + kEach);
      sum[p] = 0.0f;
#pragma unroll
      for (int i = kEach - 1; i >= 0; --i) {
        delta[p][i] += gamma * next - value[p][i];
        next = value[p][i];
        sum[p] = delta[p][i] + carried(c.of[0], sum[p]);
      }
#pragma unroll
      for (int step = 0; step < 5; ++step) {
        const float right = __shfl_down_sync(kWholeWarp, sum[p], 1 << step);
        if (lane + (1 << step) < kWarp) sum[p] += carried(c.of[2 + step], right);
      }
      if (lane == 0) segment_sum[p * kWarps + warp] = sum[p];
    }
    __syncthreads();
    float from = lane < kSegments ? segment_sum[lane] : 0.0f;  // A at the segment's first column
#pragma unroll
    for (int step = 0; step < 5; ++step) {
      const float right = __shfl_down_sync(kWholeWarp, from, 1 << step);
      if (lane + (1 << step) < kSegments) from += carried(c.of[7 + step], right);
    }
    from += carried(after_segment, carry);
#pragma unroll
    for (int p = 0; p < kParts; ++p) {
      const int next_segment = p * kWarps + warp + 1;
      const float shuffled = __shfl_sync(kWholeWarp, from, next_segment % kWarp);
      const float behind = next_segment < kSegments ? shuffled : carry;
      const float right = __shfl_down_sync(kWholeWarp, sum[p], 1);
      float advantage = carried(after_lane, behind) + (lane < kWarp - 1 ? right : 0.0f);
      float result[kEach];
      float sums[kEach];
#pragma unroll
      for (int i = kEach - 1; i >= 0; --i) {
        advantage = delta[p][i] + carried(c.of[0], advantage);
        result[i] = advantage;
        sums[i] = advantage + value[p][i];
      }
      const int64_t t = first + p * kPart + threadIdx.x * kEach;
      store_four<kVector>(advantages + start, t, columns, result);
      store_four<kVector>(returns + start, t, columns, sums);
    }
    carry = __shfl_sync(kWholeWarp, from, 0);
    __syncthreads();  // the segments' sums have been read
  }
}

bool aligned(const void* address, uintptr_t bytes) {
  return reinterpret_cast<uintptr_t>(address) % bytes == 0;
}

}  // namespace

cudaError_t gae(const float* rewards, const float* values, const uint8_t* mask, int64_t rows,
                int64_t columns, double gamma, double lam, float* advantages, float* returns,
                cudaStream_t stream) {
  if (columns == 0) return cudaSuccess;
  Powers c;
  double square = gamma * lam;
  for (float& power : c.of) {
    power = static_cast<float>(square);
    square *= square;
  }
  const bool vector = columns % kEach == 0 && aligned(rewards, 16) && aligned(values, 16) &&
                      aligned(mask, 4) && aligned(advantages, 16) && aligned(returns, 16);
  auto kernel = columns > kPart ? (vector ? gae_rows<4, true> : gae_rows<4, false>)
                                : (vector ? gae_rows<1, true> : gae_rows<1, false>);
  return launch(kernel, rows, kThreads, stream, rewards, values, mask, columns, gamma, c,
                advantages, returns);
}

}  // namespace fastrl::cuda
