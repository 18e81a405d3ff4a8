// Small matrix products and exponentials in the generic vectors of GCC and Clang. All functions
// have internal linkage (see isa.h).
#pragma once

#include <cstdint>
#include <cstring>

namespace fastrl::cpu {
namespace {

#if defined(__AVX2__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif
constexpr int kLanes = kBytes / 4;
constexpr int kTileRows = 6;  // rows of a product that are held in registers

typedef float Floats __attribute__((vector_size(kBytes)));
typedef int32_t Ints __attribute__((vector_size(kBytes)));

#define FASTRL_INLINE inline __attribute__((always_inline))

// Minus 0, not plus: -0 + 0 is 0, so that the sum would have to be made.
FASTRL_INLINE Floats all(float value) { return value - Floats{}; }

FASTRL_INLINE Floats load(const float* from) {
  Floats value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}

FASTRL_INLINE void store(float* to, Floats value) { std::memcpy(to, &value, sizeof(value)); }

FASTRL_INLINE Floats larger(Floats a, Floats b) { return a > b ? a : b; }

FASTRL_INLINE float largest(Floats value) {
  float best = value[0];
  for (int i = 1; i < kLanes; ++i) best = value[i] > best ? value[i] : best;
  return best;
}

FASTRL_INLINE float sum(Floats value) {
  float total = value[0];
  for (int i = 1; i < kLanes; ++i) total += value[i];
  return total;
}

// e^x for x <= 0 (and slightly above) to 2 units in the last place; 0 below -87.
FASTRL_INLINE Floats exponential(Floats x) {
  const Floats shift = all(12582912.0f);  // 1.5 * 2^23: adding it leaves an integer in the low bits
  const Floats low = all(-87.0f);
  const Floats safe = x > low ? x : low;
  const Floats whole = safe * 1.44269504f + shift;
  const Floats n = whole - shift;
  const Floats r = (safe - n * 0.693145752f) - n * 1.42860677e-6f;
  Floats p = all(1.0f / 5040);
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const Ints exponent = ((Ints)whole - 0x4b400000 + 127) << 23;
  const Floats result = p * (Floats)exponent;
  return x > low ? result : (x <= low ? Floats{} : x);  // NaN stays
}

// A matrix whose element (i, k) is data[i * row + k * column].
struct Strided {
  const float* data;
  int64_t row;
  int64_t column;
};

// c (M, V vectors) = or += a (M, depth) b (depth, V vectors).
template <int M, int V>
inline void tile(Strided a, const float* b, int64_t b_row, float* c, int64_t c_row, int64_t depth,
                 bool add) {
  Floats sums[M][V];
#pragma GCC unroll 8
  for (int i = 0; i < M; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) sums[i][v] = add ? load(c + i * c_row + v * kLanes) : Floats{};
  }
  for (int64_t k = 0; k < depth; ++k) {
    Floats right[V];
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) right[v] = load(b + k * b_row + v * kLanes);
#pragma GCC unroll 8
    for (int i = 0; i < M; ++i) {
      const Floats left = all(a.data[i * a.row + k * a.column]);
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) sums[i][v] += left * right[v];
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < M; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) store(c + i * c_row + v * kLanes, sums[i][v]);
  }
}

template <int M>
inline void strip(Strided a, const float* b, int64_t b_row, float* c, int64_t c_row, int64_t depth,
                  int64_t columns, bool add) {
  int64_t j = 0;
  for (; j + 2 * kLanes <= columns; j += 2 * kLanes)
    tile<M, 2>(a, b + j, b_row, c + j, c_row, depth, add);
  for (; j + kLanes <= columns; j += kLanes) tile<M, 1>(a, b + j, b_row, c + j, c_row, depth, add);
  for (; j < columns; ++j) {
    for (int i = 0; i < M; ++i) {
      float total = add ? c[i * c_row + j] : 0.0f;
      for (int64_t k = 0; k < depth; ++k)
        total += a.data[i * a.row + k * a.column] * b[k * b_row + j];
      c[i * c_row + j] = total;
    }
  }
}

// c (rows, columns) = or += a (rows, depth) b (depth, columns).
inline void multiply(Strided a, const float* b, int64_t b_row, float* c, int64_t c_row,
                     int64_t rows, int64_t depth, int64_t columns, bool add) {
  while (rows > 0) {
    int64_t taken = kTileRows;
    switch (rows) {
      case 1:
        strip<1>(a, b, b_row, c, c_row, depth, columns, add);
        return;
      case 2:
        strip<2>(a, b, b_row, c, c_row, depth, columns, add);
        return;
      case 3:
        strip<3>(a, b, b_row, c, c_row, depth, columns, add);
        return;
      case 4:
        strip<4>(a, b, b_row, c, c_row, depth, columns, add);
        return;
      case 5:
        strip<5>(a, b, b_row, c, c_row, depth, columns, add);
        return;
      default:
        strip<kTileRows>(a, b, b_row, c, c_row, depth, columns, add);
    }
    rows -= taken;
    a.data += taken * a.row;
    c += taken * c_row;
  }
}

}  // namespace
}  // namespace fastrl::cpu
