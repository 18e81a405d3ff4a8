// Generalised advantage estimation, arXiv:1506.02438 eq. 16, over rows of a (rows, columns) batch.
//
// The recursion A_t = delta_t + gamma lam A_{t+1} is serial along a row and waits for itself, so
// kRows rows take their steps in turn; delta and the returns are computed row by row, where memory
// is contiguous. More rows hide no more and were slower: five arrays for each row then outnumber
// the streams that the processor prefetches.
#include <algorithm>
#include <cstdint>

#include "cpu/ops.h"
#include "cpu/pages.h"
#include "cpu/parallel.h"

namespace fastrl::cpu {
namespace {

constexpr int64_t kRows = 4;
constexpr int64_t kColumns = 128;
constexpr int64_t kGrain = 1 << 16;  // elements a thread must have to be worth waking

struct Batch {
  const float* rewards;
  const float* values;
  const uint8_t* mask;
  int64_t columns;
  float gamma;
  float decay;  // gamma * lam, multiplied in double as the reference does
  float* advantages;
  float* returns;
};

// The value is read before the choice: a conditional read would be a branch, not a vector select.
inline float counted(float value, uint8_t mask) { return mask ? value : 0.0f; }

// delta_t = r_t + gamma V_{t+1} - V_t for t in [begin, end) of one row; what the mask excludes is
// 0.
void row_deltas(const Batch& b, int64_t row, int64_t begin, int64_t end, float* deltas) {
  const int64_t base = row * b.columns;
  float here[kColumns + 1];
  const int64_t width = end - begin;
  for (int64_t i = 0; i < width; ++i) {
    here[i] = counted(b.values[base + begin + i], b.mask[base + begin + i]);
  }
  here[width] = end < b.columns ? counted(b.values[base + end], b.mask[base + end]) : 0.0f;
  for (int64_t i = 0; i < width; ++i) {
    const float reward = counted(b.rewards[base + begin + i], b.mask[base + begin + i]);
    deltas[i] = reward + b.gamma * here[i + 1] - here[i];
  }
}

void rows_together(const Batch& b, int64_t first, int64_t count) {
  float lines[kRows][kColumns + 4] = {};  // deltas, then advantages; padded against 4 KiB aliasing
  float carried[kRows] = {};
  for (int64_t end = b.columns; end > 0; end -= kColumns) {
    const int64_t begin = std::max<int64_t>(0, end - kColumns);
    const int64_t width = end - begin;
    for (int64_t r = 0; r < count; ++r) row_deltas(b, first + r, begin, end, lines[r]);
    for (int64_t i = width - 1; i >= 0; --i) {
      for (int64_t r = 0; r < kRows; ++r) {
        carried[r] = lines[r][i] + b.decay * carried[r];
        lines[r][i] = carried[r];
      }
    }
    for (int64_t r = 0; r < count; ++r) {
      const int64_t base = (first + r) * b.columns + begin;
      for (int64_t i = 0; i < width; ++i) {
        b.advantages[base + i] = lines[r][i];
        b.returns[base + i] = lines[r][i] + counted(b.values[base + i], b.mask[base + i]);
      }
    }
  }
}

}  // namespace

void gae(const float* rewards, const float* values, const uint8_t* mask, int64_t rows,
         int64_t columns, double gamma, double lam, float* advantages, float* returns,
         int n_threads) {
  const Batch batch{
      rewards,    values, mask, columns, static_cast<float>(gamma), static_cast<float>(gamma * lam),
      advantages, returns};
  const size_t bytes = static_cast<size_t>(rows * columns) * sizeof(float);
  expect_writes(advantages, bytes);
  expect_writes(returns, bytes);
  const int64_t groups = (rows + kRows - 1) / kRows;
  const int threads = useful_threads(rows * columns, kGrain, n_threads);
  parallel_chunks(groups, threads, [&](int, int64_t begin, int64_t end) {
    for (int64_t group = begin; group < end; ++group) {
      const int64_t first = group * kRows;
      rows_together(batch, first, std::min(kRows, rows - first));
    }
  });
}

}  // namespace fastrl::cpu
