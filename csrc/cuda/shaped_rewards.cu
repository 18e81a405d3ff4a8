// Rewards of classic PPO: the KL penalty everywhere, the score at the row's last counted token.
// A block a row: its mask first, to find that token, then one read of the log-probabilities.
#include "cuda/common.cuh"
#include "cuda/ops.h"

namespace fastrl::cuda {
namespace {

constexpr int kThreads = 256;

__device__ __forceinline__ float penalty(float gap, int kind) {
  if (kind == kKlAbs) return fabsf(gap);
  if (kind == kKlMse) return 0.5f * gap * gap;
  return gap;
}

__global__ __launch_bounds__(kThreads) void shape_rows(const float* scores, const float* logp,
                                                       const float* ref_logp, const uint8_t* mask,
                                                       int64_t columns, float coefficient, int kind,
                                                       float* rewards, float* kl) {
  using Column = Number<long long>;
  const int64_t start = blockIdx.x * columns;
  long long mine = -1;
  for (int64_t t = threadIdx.x; t < columns; t += kThreads) {
    if (mask[start + t]) mine = t;
  }
  const Column found =
      reduce_block(Column{mine}, [](Column a, Column b) { return a.value > b.value ? a : b; });
  const long long last = broadcast(found.value);
  const float score = scores[blockIdx.x];
  for (int64_t t = threadIdx.x; t < columns; t += kThreads) {
    const float cost = penalty(logp[start + t] - ref_logp[start + t], kind);
    const float reward = -coefficient * cost + (t == last ? score : 0.0f);
    kl[start + t] = cost;
    rewards[start + t] = last < 0 ? nanf("") : reward;  // the score has nowhere to go
  }
}

}  // namespace

cudaError_t shaped_rewards(const float* scores, const float* logp, const float* ref_logp,
                           const uint8_t* mask, int64_t rows, int64_t columns, double coefficient,
                           int kind, float* rewards, float* kl, cudaStream_t stream) {
  return launch(shape_rows, rows, kThreads, stream, scores, logp, ref_logp, mask, columns,
                coefficient, kind, rewards, kl);
}

}  // namespace fastrl::cuda
