// The row kernels of token_logprobs, written once over a small vector type `Vec` that the including
// file defines in an anonymous namespace for its instruction set:
//   kLanes; F, M: vector of floats, mask;  set, load, load_n, store, store_n, stream, fence;
//   sub, add, mul, fma, max;  exp2(d, &live);  mul_live, fma_live;  sum, largest: over the lanes.
// `live` is false where 2^d is below the smallest normal float; such terms count as exactly 0, so a
// logit of -inf adds nothing instead of 0 * -inf. NaN stays live and reaches the result.
//
// Forward: blocks of kBlock columns stay in the first-level cache for two passes, the maximum and
// then the exponentials. Sums are fp32 within a block and double across blocks.
#include <cmath>

#include "cpu/token_logprobs.h"
#include "dtype.h"

namespace fastrl::cpu {
namespace {

constexpr int64_t kBlock = 2048;
constexpr int kUnroll = 4;
constexpr double kLog2e = 1.4426950408889634;
constexpr double kLn2 = 0.6931471805599453;
// Above this an fp32 log-sum-exp has lost digits that the gradient wants: it is summed again.
constexpr double kCoarseLse = 64.0;

inline bool is_minus_inf(double value) { return value == -HUGE_VAL; }

template <typename T>
double largest_of(const T* x, int64_t n) {
  const float lowest = -HUGE_VALF;
  Vec::F best[kUnroll];
  for (int u = 0; u < kUnroll; ++u) best[u] = Vec::set(lowest);
  int64_t i = 0;
  for (; i + kUnroll * Vec::kLanes <= n; i += kUnroll * Vec::kLanes)
    for (int u = 0; u < kUnroll; ++u)
      best[u] = Vec::max(Vec::load(x + i + u * Vec::kLanes), best[u]);
  for (; i < n; i += Vec::kLanes) {
    const int64_t left = n - i;
    const Vec::F v = left < Vec::kLanes ? Vec::load_n(x + i, left, lowest) : Vec::load(x + i);
    best[0] = Vec::max(v, best[0]);
  }
  for (int u = 1; u < kUnroll; ++u) best[0] = Vec::max(best[u], best[0]);
  return Vec::largest(best[0]);
}

template <typename T>
double logit_sum_of(const T* x, int64_t n) {
  Vec::F total = Vec::set(0.0f);
  for (int64_t i = 0; i < n; i += Vec::kLanes) {
    const int64_t left = n - i;
    total = Vec::add(total, left < Vec::kLanes ? Vec::load_n(x + i, left, 0.0f) : Vec::load(x + i));
  }
  return Vec::sum(total);
}

struct Partial {
  Vec::F exp_sum[kUnroll];
  Vec::F exp_dist[kUnroll];
  Vec::F exp_sq[kUnroll];
};

template <bool kStats>
inline void add_term(Partial& part, int u, Vec::F x, Vec::F ref, Vec::F slope) {
  const Vec::F d = Vec::mul(Vec::sub(x, ref), slope);
  Vec::M live;
  const Vec::F e = Vec::exp2(d, &live);
  part.exp_sum[u] = Vec::add(part.exp_sum[u], e);
  part.exp_dist[u] = Vec::fma_live(live, e, d, part.exp_dist[u]);
  if constexpr (kStats) part.exp_sq[u] = Vec::fma(e, e, part.exp_sq[u]);
}

// Adds n <= kBlock columns that do not hold the target.
template <bool kStats, typename T>
void fold_block(const T* x, int64_t n, float slope, RowSums& row) {
  if (n <= 0) return;
  const double top = largest_of(x, n);
  if (top > row.max) {
    if (!is_minus_inf(row.max)) {
      const double shift = (row.max - top) * slope;  // in powers of two
      const double scale = std::exp2(shift);
      // Nothing is left of the old sums where scale is 0; 0 * -inf must not be formed.
      row.exp_dist = scale > 0.0 ? scale * (row.exp_dist + row.exp_sum * shift) : 0.0;
      row.exp_sum *= scale;
      if constexpr (kStats) row.exp_sq *= scale * scale;
    }
    row.max = top;
  }
  const Vec::F ref = Vec::set(is_minus_inf(row.max) ? 0.0f : static_cast<float>(row.max));
  const Vec::F slopes = Vec::set(slope);
  Partial part;
  for (int u = 0; u < kUnroll; ++u)
    part.exp_sum[u] = part.exp_dist[u] = part.exp_sq[u] = Vec::set(0.0f);
  int64_t i = 0;
  for (; i + kUnroll * Vec::kLanes <= n; i += kUnroll * Vec::kLanes)
    for (int u = 0; u < kUnroll; ++u)
      add_term<kStats>(part, u, Vec::load(x + i + u * Vec::kLanes), ref, slopes);
  for (; i < n; i += Vec::kLanes) {
    const int64_t left = n - i;
    const Vec::F v = left < Vec::kLanes ? Vec::load_n(x + i, left, -HUGE_VALF) : Vec::load(x + i);
    add_term<kStats>(part, 0, v, ref, slopes);
  }
  for (int u = 1; u < kUnroll; ++u) {
    part.exp_sum[0] = Vec::add(part.exp_sum[0], part.exp_sum[u]);
    part.exp_dist[0] = Vec::add(part.exp_dist[0], part.exp_dist[u]);
    part.exp_sq[0] = Vec::add(part.exp_sq[0], part.exp_sq[u]);
  }
  row.exp_sum += Vec::sum(part.exp_sum[0]);
  row.exp_dist += Vec::sum(part.exp_dist[0]);
  if constexpr (kStats) {
    row.exp_sq += Vec::sum(part.exp_sq[0]);
    row.logit_sum += logit_sum_of(x, n);
  }
}

// Adds n columns, of which column `target` (if it lies in [0, n)) is only noted.
template <bool kStats, typename T>
void fold_row(const T* x, int64_t n, int64_t target, float slope, RowSums& row) {
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const int64_t end = begin + kBlock < n ? begin + kBlock : n;
    if (target < begin || target >= end) {
      fold_block<kStats>(x + begin, end - begin, slope, row);
      continue;
    }
    fold_block<kStats>(x + begin, target - begin, slope, row);
    fold_block<kStats>(x + target + 1, end - target - 1, slope, row);
    row.target = to_float(x[target]);
  }
}

inline float slope_of(double temperature) { return static_cast<float>(kLog2e / temperature); }

template <typename T>
void fold_rows_of(const LogitsTile& tile, RowSums* sums, bool statistics, int64_t begin,
                  int64_t end) {
  const float slope = slope_of(tile.temperature);
  for (int64_t r = begin; r < end; ++r) {
    const T* x = static_cast<const T*>(tile.logits) + r * tile.row_stride;
    const int64_t target = tile.targets[r] - tile.first_column;
    if (statistics)
      fold_row<true>(x, tile.columns, target, slope, sums[r - begin]);
    else
      fold_row<false>(x, tile.columns, target, slope, sums[r - begin]);
  }
}

// The caller has checked the dtype code. (dtype.h's with_dtype can throw with a std::string, whose
// functions must not be compiled for one instruction set only.)
void fold_rows(const LogitsTile& tile, RowSums* sums, bool statistics, int64_t begin, int64_t end) {
  if (tile.dtype == kFloat32)
    fold_rows_of<float>(tile, sums, statistics, begin, end);
  else if (tile.dtype == kBFloat16)
    fold_rows_of<bf16>(tile, sums, statistics, begin, end);
  else
    fold_rows_of<fp16>(tile, sums, statistics, begin, end);
}

// out = 2^d * (flat + steep * d) with d = (x - ref) * slope, which is every gradient but the
// target's: p = 2^d / (sum of 2^d), log p is linear in d.
struct GradLine {
  float ref;
  float slope;
  float flat;
  float steep;
};

struct GradLanes {
  Vec::F ref, slope, flat, steep;
  explicit GradLanes(const GradLine& line)
      : ref(Vec::set(line.ref)),
        slope(Vec::set(line.slope)),
        flat(Vec::set(line.flat)),
        steep(Vec::set(line.steep)) {}
};

template <bool kEntropy>
inline Vec::F grad_term(Vec::F x, const GradLanes& line, Vec::F& exp_sum) {
  const Vec::F d = Vec::mul(Vec::sub(x, line.ref), line.slope);
  Vec::M live;
  const Vec::F e = Vec::exp2(d, &live);
  exp_sum = Vec::add(exp_sum, e);
  if constexpr (!kEntropy) return Vec::mul(e, line.flat);
  return Vec::mul_live(live, e, Vec::fma(line.steep, d, line.flat));
}

// Writes n columns without the target; returns the sum of 2^d.
template <bool kEntropy, bool kStream, typename T>
double grad_columns(const T* x, int64_t n, const GradLine& scalars, T* out) {
  const GradLanes line(scalars);
  double total = 0.0;
  int64_t i = 0;
  if constexpr (kStream) {  // streaming stores want whole aligned vectors
    constexpr uintptr_t kBytes = Vec::kLanes * sizeof(T);
    const uintptr_t past = reinterpret_cast<uintptr_t>(out) % kBytes;
    const int64_t head = past == 0 ? 0 : static_cast<int64_t>((kBytes - past) / sizeof(T));
    const int64_t count = head < n ? head : n;
    if (count > 0) {
      Vec::F sum = Vec::set(0.0f);
      const Vec::F v = Vec::load_n(x, count, -HUGE_VALF);
      Vec::store_n(out, grad_term<kEntropy>(v, line, sum), count);
      total += Vec::sum(sum);
      i = count;
    }
  }
  while (i + kUnroll * Vec::kLanes <= n) {
    const int64_t end = i + kBlock < n ? i + kBlock : n;
    Vec::F sums[kUnroll];
    for (int u = 0; u < kUnroll; ++u) sums[u] = Vec::set(0.0f);
    for (; i + kUnroll * Vec::kLanes <= end; i += kUnroll * Vec::kLanes) {
      for (int u = 0; u < kUnroll; ++u) {
        const Vec::F g = grad_term<kEntropy>(Vec::load(x + i + u * Vec::kLanes), line, sums[u]);
        if constexpr (kStream)
          Vec::stream(out + i + u * Vec::kLanes, g);
        else
          Vec::store(out + i + u * Vec::kLanes, g);
      }
    }
    for (int u = 1; u < kUnroll; ++u) sums[0] = Vec::add(sums[0], sums[u]);
    total += Vec::sum(sums[0]);
  }
  Vec::F sum = Vec::set(0.0f);
  for (; i < n; i += Vec::kLanes) {
    const int64_t left = n - i < Vec::kLanes ? n - i : Vec::kLanes;
    const Vec::F v = Vec::load_n(x + i, left, -HUGE_VALF);
    Vec::store_n(out + i, grad_term<kEntropy>(v, line, sum), left);
  }
  return total + Vec::sum(sum);
}

template <bool kEntropy, typename T>
double grad_both_sides(const T* x, int64_t n, int64_t target, const GradLine& line, bool stream,
                       T* out) {
  const bool inside = target >= 0 && target < n;
  const int64_t left = inside ? target : n;
  const int64_t right = inside ? target + 1 : n;
  if (stream)
    return grad_columns<kEntropy, true>(x, left, line, out) +
           grad_columns<kEntropy, true>(x + right, n - right, line, out + right);
  return grad_columns<kEntropy, false>(x, left, line, out) +
         grad_columns<kEntropy, false>(x + right, n - right, line, out + right);
}

// Where the probabilities of a row come from: p = 2^((x - ref) * slope) * factor.
struct Anchor {
  double ref;     // exactly a float
  double factor;  // 1 / sum
  double offset;  // log p = (x - ref) / temperature + offset
};

template <typename T>
Anchor anchor_of(const T* x, int64_t n, int64_t target, double lse, bool whole,
                 double temperature) {
  if (whole && !(std::fabs(lse) <= kCoarseLse)) {
    RowSums row{-HUGE_VAL, 0.0, 0.0, 0.0, 0.0, -HUGE_VAL};
    fold_row<false>(x, n, target, slope_of(temperature), row);
    const double top = row.target > row.max ? row.target : row.max;
    double total = 0.0;
    if (!is_minus_inf(row.max)) total = row.exp_sum * std::exp((row.max - top) / temperature);
    total += std::exp((row.target - top) / temperature);
    return {top, 1.0 / total, -std::log(total)};
  }
  const double ref = static_cast<float>(lse * temperature);
  const double offset = ref / temperature - lse;
  return {ref, std::exp(offset), offset};
}

template <typename T>
void grad_row(const LogitsTile& tile, const LogitsGrad& grad, int64_t r) {
  const T* x = static_cast<const T*>(tile.logits) + r * tile.row_stride;
  T* out = static_cast<T*>(grad.out) + r * grad.out_stride;
  const int64_t n = tile.columns;
  const int64_t target = tile.targets[r] - tile.first_column;
  const double temperature = tile.temperature;
  const double g = grad.grad_logp ? grad.grad_logp[r] : 0.0;
  const double h = grad.grad_entropy ? grad.grad_entropy[r] : 0.0;
  if (g == 0.0 && h == 0.0) {  // rows that do not count cost nothing, even if they hold NaN
    for (int64_t i = 0; i < n; ++i) out[i] = T{};
    return;
  }
  const bool whole = grad.others == nullptr;
  const Anchor anchor = anchor_of(x, n, target, grad.lse[r], whole, temperature);
  const double entropy = grad.grad_entropy ? grad.entropy[r] : 0.0;
  const double scale = -anchor.factor / temperature;
  const GradLine line{static_cast<float>(anchor.ref), slope_of(temperature),
                      static_cast<float>(scale * (g + h * (anchor.offset + entropy))),
                      static_cast<float>(scale * h * kLn2)};
  const bool inside = target >= 0 && target < n;
  const double x_target = inside ? to_float(x[target]) : 0.0;  // before `out` overwrites it
  const bool stream = grad.stream;
  const double sum = h == 0.0 ? grad_both_sides<false>(x, n, target, line, stream, out)
                              : grad_both_sides<true>(x, n, target, line, stream, out);
  if (!inside) return;
  const double others = whole ? sum * anchor.factor : grad.others[r];
  const double logp =
      others < 0.5 ? std::log1p(-others) : (x_target - anchor.ref) / temperature + anchor.offset;
  const double p = std::exp(logp);
  double result = g * others;
  if (h != 0.0 && p > 0.0) result -= h * p * (logp + entropy);
  Vec::store_n(out + target, Vec::set(static_cast<float>(result / temperature)), 1);
}

template <typename T>
void grad_rows_of(const LogitsTile& tile, const LogitsGrad& grad, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) grad_row<T>(tile, grad, r);
  if (grad.stream) Vec::fence();
}

void grad_rows(const LogitsTile& tile, const LogitsGrad& grad, int64_t begin, int64_t end) {
  if (tile.dtype == kFloat32)
    grad_rows_of<float>(tile, grad, begin, end);
  else if (tile.dtype == kBFloat16)
    grad_rows_of<bf16>(tile, grad, begin, end);
  else
    grad_rows_of<fp16>(tile, grad, begin, end);
}

}  // namespace
}  // namespace fastrl::cpu
