// The running sums of one row of logits and how a block adds columns to them. The same as RowSums
// in csrc/cpu/token_logprobs.h: the target's column is left out, so that 1 - p keeps its digits.
#pragma once

#include "cuda/common.cuh"

namespace fastrl::cuda {

constexpr double kLog2e = 1.4426950408889634;
constexpr double kLn2 = 0.6931471805599453;

// With d = (x - max) * slope, slope = log2(e) / temperature:
template <typename Real>
struct Sums {
  Real max;        // -inf before the first
  Real exp_sum;    // sum of 2^d
  Real exp_dist;   // sum of 2^d * d
  Real exp_sq;     // sum of 2^2d   (statistics only)
  Real logit_sum;  // sum of logits (statistics only)

  static __device__ Sums none() { return {static_cast<Real>(-kInfinity), 0, 0, 0, 0}; }

  __device__ Sums from_higher_lane(int offset) const {
    return {__shfl_down_sync(kWholeWarp, max, offset),
            __shfl_down_sync(kWholeWarp, exp_sum, offset),
            __shfl_down_sync(kWholeWarp, exp_dist, offset),
            __shfl_down_sync(kWholeWarp, exp_sq, offset),
            __shfl_down_sync(kWholeWarp, logit_sum, offset)};
  }

  __device__ Sums<double> wide() const { return {max, exp_sum, exp_dist, exp_sq, logit_sum}; }
};

__device__ __forceinline__ float power_of_two(float x) { return fast_exp2(x); }
__device__ __forceinline__ double power_of_two(double x) { return exp2(x); }

// The sums relative to a larger maximum.
template <typename Real>
__device__ __forceinline__ void raise(Sums<Real>& sums, Real top, Real slope) {
  if (!(top > sums.max)) return;
  const Real shift = (sums.max - top) * slope;
  const Real scale = power_of_two(shift);
  // Nothing is left of the old sums where scale is 0; 0 * -inf must not be formed.
  sums.exp_dist = scale > 0 ? scale * (sums.exp_dist + sums.exp_sum * shift) : Real{0};
  sums.exp_sum *= scale;
  sums.exp_sq *= scale * scale;
  sums.max = top;
}

template <typename Real>
__device__ Sums<Real> merge(Sums<Real> a, Sums<Real> b, Real slope) {
  raise(a, b.max, slope);
  raise(b, a.max, slope);
  return {a.max, a.exp_sum + b.exp_sum, a.exp_dist + b.exp_dist, a.exp_sq + b.exp_sq,
          a.logit_sum + b.logit_sum};
}

// Adds kCount values; those to be left out are -inf. One rescale for all of them.
template <bool kStatistics, int kCount>
__device__ __forceinline__ void add_values(const float (&x)[kCount], float slope,
                                           Sums<float>& sums) {
  float top = x[0];
#pragma unroll
  for (int i = 1; i < kCount; ++i) top = fmaxf(top, x[i]);
  raise(sums, top, slope);
  const float ref = sums.max == -kInfinity ? 0.0f : sums.max;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const float d = (x[i] - ref) * slope;
    const float e = fast_exp2(d);
    sums.exp_sum += e;
    sums.exp_dist = fmaf(e, fmaxf(d, -1e4f), sums.exp_dist);  // 0 where e is: never 0 * -inf
    if constexpr (kStatistics) sums.exp_sq = fmaf(e, e, sums.exp_sq);
  }
}

// Sum of the columns [begin, end) but `target`, over the whole block: thread 0 gets it.
template <bool kStatistics, typename T>
__device__ Sums<float> fold_columns(const T* row, int64_t begin, int64_t end, int64_t target,
                                    float slope) {
  constexpr int kSize = Pack<T>::kSize;
  constexpr int kPacks = 4;
  Sums<float> sums = Sums<float>::none();
  const int64_t threads = blockDim.x;
  const int64_t thread = threadIdx.x;
  const int64_t head = until_aligned(row + begin);
  const int64_t first = begin + head < end ? begin + head : end;  // of the aligned packs
  const int64_t packs = (end - first) / kSize;
  const int64_t rest = first + packs * kSize;
  for (int64_t base = 0; base < packs; base += kPacks * threads) {
    float x[kPacks * kSize];
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      const int64_t pack = base + p * threads + thread;
      if (pack < packs) {
        const Pack<T> values = load_pack(row + first + pack * kSize);
#pragma unroll
        for (int i = 0; i < kSize; ++i) x[p * kSize + i] = read(values.at[i]);
      } else {
#pragma unroll
        for (int i = 0; i < kSize; ++i) x[p * kSize + i] = -kInfinity;
      }
    }
    if constexpr (kStatistics) {
#pragma unroll
      for (int i = 0; i < kPacks * kSize; ++i) {
        const int64_t pack = base + i / kSize * threads + thread;
        const bool counts = pack < packs && first + pack * kSize + i % kSize != target;
        sums.logit_sum += counts ? x[i] : 0.0f;
      }
    }
    const int64_t near = target - first - base * kSize;
    if (near >= 0 && near < kPacks * threads * kSize) {
#pragma unroll
      for (int i = 0; i < kPacks * kSize; ++i) {
        if ((i / kSize * threads + thread) * kSize + i % kSize == near) x[i] = -kInfinity;
      }
    }
    add_values<kStatistics>(x, slope, sums);
  }
  // What lies before the first and after the last whole pack: fewer columns than there are threads.
  for (int side = 0; side < 2; ++side) {
    const int64_t column = (side == 0 ? begin : rest) + thread;
    if (column >= (side == 0 ? first : end)) continue;
    const float value = read(row[column]);
    const float one[1] = {column == target ? -kInfinity : value};
    if constexpr (kStatistics) sums.logit_sum += column == target ? 0.0f : value;
    add_values<kStatistics>(one, slope, sums);
  }
  return reduce_block(
      sums, [slope](const Sums<float>& a, const Sums<float>& b) { return merge(a, b, slope); });
}

struct RowResult {
  double logp, entropy, lse, logit_sum, log_sum_sq;
};

// What follows from the sums of a whole row and its target's logit (NaN: there is none).
__device__ inline RowResult finish_row(const Sums<double>& row, double target, double temperature) {
  const double infinity = kInfinity;
  const double nan = nanf("");
  const double z_target = target == infinity ? nan : target / temperature;
  const double lead = (z_target == z_target ? target - row.max : nan) / temperature;
  // Differences first: logits near the end of the range would swallow the logarithm.
  const double gap = row.exp_sum == 0.0 ? -infinity - z_target : log(row.exp_sum) - lead;
  RowResult result;
  if (gap > 0.0) {
    const double rest = log1p(exp(-gap));
    result.logp = -gap - rest;
    result.lse = row.max / temperature + log(row.exp_sum) + rest;
  } else {
    const double rest = log1p(exp(gap));
    result.logp = 0.0 - rest;
    result.lse = z_target + rest;
  }
  const double dist = row.exp_dist * kLn2;
  double log_mass, log_sq;
  if (lead >= 0.0) {  // relative to the target
    const double scale = exp(-lead);
    const double others = row.exp_sum * scale;
    const double spread = others > 0.0 ? scale * (dist - row.exp_sum * lead) : others;
    log_mass = log1p(others);
    log_sq = log1p(row.exp_sq * scale * scale);
    result.entropy = log_mass - spread / (1.0 + others);
  } else {  // relative to the largest of the others
    const double mine = exp(lead);
    const double mass = row.exp_sum + mine;
    log_mass = log(mass);
    log_sq = log(row.exp_sq + mine * mine);
    result.entropy = log_mass - (dist + (mine > 0.0 ? mine * lead : 0.0)) / mass;
  }
  if (result.entropy < 0.0) result.entropy = 0.0;
  result.logit_sum = (row.logit_sum + target) / temperature;
  result.log_sum_sq = log_sq - 2.0 * log_mass;
  return result;
}

}  // namespace fastrl::cuda
