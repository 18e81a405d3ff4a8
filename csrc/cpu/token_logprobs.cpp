// Log-probability of the target and entropy of each row of logits, their gradients, and the same in
// tiles of columns for the head that never keeps its logits.
#include "cpu/token_logprobs.h"

#include <cmath>
#include <limits>

#include "cpu/isa.h"
#include "cpu/ops.h"
#include "cpu/pages.h"
#include "cpu/parallel.h"
#include "dtype.h"

namespace fastrl::cpu {
namespace {

void check_dtype(int dtype) {
  with_dtype(dtype, [](auto*) {});  // throws for a code that is none
}

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr int64_t kRowsAtOnce = 64;
constexpr int64_t kGrain = 1 << 15;        // logits that are worth a thread
constexpr int64_t kStreamBytes = 1 << 25;  // outputs beyond this do not stay in the caches anyway

FoldRows fold_kernel() {
#if defined(FASTRL_X86)
  if (isa() == Isa::kAvx512) return fold_rows_avx512;
  if (isa() == Isa::kAvx2) return fold_rows_avx2;
#endif
  return fold_rows_base;
}

GradRows grad_kernel() {
#if defined(FASTRL_X86)
  if (isa() == Isa::kAvx512) return grad_rows_avx512;
  if (isa() == Isa::kAvx2) return grad_rows_avx2;
#endif
  return grad_rows_base;
}

struct RowResult {
  double logp, entropy, lse, logit_sum, log_sum_sq;
};

// The sums hold every column but the target's; M is the larger of their maximum and the target.
// 1 - p, not p, is what is summed, so logp and entropy keep their digits as p -> 1.
RowResult finish_row(RowSums row, double temperature, bool statistics) {
  // Infinity - infinity, and a row that no column can be drawn from.
  if (row.target == kInfinity || (row.target == -kInfinity && row.exp_sum == 0.0))
    row.target = kNan;
  const double log_sum = std::log(row.exp_sum);
  const double lead = (row.target - row.max) / temperature;
  const double gap = row.exp_sum == 0.0 ? row.target - kInfinity : log_sum - lead;
  RowResult result;
  if (gap > 0.0) {
    const double rest = std::log1p(std::exp(-gap));
    result.logp = -gap - rest;
    result.lse = row.max / temperature + log_sum + rest;
  } else {
    const double rest = std::log1p(std::exp(gap));
    result.logp = 0.0 - rest;
    result.lse = row.target / temperature + rest;
  }
  const double dist = row.exp_dist * std::log(2.0);
  double log_mass, log_sq;
  if (lead >= 0.0) {  // relative to the target
    const double scale = std::exp(-lead);
    const double others = row.exp_sum * scale;
    const double spread = others > 0.0 ? scale * (dist - row.exp_sum * lead) : others;
    log_mass = std::log1p(others);
    log_sq = std::log1p(row.exp_sq * scale * scale);
    result.entropy = log_mass - spread / (1.0 + others);
  } else {  // relative to the largest of the others
    const double mine = std::exp(lead);
    const double mass = row.exp_sum + mine;
    log_mass = std::log(mass);
    log_sq = std::log(row.exp_sq + mine * mine);
    result.entropy = log_mass - (dist + (mine > 0.0 ? mine * lead : 0.0)) / mass;
  }
  if (result.entropy < 0.0) result.entropy = 0.0;
  result.logit_sum = statistics ? (row.logit_sum + row.target) / temperature : 0.0;
  result.log_sum_sq = statistics ? log_sq - 2.0 * log_mass : 0.0;
  return result;
}

const RowSums kNothing{-kInfinity, 0.0, 0.0, 0.0, 0.0, kNan};

}  // namespace

void token_logprobs_forward(const void* logits, int dtype, const int64_t* targets, int64_t rows,
                            int64_t vocab, int64_t row_stride, double temperature, float* logp,
                            float* entropy, float* lse, int n_threads) {
  const LogitsTile tile{logits, dtype, rows, vocab, row_stride, targets, 0, temperature};
  check_dtype(dtype);
  const FoldRows fold = fold_kernel();
  const int chunks = useful_threads(rows * vocab, kGrain, n_threads);
  parallel_chunks(rows, chunks, [&](int, int64_t begin, int64_t end) {
    RowSums sums[kRowsAtOnce];
    for (int64_t first = begin; first < end; first += kRowsAtOnce) {
      const int64_t past = first + kRowsAtOnce < end ? first + kRowsAtOnce : end;
      for (RowSums& row : sums) row = kNothing;
      fold(tile, sums, false, first, past);
      for (int64_t r = first; r < past; ++r) {
        const RowResult result = finish_row(sums[r - first], temperature, false);
        logp[r] = static_cast<float>(result.logp);
        entropy[r] = static_cast<float>(result.entropy);
        lse[r] = static_cast<float>(result.lse);
      }
    }
  });
}

void token_logprobs_backward(const void* logits, int dtype, const int64_t* targets, int64_t rows,
                             int64_t columns, int64_t row_stride, int64_t first_column,
                             double temperature, const double* lse, const float* entropy,
                             const float* grad_logp, const float* grad_entropy, const float* others,
                             void* out, int64_t out_stride, int n_threads) {
  const LogitsTile tile{logits,     dtype,   rows,         columns,
                        row_stride, targets, first_column, temperature};
  const int64_t bytes = rows * columns * (dtype == kFloat32 ? 4 : 2);
  const bool stream = others == nullptr && out != logits && bytes > kStreamBytes;
  const LogitsGrad grad{lse, entropy, grad_logp, grad_entropy, others, out, out_stride, stream};
  check_dtype(dtype);
  if (stream && out_stride == columns) expect_writes(out, static_cast<size_t>(bytes));
  const GradRows kernel = grad_kernel();
  const int chunks = useful_threads(rows * columns, kGrain, n_threads);
  parallel_chunks(rows, chunks,
                  [&](int, int64_t begin, int64_t end) { kernel(tile, grad, begin, end); });
}

void logprob_fold_start(double* sums, int64_t rows) {
  for (int64_t r = 0; r < rows; ++r) reinterpret_cast<RowSums*>(sums)[r] = kNothing;
}

void logprob_fold(const void* logits, int dtype, const int64_t* targets, int64_t rows,
                  int64_t columns, int64_t row_stride, int64_t first_column, double temperature,
                  bool statistics, double* sums, int n_threads) {
  const LogitsTile tile{logits,     dtype,   rows,         columns,
                        row_stride, targets, first_column, temperature};
  check_dtype(dtype);
  const FoldRows fold = fold_kernel();
  const int chunks = useful_threads(rows * columns, kGrain, n_threads);
  parallel_chunks(rows, chunks, [&](int, int64_t begin, int64_t end) {
    fold(tile, reinterpret_cast<RowSums*>(sums) + begin, statistics, begin, end);
  });
}

void logprob_fold_finish(const double* sums, int64_t rows, int64_t vocab, double temperature,
                         bool statistics, float* logp, float* entropy, double* lse, float* top1,
                         float* mean_logit, float* log_sum_sq) {
  for (int64_t r = 0; r < rows; ++r) {
    const RowSums& row = reinterpret_cast<const RowSums*>(sums)[r];
    const RowResult result = finish_row(row, temperature, statistics);
    logp[r] = static_cast<float>(result.logp);
    entropy[r] = static_cast<float>(result.entropy);
    lse[r] = result.lse;
    if (!statistics) continue;
    top1[r] = row.target >= row.max ? 1.0f : 0.0f;
    mean_logit[r] = static_cast<float>(result.logit_sum / static_cast<double>(vocab));
    log_sum_sq[r] = static_cast<float>(result.log_sum_sq);
  }
}

}  // namespace fastrl::cpu
