// Masked whitening in two sweeps of memory: moments, then (x - mean) / sqrt(var + eps).
//
// Moments are taken block by block, mean first and then squares about that mean while the block is
// in L1, and merged in double by the pairwise formula of Chan, Golub and LeVeque (1983), in block
// order, so the result does not depend on the number of threads.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "cpu/ops.h"
#include "cpu/pages.h"
#include "cpu/parallel.h"

namespace fastrl::cpu {
namespace {

constexpr int64_t kBlock = 4096;
constexpr int kLanes = 32;
constexpr int64_t kGrain = 1 << 16;
constexpr double kEpsilon = 1e-8;

struct Moments {
  double count = 0;
  double mean = 0;
  double squares = 0;  // sum of (x - mean)^2
};

struct Sums {
  double first = 0;
  double second = 0;
};

// Sums of d and d * d over counted elements, d = x - centre, in kLanes partial sums each that the
// compiler turns into vectors.
Sums sums_about(float centre, const float* x, const uint8_t* mask, int64_t n) {
  float first[kLanes] = {};
  float second[kLanes] = {};
  Sums total;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const float d = x[i + lane] - centre;  // before the choice: then it is a select, no branch
      const float counted = mask[i + lane] ? d : 0.0f;
      first[lane] += counted;
      second[lane] += counted * counted;
    }
  }
  for (; i < n; ++i) {
    const double d = mask[i] ? x[i] - centre : 0.0f;
    total.first += d;
    total.second += d * d;
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    total.first += first[lane];
    total.second += second[lane];
  }
  return total;
}

Moments block_moments(const float* x, const uint8_t* mask, int64_t n) {
  int32_t count = 0;
  for (int64_t i = 0; i < n; ++i) count += mask[i] != 0;
  if (count == 0) return {};
  // The first sweep's fp32 mean is only near; what is left of it the second sweep measures.
  const float centre = static_cast<float>(sums_about(0.0f, x, mask, n).first / count);
  const Sums sums = sums_about(centre, x, mask, n);
  const double rest = sums.first / count;
  const double squares = sums.second - sums.first * rest;
  return {static_cast<double>(count), centre + rest, squares < 0 ? 0 : squares};
}

Moments merged(const Moments& a, const Moments& b) {
  if (a.count == 0) return b;
  if (b.count == 0) return a;
  const double count = a.count + b.count;
  const double gap = b.mean - a.mean;
  return {count, a.mean + gap * (b.count / count),
          a.squares + b.squares + gap * gap * (a.count * b.count / count)};
}

Moments all_moments(const float* x, const uint8_t* mask, int64_t n, int threads) {
  const int64_t blocks = (n + kBlock - 1) / kBlock;
  std::vector<Moments> parts(blocks);
  parallel_chunks(blocks, threads, [&](int, int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      const int64_t start = block * kBlock;
      parts[block] = block_moments(x + start, mask + start, std::min(kBlock, n - start));
    }
  });
  Moments total;
  for (const Moments& part : parts) total = merged(total, part);
  return total;
}

}  // namespace

int64_t whiten(const float* x, const uint8_t* mask, int64_t n, bool shift_mean, float* out,
               int n_threads) {
  const int threads = useful_threads(n, kGrain, n_threads);
  const Moments moments = all_moments(x, mask, n, threads);
  const int64_t count = static_cast<int64_t>(moments.count);
  // One element has no unbiased variance: NaN, not 0.
  const double variance =
      count > 1 ? moments.squares / (moments.count - 1) : std::numeric_limits<double>::quiet_NaN();
  expect_writes(out, static_cast<size_t>(n) * sizeof(float));
  const double inverse = 1.0 / std::sqrt(variance + kEpsilon);
  const float scale = static_cast<float>(inverse);
  const float centre = static_cast<float>(moments.mean);
  const float added =
      static_cast<float>((centre - moments.mean) * inverse + (shift_mean ? 0.0 : moments.mean));
  parallel_chunks(n, threads, [&](int, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) out[i] = (x[i] - centre) * scale + added;
  });
  return count;
}

}  // namespace fastrl::cpu
