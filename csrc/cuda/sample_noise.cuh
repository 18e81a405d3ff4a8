// The arithmetic of `sample` that has to give the same bits on every backend: Philox4x32-10, Gumbel
// noise and integer weights, as defined in fastrl/ops/sample.py. Products and sums are written as
// intrinsics, which the compiler never fuses.
#pragma once

#include "cuda/common.cuh"

namespace fastrl::cuda {

__device__ __forceinline__ float times(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ float plus(float a, float b) { return __fadd_rn(a, b); }
__device__ __forceinline__ float minus(float a, float b) { return __fsub_rn(a, b); }

// The words of tokens 4 * group ... 4 * group + 3.
__device__ __forceinline__ uint4 random_words(uint32_t group, uint64_t seed, uint64_t step) {
  uint4 c = make_uint4(group, static_cast<uint32_t>(step), static_cast<uint32_t>(step >> 32), 0);
  uint32_t k0 = static_cast<uint32_t>(seed);
  uint32_t k1 = static_cast<uint32_t>(seed >> 32);
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const uint32_t high0 = __umulhi(0xD2511F53u, c.x);
    const uint32_t low0 = 0xD2511F53u * c.x;
    const uint32_t high1 = __umulhi(0xCD9E8D57u, c.z);
    const uint32_t low1 = 0xCD9E8D57u * c.z;
    c = make_uint4(high1 ^ c.y ^ k0, low1, high0 ^ c.w ^ k1, low0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return c;
}

__device__ __forceinline__ float natural_log(float x) {
  const int32_t bits = static_cast<int32_t>(__float_as_uint(x));
  const int32_t exponent = (bits - 0x3F3504F3) >> 23;
  const float f = minus(__uint_as_float(static_cast<uint32_t>(bits - exponent * (1 << 23))), 1.0f);
  float poly = -0.0790274366736412f;
  poly = plus(times(poly, f), 0.12622319161891937f);
  poly = plus(times(poly, f), -0.12998183071613312f);
  poly = plus(times(poly, f), 0.14214496314525604f);
  poly = plus(times(poly, f), -0.166412815451622f);
  poly = plus(times(poly, f), 0.20001044869422913f);
  poly = plus(times(poly, f), -0.25000306963920593f);
  poly = plus(times(poly, f), 0.3333333134651184f);
  const float square = times(f, f);
  const float count = static_cast<float>(exponent);
  const float tail = minus(plus(times(times(square, f), poly), times(count, -2.12194440e-4f)),
                           times(square, 0.5f));
  return plus(plus(f, tail), times(count, 0.693359375f));
}

__device__ __forceinline__ float gumbel(uint32_t word) {
  float u = times(plus(__uint2float_rn(word), 0.5f), 2.3283064365386963e-10f);  // 2^-32
  u = fminf(u, 0.99999994f);                                                    // 1 - 2^-24
  const float rest = minus(1.0f, u);
  const float lost = minus(minus(1.0f, rest), u);
  return -natural_log(-plus(natural_log(rest), lost));
}

// floor(2^40 exp(d)) of d <= 0.
__device__ __forceinline__ uint64_t weight(float d) {
  const float y = times(fmaxf(d, -40.0f), 1.4426950216293335f);
  const float whole = floorf(plus(y, 0.5f));
  const float f = minus(y, whole);
  float poly = 0.00015453163359779865f;
  poly = plus(times(poly, f), 0.0013390863314270973f);
  poly = plus(times(poly, f), 0.009618083015084267f);
  poly = plus(times(poly, f), 0.055503569543361664f);
  poly = plus(times(poly, f), 0.24022650718688965f);
  poly = plus(times(poly, f), 0.6931471824645996f);
  poly = plus(times(poly, f), 1.0f);
  const float scale = __uint_as_float(static_cast<uint32_t>(static_cast<int>(whole) + 167) << 23);
  return static_cast<uint64_t>(times(poly, scale));
}

}  // namespace fastrl::cuda
