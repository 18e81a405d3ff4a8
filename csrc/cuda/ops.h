// Entry points of the CUDA library: device pointers, int64 sizes, a dtype code (csrc/dtype.h) and
// the stream of the caller. Each launches and returns; none allocates or synchronises. Arguments
// mean what they do in csrc/cpu/ops.h; what cannot be refused without waiting (a bad id, a row
// without a counted token) becomes NaN.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace fastrl::cuda {

// cudaSuccess if this library holds code that the current device can run; nothing is launched.
cudaError_t probe();

// How many blocks share a row; with more than one, forward wants room for rows * splits * 3 floats.
int token_logprobs_splits(int64_t rows, int64_t vocab);
cudaError_t token_logprobs_forward(const void* logits, int dtype, const int64_t* targets,
                                   int64_t rows, int64_t vocab, int64_t row_stride,
                                   double temperature, int splits, float* partials, float* logp,
                                   float* entropy, float* lse, cudaStream_t stream);

// One of lse and exact_lse is null. With lse, rows whose lse is large are summed again.
cudaError_t token_logprobs_backward(const void* logits, int dtype, const int64_t* targets,
                                    int64_t rows, int64_t columns, int64_t row_stride,
                                    int64_t first_column, int64_t vocab, double temperature,
                                    const float* lse, const double* exact_lse, const float* entropy,
                                    const float* grad_logp, const float* grad_entropy,
                                    const float* others, void* out, int64_t out_stride,
                                    cudaStream_t stream);

// Forward in tiles of columns: start, one fold for each tile in any order, finish. sums: (rows, 6).
cudaError_t logprob_fold_start(double* sums, int64_t rows, cudaStream_t stream);
cudaError_t logprob_fold(const void* logits, int dtype, const int64_t* targets, int64_t rows,
                         int64_t columns, int64_t row_stride, int64_t first_column,
                         double temperature, bool statistics, double* sums, cudaStream_t stream);
cudaError_t logprob_fold_finish(const double* sums, int64_t rows, int64_t vocab, double temperature,
                                bool statistics, float* logp, float* entropy, double* lse,
                                float* top1, float* mean_logit, float* log_sum_sq,
                                cudaStream_t stream);

cudaError_t gae(const float* rewards, const float* values, const uint8_t* mask, int64_t rows,
                int64_t columns, double gamma, double lam, float* advantages, float* returns,
                cudaStream_t stream);

// How many shares of three doubles `whiten` wants; x and out are aligned to 16 bytes, mask to 4.
int whiten_shares(int64_t n);
cudaError_t whiten(const float* x, const uint8_t* mask, int64_t n, bool shift_mean, int share_count,
                   double* shares, float* out, cudaStream_t stream);

enum KlKind : int { kKl = 0, kKlAbs = 1, kKlMse = 2 };
cudaError_t shaped_rewards(const float* scores, const float* logp, const float* ref_logp,
                           const uint8_t* mask, int64_t rows, int64_t columns, double coefficient,
                           int kind, float* rewards, float* kl, cudaStream_t stream);

cudaError_t sample(const void* logits, int dtype, int64_t rows, int64_t vocab, const int64_t* seeds,
                   const int64_t* steps, double temperature, int64_t top_k, double top_p,
                   double min_p, int64_t* tokens, float* logp, float* logp_full,
                   cudaStream_t stream);
cudaError_t gumbel_noise(const int64_t* seeds, const int64_t* steps, int64_t rows, int64_t vocab,
                         float* out, cudaStream_t stream);
cudaError_t penalise(const void* logits, int dtype, int64_t rows, int64_t vocab,
                     const int64_t* seen, int64_t length, double penalty, float* out,
                     cudaStream_t stream);

}  // namespace fastrl::cuda
