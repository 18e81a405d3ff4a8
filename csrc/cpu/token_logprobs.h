// What the files of token_logprobs share: one tile of logits, the running sums of its rows, and the
// row kernels, which exist once per instruction set (token_logprobs_rows.h is their text).
#pragma once

#include <cstdint>

namespace fastrl::cpu {

// Columns [first_column, first_column + columns) of a (rows, V) matrix of logits.
struct LogitsTile {
  const void* logits;
  int dtype;
  int64_t rows;
  int64_t columns;
  int64_t row_stride;      // elements
  const int64_t* targets;  // (rows) columns of the whole matrix
  int64_t first_column;
  double temperature;
};

// The running sums of one row over the tiles seen so far. The target's column is left out of the
// first three, so that a probability near 1 keeps the digits of 1 - p.
// With d = (x - max) * log2(e) / temperature <= 0:
struct RowSums {
  double max;        // largest logit but the target's; -inf before the first
  double exp_sum;    // sum of 2^d
  double exp_dist;   // sum of 2^d * d
  double exp_sq;     // sum of 2^2d   (statistics only)
  double logit_sum;  // sum of logits (statistics only)
  double target;     // the target's logit
};
constexpr int kRowSums = sizeof(RowSums) / sizeof(double);

// Gradients of a tile: d logits of sum(grad_logp * logp + grad_entropy * entropy).
struct LogitsGrad {
  const double* lse;          // (rows) log-sum-exp of logits / temperature, over all V columns
  const float* entropy;       // (rows), read where grad_entropy is given
  const float* grad_logp;     // (rows) or null: zeros
  const float* grad_entropy;  // (rows) or null: zeros
  const float* others;        // (rows) 1 - p of the target; null: the tile is whole rows, sum them
  void* out;                  // same dtype as the logits; may be the logits themselves
  int64_t out_stride;         // elements
  bool stream;                // write around the caches
};

// Add the columns of rows [begin, end) to sums[0 .. end - begin).
using FoldRows = void (*)(const LogitsTile&, RowSums* sums, bool statistics, int64_t begin,
                          int64_t end);
// Write the gradient of rows [begin, end).
using GradRows = void (*)(const LogitsTile&, const LogitsGrad&, int64_t begin, int64_t end);

void fold_rows_base(const LogitsTile&, RowSums*, bool, int64_t, int64_t);
void grad_rows_base(const LogitsTile&, const LogitsGrad&, int64_t, int64_t);
#if defined(FASTRL_X86)
void fold_rows_avx2(const LogitsTile&, RowSums*, bool, int64_t, int64_t);
void grad_rows_avx2(const LogitsTile&, const LogitsGrad&, int64_t, int64_t);
void fold_rows_avx512(const LogitsTile&, RowSums*, bool, int64_t, int64_t);
void grad_rows_avx512(const LogitsTile&, const LogitsGrad&, int64_t, int64_t);
#endif

}  // namespace fastrl::cpu
