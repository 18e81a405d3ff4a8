// Log-probability of the target and entropy of each row of logits, their gradients, and the same in
// tiles of columns. Large batches: a block a row, one read of the logits. Few rows: each is split
// over several blocks, whose sums a second kernel merges in order.
#include "cuda/logprob_row.cuh"
#include "cuda/ops.h"

namespace fastrl::cuda {
namespace {

constexpr int kForwardThreads = 256;
constexpr int kPartial = 3;            // floats that a split hands on: max, exp_sum, exp_dist
constexpr int64_t kLeastSplit = 4096;  // columns that are worth a block
// Above this an fp32 log-sum-exp has lost digits that the gradient wants: it is summed again.
constexpr double kCoarseLse = 64.0;

__device__ double target_logit(double value, bool inside) { return inside ? value : nanf(""); }

template <typename T>
__global__ __launch_bounds__(kForwardThreads,
                             3) void forward_rows(const T* logits, const int64_t* targets,
                                                  int64_t vocab, int64_t row_stride,
                                                  double temperature, int splits, float* partials,
                                                  float* logp, float* entropy, float* lse) {
  const int64_t r = blockIdx.x / splits;
  const int64_t split = blockIdx.x % splits;
  const int64_t share = ((vocab + splits - 1) / splits + 7) / 8 * 8;  // keeps 16-byte alignment
  const int64_t begin = split * share < vocab ? split * share : vocab;
  const int64_t end = begin + share < vocab ? begin + share : vocab;
  const T* row = logits + r * row_stride;
  const int64_t target = targets[r];
  const float slope = static_cast<float>(kLog2e / temperature);
  const Sums<float> sums = fold_columns<false>(row, begin, end, target, slope);
  if (threadIdx.x != 0) return;
  if (splits > 1) {
    float* mine = partials + blockIdx.x * static_cast<int64_t>(kPartial);
    mine[0] = sums.max;
    mine[1] = sums.exp_sum;
    mine[2] = sums.exp_dist;
    return;
  }
  const bool inside = target >= 0 && target < vocab;
  const double x = target_logit(read(row[inside ? target : 0]), inside);
  const RowResult result = finish_row(sums.wide(), x, temperature);
  logp[r] = static_cast<float>(result.logp);
  entropy[r] = static_cast<float>(result.entropy);
  lse[r] = static_cast<float>(result.lse);
}

// A warp a row.
template <typename T>
__global__ void merge_splits(const T* logits, const int64_t* targets, int64_t vocab,
                             int64_t row_stride, double temperature, int splits,
                             const float* partials, float* logp, float* entropy, float* lse) {
  const int64_t r = blockIdx.x;
  const double slope = kLog2e / temperature;
  Sums<double> sums = Sums<double>::none();
  for (int split = threadIdx.x; split < splits; split += kWarp) {
    const float* part = partials + (r * splits + split) * kPartial;
    sums = merge(sums, Sums<double>{part[0], part[1], part[2], 0.0, 0.0}, slope);
  }
  sums = reduce_block(
      sums, [slope](const Sums<double>& a, const Sums<double>& b) { return merge(a, b, slope); });
  if (threadIdx.x != 0) return;
  const int64_t target = targets[r];
  const bool inside = target >= 0 && target < vocab;
  const double x = target_logit(read(logits[r * row_stride + (inside ? target : 0)]), inside);
  const RowResult result = finish_row(sums, x, temperature);
  logp[r] = static_cast<float>(result.logp);
  entropy[r] = static_cast<float>(result.entropy);
  lse[r] = static_cast<float>(result.lse);
}

// ---- backward --------------------------------------------------------------------------------

// The gradient of every column but the target's is 2^d * (flat + steep * d), d = (x - ref) * slope:
// p = 2^d / (sum of 2^d) and log p is linear in d.
struct Line {
  float ref, slope, flat, steep;
  float nothing;  // 0, or NaN if the row is
  double factor;  // p = 2^d * factor
  double offset;  // log p = (x - ref) / temperature + offset
  double target;  // the target's logit
};

__device__ __forceinline__ float gradient_of(float x, const Line& line, float& exp_sum) {
  const float d = (x - line.ref) * line.slope;
  const float e = fast_exp2(d);
  exp_sum += e;
  return e == 0.0f ? line.nothing : e * fmaf(line.steep, d, line.flat);  // never 0 * -inf
}

template <typename T>
__device__ void fill_row(T* out, int64_t columns, float value) {
  for (int64_t i = threadIdx.x; i < columns; i += blockDim.x) write(out + i, value);
}

// Writes the columns but the target's; returns this thread's share of the sum of 2^d.
template <typename T>
__device__ float gradient_columns(const T* row, int64_t columns, int64_t target, const Line& line,
                                  T* out) {
  constexpr int kSize = Pack<T>::kSize;
  constexpr int kPacks = 2;
  const int64_t threads = blockDim.x;
  const int64_t thread = threadIdx.x;
  const bool alike =
      ((reinterpret_cast<uint64_t>(row) ^ reinterpret_cast<uint64_t>(out)) & 15) == 0;
  const int64_t head = until_aligned(row) < columns ? until_aligned(row) : columns;
  const int64_t packs = alike ? (columns - head) / kSize : 0;
  float exp_sum = 0.0f;
  for (int64_t base = thread; base < packs; base += kPacks * threads) {
    Pack<T> in[kPacks];
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      const int64_t pack = base + p * threads;
      if (pack < packs) in[p] = load_pack(row + head + pack * kSize);
    }
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      const int64_t pack = base + p * threads;
      if (pack >= packs) continue;
      const int64_t column = head + pack * kSize;
      Pack<T> result;
#pragma unroll
      for (int i = 0; i < kSize; ++i) {
        const float x = column + i == target ? -kInfinity : read(in[p].at[i]);
        write(&result.at[i], gradient_of(x, line, exp_sum));
      }
      store_pack(out + column, result);
    }
  }
  // Before and after the packs; every column where the two rows are aligned differently.
  const int64_t rest = alike ? head + packs * kSize : 0;
  const int64_t before = alike ? head : 0;
  for (int64_t i = thread; i < before + (columns - rest); i += threads) {
    const int64_t column = i < before ? i : rest + (i - before);
    const float x = column == target ? -kInfinity : read(row[column]);
    write(out + column, gradient_of(x, line, exp_sum));
  }
  return exp_sum;
}

struct Gradients {
  const float* lse;           // (rows), or null: exact_lse
  const double* exact_lse;    // (rows), or null: lse
  const float* entropy;       // (rows), read where grad_entropy is given
  const float* grad_logp;     // (rows) or null: zeros
  const float* grad_entropy;  // (rows) or null: zeros
  const float* others;        // (rows) 1 - p of the target; null: the tile is whole rows, sum them
};

template <typename T>
__global__ __launch_bounds__(1024) void backward_rows(const T* logits, const int64_t* targets,
                                                      int64_t columns, int64_t row_stride,
                                                      int64_t first_column, int64_t vocab,
                                                      double temperature, Gradients grad, T* out,
                                                      int64_t out_stride) {
  const int64_t r = blockIdx.x;
  const T* row = logits + r * row_stride;
  T* to = out + r * out_stride;
  const double g = grad.grad_logp ? grad.grad_logp[r] : 0.0f;
  const double h = grad.grad_entropy ? grad.grad_entropy[r] : 0.0f;
  if (g == 0.0 && h == 0.0) {  // rows that do not count are 0, even if they hold NaN
    fill_row(to, columns, 0.0f);
    return;
  }
  if (targets[r] < 0 || targets[r] >= vocab) {
    fill_row(to, columns, nanf(""));
    return;
  }
  const int64_t target = targets[r] - first_column;
  const bool inside = target >= 0 && target < columns;
  const bool whole = grad.others == nullptr;
  const double lse = grad.lse ? grad.lse[r] : grad.exact_lse[r];
  const double entropy = grad.grad_entropy ? grad.entropy[r] : 0.0;
  const float slope = static_cast<float>(kLog2e / temperature);
  Sums<float> again = Sums<float>::none();
  const bool coarse = whole && grad.lse && !(fabs(lse) <= kCoarseLse);
  if (coarse) again = fold_columns<false>(row, 0, columns, target, slope);
  Line line;
  if (threadIdx.x == 0) {
    line.target = inside ? read(row[target]) : 0.0f;  // before `out` may overwrite it
    double ref = static_cast<float>(lse * temperature);
    line.offset = ref / temperature - lse;
    line.factor = exp(line.offset);
    if (coarse) {
      ref = line.target > again.max ? line.target : again.max;
      double total = exp((line.target - ref) / temperature);
      if (again.max > -kInfinity) total += again.exp_sum * exp((again.max - ref) / temperature);
      line.factor = 1.0 / total;
      line.offset = -log(total);
    }
    const double scale = -line.factor / temperature;
    line.ref = static_cast<float>(ref);
    line.slope = slope;
    line.flat = static_cast<float>(scale * (g + h * (line.offset + entropy)));
    line.steep = static_cast<float>(scale * h * kLn2);
    line.nothing = 0.0f * line.flat;
  }
  line = broadcast(line);
  const float share = gradient_columns(row, columns, target, line, to);
  const double sum =
      sum_of_block(static_cast<double>(share));  // a barrier: the columns are written
  if (threadIdx.x != 0 || !inside) return;
  const double others = whole ? sum * line.factor : grad.others[r];
  const double logp =
      others < 0.5 ? log1p(-others) : (line.target - line.ref) / temperature + line.offset;
  const double p = exp(logp);
  double result = g * others;
  if (h != 0.0 && p > 0.0) result -= h * p * (logp + entropy);
  write(to + target, static_cast<float>(result / temperature));
}

// ---- tiles -----------------------------------------------------------------------------------

constexpr int kSums = 6;  // doubles a row: Sums<double> and the target's logit

__global__ void start_sums(double* sums, int64_t rows) {
  const int64_t r = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x;
  if (r >= rows) return;
  double* row = sums + r * kSums;
  row[0] = -kInfinity;
  for (int i = 1; i < kSums - 1; ++i) row[i] = 0.0;
  row[kSums - 1] = nanf("");
}

template <bool kStatistics, int kThreads, typename T>
__global__ __launch_bounds__(kThreads, kThreads == kForwardThreads ? 3 : 1) void fold_tile(
    const T* logits, const int64_t* targets, int64_t columns, int64_t row_stride,
    int64_t first_column, double temperature, double* sums) {
  const int64_t r = blockIdx.x;
  const T* row = logits + r * row_stride;
  const int64_t target = targets[r] - first_column;
  const float slope = static_cast<float>(kLog2e / temperature);
  const Sums<float> found = fold_columns<kStatistics>(row, 0, columns, target, slope);
  if (threadIdx.x != 0) return;
  double* kept = sums + r * kSums;
  Sums<double> total = {kept[0], kept[1], kept[2], kept[3], kept[4]};
  total = merge(total, found.wide(), kLog2e / temperature);
  kept[0] = total.max;
  kept[1] = total.exp_sum;
  kept[2] = total.exp_dist;
  kept[3] = total.exp_sq;
  kept[4] = total.logit_sum;
  if (target >= 0 && target < columns) kept[5] = read(row[target]);
}

__global__ void finish_sums(const double* sums, int64_t rows, int64_t vocab, double temperature,
                            bool statistics, float* logp, float* entropy, double* lse, float* top1,
                            float* mean_logit, float* log_sum_sq) {
  const int64_t r = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x;
  if (r >= rows) return;
  const double* kept = sums + r * kSums;
  const Sums<double> row = {kept[0], kept[1], kept[2], kept[3], kept[4]};
  const RowResult result = finish_row(row, kept[5], temperature);
  logp[r] = static_cast<float>(result.logp);
  entropy[r] = static_cast<float>(result.entropy);
  lse[r] = result.lse;
  if (!statistics) return;
  top1[r] = kept[5] >= kept[0] ? 1.0f : 0.0f;
  mean_logit[r] = static_cast<float>(result.logit_sum / static_cast<double>(vocab));
  log_sum_sq[r] = static_cast<float>(result.log_sum_sq);
}

constexpr int kRowThreads = 128;

int64_t row_blocks(int64_t rows) { return (rows + kRowThreads - 1) / kRowThreads; }

}  // namespace

int token_logprobs_splits(int64_t rows, int64_t vocab) {
  const int64_t wanted = 4 * processors();
  if (rows == 0 || 2 * rows >= wanted) return 1;
  const int64_t useful = (vocab + kLeastSplit - 1) / kLeastSplit;
  const int64_t splits = (wanted + rows - 1) / rows;
  return static_cast<int>(splits < useful ? splits : useful);
}

cudaError_t token_logprobs_forward(const void* logits, int dtype, const int64_t* targets,
                                   int64_t rows, int64_t vocab, int64_t row_stride,
                                   double temperature, int splits, float* partials, float* logp,
                                   float* entropy, float* lse, cudaStream_t stream) {
  return with_element(dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const T* x = static_cast<const T*>(logits);
    const cudaError_t status =
        launch(forward_rows<T>, rows * splits, kForwardThreads, stream, x, targets, vocab,
               row_stride, temperature, splits, partials, logp, entropy, lse);
    if (splits == 1 || status != cudaSuccess) return status;
    return launch(merge_splits<T>, rows, kWarp, stream, x, targets, vocab, row_stride, temperature,
                  splits, partials, logp, entropy, lse);
  });
}

cudaError_t token_logprobs_backward(const void* logits, int dtype, const int64_t* targets,
                                    int64_t rows, int64_t columns, int64_t row_stride,
                                    int64_t first_column, int64_t vocab, double temperature,
                                    const float* lse, const double* exact_lse, const float* entropy,
                                    const float* grad_logp, const float* grad_entropy,
                                    const float* others, void* out, int64_t out_stride,
                                    cudaStream_t stream) {
  const Gradients grad = {lse, exact_lse, entropy, grad_logp, grad_entropy, others};
  const int threads = rows >= 2 * processors() ? 256 : 1024;
  return with_element(dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    return launch(backward_rows<T>, rows, threads, stream, static_cast<const T*>(logits), targets,
                  columns, row_stride, first_column, vocab, temperature, grad, static_cast<T*>(out),
                  out_stride);
  });
}

cudaError_t logprob_fold_start(double* sums, int64_t rows, cudaStream_t stream) {
  return launch(start_sums, row_blocks(rows), kRowThreads, stream, sums, rows);
}

cudaError_t logprob_fold(const void* logits, int dtype, const int64_t* targets, int64_t rows,
                         int64_t columns, int64_t row_stride, int64_t first_column,
                         double temperature, bool statistics, double* sums, cudaStream_t stream) {
  return with_element(dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    constexpr int kFew = kForwardThreads;
    const auto few = statistics ? fold_tile<true, kFew, T> : fold_tile<false, kFew, T>;
    const auto many = statistics ? fold_tile<true, 1024, T> : fold_tile<false, 1024, T>;
    const bool busy = rows >= 2 * processors() || columns <= kLeastSplit;
    return launch(busy ? few : many, rows, busy ? kFew : 1024, stream,
                  static_cast<const T*>(logits), targets, columns, row_stride, first_column,
                  temperature, sums);
  });
}

cudaError_t logprob_fold_finish(const double* sums, int64_t rows, int64_t vocab, double temperature,
                                bool statistics, float* logp, float* entropy, double* lse,
                                float* top1, float* mean_logit, float* log_sum_sq,
                                cudaStream_t stream) {
  return launch(finish_sums, row_blocks(rows), kRowThreads, stream, sums, rows, vocab, temperature,
                statistics, logp, entropy, lse, top1, mean_logit, log_sum_sq);
}

}  // namespace fastrl::cuda
