// The body of few_rows_base.cpp, _avx2.cpp and _avx512.cpp. Vectors are GCC's and Clang's generic
// ones, as wide as the file's instruction set has them. All functions have internal linkage (see
// isa.h).
//
// The matrix is read once, where it lies; a number is the same sum in the same order whatever the
// other rows and columns, so that a row's result does not depend on its company.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

#include "cpu/few_rows.h"

namespace fastrl::cpu {
namespace {

#if defined(__AVX512F__)
constexpr int kBytes = 64;
constexpr int kRows = 6;  // sums of kRows x kColumns, kRows vectors and one more fit the registers
#elif defined(__AVX2__)
constexpr int kBytes = 32;
constexpr int kRows = 3;
#else
constexpr int kBytes = 16;
constexpr int kRows = 3;
#endif
constexpr int kLanes = kBytes / 4;
constexpr int kColumns = 4;       // as many as a Quad has lanes
constexpr int64_t kDepth = 1024;  // a stretch of 64 rows stays in the second cache
constexpr int64_t kChunk = 64;    // rows

typedef float Floats __attribute__((vector_size(kBytes)));
typedef float Quad __attribute__((vector_size(16)));

#define FASTRL_INLINE inline __attribute__((always_inline))

FASTRL_INLINE Floats load(const float* from) {
  Floats value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}

// The vector's halves are added until four lanes are left.
FASTRL_INLINE Quad folded(Floats value) {
  Quad parts[kLanes / 4];
  std::memcpy(parts, &value, sizeof(value));
  for (int half = kLanes / 8; half > 0; half /= 2) {
    for (int part = 0; part < half; ++part) parts[part] += parts[part + half];
  }
  return parts[0];
}

// (0 + 2) + (1 + 3) of the lanes of each vector, in one.
FASTRL_INLINE Quad totals(Quad a, Quad b, Quad c, Quad d) {
#if defined(__SSE__)
  _MM_TRANSPOSE4_PS(a, b, c, d);
  return (a + c) + (b + d);
#else
  return Quad{(a[0] + a[2]) + (a[1] + a[3]), (b[0] + b[2]) + (b[1] + b[3]),
              (c[0] + c[2]) + (c[1] + c[3]), (d[0] + d[2]) + (d[1] + d[3])};
#endif
}

// A stretch [first, last) of the depth; the first one starts the sums, the others add to them.
struct Stretch {
  int64_t first;
  int64_t last;
};

template <int kR, int kC>
FASTRL_INLINE void tile(const FewRows& p, Stretch s, int64_t row, int64_t column) {
  const float* x = p.x + row * p.depth;
  const float* w = p.weight + column * p.depth;
  Floats sums[kR][kC] = {};
  int64_t i = s.first;
  for (; i + kLanes <= s.last; i += kLanes) {
    Floats values[kR];
    for (int r = 0; r < kR; ++r) values[r] = load(x + r * p.depth + i);
    for (int c = 0; c < kC; ++c) {
      const Floats weight = load(w + c * p.depth + i);
      for (int r = 0; r < kR; ++r) sums[r][c] += values[r] * weight;
    }
  }
#pragma GCC unroll 8  // the sums are to stay in registers
  for (int r = 0; r < kR; ++r) {
    Quad four[kColumns] = {};
    for (int c = 0; c < kC; ++c) four[c] = folded(sums[r][c]);
    Quad sum = totals(four[0], four[1], four[2], four[3]);
    for (int64_t j = i; j < s.last; ++j) {
      for (int c = 0; c < kC; ++c) sum[c] += x[r * p.depth + j] * w[c * p.depth + j];
    }
    float* out = p.out + (row + r) * p.width + column;
    const float* before = s.first > 0 ? out : (p.bias ? p.bias + column : nullptr);
    Quad start = {};
    if (before) std::memcpy(&start, before, kC * sizeof(float));
    sum += start;
    std::memcpy(out, &sum, kC * sizeof(float));
  }
}

template <int kC>
FASTRL_INLINE void strip(const FewRows& p, Stretch s, int64_t row, int64_t end, int64_t column) {
  for (; row + kRows <= end; row += kRows) tile<kRows, kC>(p, s, row, column);
  if constexpr (kRows > 4) {
    if (row + 4 <= end) {
      tile<4, kC>(p, s, row, column);
      row += 4;
    }
  }
  if (row + 2 <= end) {
    tile<2, kC>(p, s, row, column);
    row += 2;
  }
  if (row < end) tile<1, kC>(p, s, row, column);
}

// Asks for the next columns while these are worked on.
FASTRL_INLINE void announce(const FewRows& p, Stretch s, int64_t column, int64_t end) {
  for (int64_t c = column; c < end && c < column + kColumns; ++c) {
    const float* w = p.weight + c * p.depth;
    for (int64_t i = s.first; i < s.last; i += 16) __builtin_prefetch(w + i);
  }
}

void columns(const FewRows& p, int64_t begin, int64_t end) {
  for (int64_t row = 0; row < p.rows; row += kChunk) {
    const int64_t last_row = row + kChunk < p.rows ? row + kChunk : p.rows;
    int64_t first = 0;
    do {
      const Stretch s{first, first + kDepth < p.depth ? first + kDepth : p.depth};
      int64_t column = begin;
      for (; column + kColumns <= end; column += kColumns) {
        announce(p, s, column + kColumns, end);
        strip<kColumns>(p, s, row, last_row, column);
      }
      for (; column < end; ++column) strip<1>(p, s, row, last_row, column);
      first = s.last;
    } while (first < p.depth);
  }
}

#undef FASTRL_INLINE

}  // namespace
}  // namespace fastrl::cpu
