// Entry points of the CPU library: raw pointers, int64 sizes, a dtype code (csrc/dtype.h), a thread
// count. Python has checked shapes, dtypes and contiguity; outputs are allocated by the caller and
// fully written.
#pragma once

#include <cstdint>

namespace fastrl::cpu {

// logits: (rows, vocab) with row_stride elements from row to row; targets in [0, vocab); logp,
// entropy and lse (the log-sum-exp of logits / temperature): (rows,).
void token_logprobs_forward(const void* logits, int dtype, const int64_t* targets, int64_t rows,
                            int64_t vocab, int64_t row_stride, double temperature, float* logp,
                            float* entropy, float* lse, int n_threads);

// d logits of sum(grad_logp * logp + grad_entropy * entropy), where a null gradient is zeros. Takes
// columns [first_column, first_column + columns) of the matrix; targets count in the whole of it.
// others (1 - p of the target) is null if the columns are the whole row. out may be the logits.
void token_logprobs_backward(const void* logits, int dtype, const int64_t* targets, int64_t rows,
                             int64_t columns, int64_t row_stride, int64_t first_column,
                             double temperature, const double* lse, const float* entropy,
                             const float* grad_logp, const float* grad_entropy, const float* others,
                             void* out, int64_t out_stride, int n_threads);

// Forward in tiles of columns: start, one fold for each tile in any order, finish. sums: (rows, 6).
// top1, mean_logit and log_sum_sq are written if `statistics` is set (the same in every call).
void logprob_fold_start(double* sums, int64_t rows);
void logprob_fold(const void* logits, int dtype, const int64_t* targets, int64_t rows,
                  int64_t columns, int64_t row_stride, int64_t first_column, double temperature,
                  bool statistics, double* sums, int n_threads);
void logprob_fold_finish(const double* sums, int64_t rows, int64_t vocab, double temperature,
                         bool statistics, float* logp, float* entropy, double* lse, float* top1,
                         float* mean_logit, float* log_sum_sq);

// rewards, values, mask, advantages, returns: (rows, columns).
void gae(const float* rewards, const float* values, const uint8_t* mask, int64_t rows,
         int64_t columns, double gamma, double lam, float* advantages, float* returns,
         int n_threads);

// x, mask, out: n elements. Returns how many the mask counts; with 0 or 1 of them out is all NaN.
int64_t whiten(const float* x, const uint8_t* mask, int64_t n, bool shift_mean, float* out,
               int n_threads);

enum KlKind : int { kKl = 0, kKlAbs = 1, kKlMse = 2 };

// scores: (rows,); the others (rows, columns). Returns the first row without a counted token,
// having written nothing, or -1.
int64_t shaped_rewards(const float* scores, const float* logp, const float* ref_logp,
                       const uint8_t* mask, int64_t rows, int64_t columns, double coefficient,
                       int kind, float* rewards, float* kl, int n_threads);

// lengths: n < 2^31 values in [0, capacity]. Writes the rows of length > 0 bin by bin into order
// (room for n) and where each bin begins, plus the end, into offsets (room for n + 1). Returns the
// number of bins.
int64_t plan_packing(const int64_t* lengths, int64_t n, int64_t capacity, int64_t* order,
                     int64_t* offsets);

// Draws tokens as defined in fastrl/ops/sample.py from logits (rows, vocab); the others are
// (rows,). Returns the first row that cannot be sampled from, or -1.
int64_t sample(const void* logits, int dtype, int64_t rows, int64_t vocab, const int64_t* seeds,
               const int64_t* steps, double temperature, int64_t top_k, double top_p, double min_p,
               int64_t* tokens, float* logp, float* logp_full, int n_threads);

// The noise of `sample`, out: (rows, vocab).
void gumbel_noise(const int64_t* seeds, const int64_t* steps, int64_t rows, int64_t vocab,
                  float* out, int n_threads);

// logits, out: (rows, vocab); seen: (rows, length) ids, -1 ignored. Returns a row with an id that
// is not in [-1, vocab), or -1.
int64_t penalise(const void* logits, int dtype, int64_t rows, int64_t vocab, const int64_t* seen,
                 int64_t length, float penalty, float* out, int n_threads);

// query, out: (rows, heads, width), fp32 or bf16 as are prompts and answers, each (2, slots,
// kv_heads, room, width) of keys and values. See fastrl/ops/decode_attention.py.
void decode_attention(const void* query, int dtype, int64_t rows, int64_t heads, int64_t kv_heads,
                      int64_t width, const void* prompts, int64_t prompt_slots, int64_t prompt_room,
                      const void* answers, int64_t answer_slots, int64_t answer_room,
                      const int64_t* prompt_of, const int64_t* prompt_lengths,
                      const int64_t* answer_lengths, float scaling, int64_t window, void* out,
                      int n_threads);

// Attention of segments laid end to end, fp32; see segment_attention.h. out: (queries, heads,
// width), lse: (heads, queries). Of the batch, the driver makes `queries`, `keys` and `blocks`.
struct SegmentBatch;
struct SegmentGradients;
void segment_attention_forward(const SegmentBatch& batch, float* out, float* lse, int n_threads);
void segment_attention_backward(const SegmentBatch& batch, const SegmentGradients& gradients,
                                int n_threads);

// x: (rows, depth), weight: (width, depth), bias: (width) or null, out: (rows, width). A row's bits
// depend neither on the other rows nor on the number of threads.
void few_rows_linear(const float* x, int64_t rows, int64_t depth, const float* weight,
                     const float* bias, int64_t width, float* out, int n_threads);

}  // namespace fastrl::cpu
