// The row kernels of token_logprobs for AVX2 with FMA and F16C.
#include <immintrin.h>

#include "cpu/token_logprobs.h"
#include "dtype.h"

namespace fastrl::cpu {
namespace {

struct Vec {
  static constexpr int kLanes = 8;
  using F = __m256;
  using M = __m256;

  static F set(float value) { return _mm256_set1_ps(value); }

  static F widen(__m128i bits, bf16) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
  }
  static F widen(__m128i bits, fp16) { return _mm256_cvtph_ps(bits); }
  static F load(const float* p) { return _mm256_loadu_ps(p); }
  template <typename H>
  static F load(const H* p) {
    return widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)), H{});
  }
  template <typename T>
  static F load_n(const T* p, int64_t n, float fill) {
    float lanes[kLanes];
    for (int i = 0; i < kLanes; ++i) lanes[i] = i < n ? to_float(p[i]) : fill;
    return _mm256_loadu_ps(lanes);
  }

  static __m128i narrow(F v, bf16) {  // round to nearest even; a NaN keeps a mantissa bit
    const __m256i bits = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded =
        _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i quiet = _mm256_set1_epi32(0x7fc00000);
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    const __m256i high = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
  }
  static __m128i narrow(F v, fp16) {
    return _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  static void store(float* p, F v) { _mm256_storeu_ps(p, v); }
  template <typename H>
  static void store(H* p, F v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow(v, H{}));
  }
  template <typename T>
  static void store_n(T* p, F v, int64_t n) {
    T lanes[kLanes];
    store(lanes, v);
    for (int64_t i = 0; i < n; ++i) p[i] = lanes[i];
  }
  static void stream(float* p, F v) { _mm256_stream_ps(p, v); }
  template <typename H>
  static void stream(H* p, F v) {
    _mm_stream_si128(reinterpret_cast<__m128i*>(p), narrow(v, H{}));
  }
  static void fence() { _mm_sfence(); }

  static F sub(F a, F b) { return _mm256_sub_ps(a, b); }
  static F add(F a, F b) { return _mm256_add_ps(a, b); }
  static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static F max(F a, F b) { return _mm256_max_ps(a, b); }
  static F mul_live(M live, F a, F b) { return _mm256_and_ps(live, mul(a, b)); }
  static F fma_live(M live, F a, F b, F c) { return _mm256_blendv_ps(c, fma(a, b, c), live); }

  // Relative error below 1.6e-7; coefficients from a minimax fit of 2^f on [-1/2, 1/2].
  static F exp2(F d, M* live) {
    *live = _mm256_cmp_ps(d, set(-126.0f), _CMP_NLT_UQ);
    const F whole = _mm256_round_ps(d, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const F f = sub(d, whole);
    F poly = fma(set(0.00132647273f), f, set(0.00967151299f));
    poly = fma(poly, f, set(0.0555073358f));
    poly = fma(poly, f, set(0.240222424f));
    poly = fma(poly, f, set(0.693147004f));
    poly = fma(poly, f, set(1.0f));
    const __m256i power = _mm256_add_epi32(_mm256_cvtps_epi32(whole), _mm256_set1_epi32(127));
    return mul_live(*live, poly, _mm256_castsi256_ps(_mm256_slli_epi32(power, 23)));
  }
  static double sum(F v) {
    const __m256d pair = _mm256_add_pd(_mm256_cvtps_pd(_mm256_castps256_ps128(v)),
                                       _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1)));
    double lanes[4];
    _mm256_storeu_pd(lanes, pair);
    return (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]);
  }
  static double largest(F v) {
    float lanes[kLanes];
    _mm256_storeu_ps(lanes, v);
    float best = lanes[0];
    for (int i = 1; i < kLanes; ++i) best = lanes[i] > best ? lanes[i] : best;
    return best;
  }
};

}  // namespace
}  // namespace fastrl::cpu

#include "cpu/token_logprobs_rows.h"

namespace fastrl::cpu {

void fold_rows_avx2(const LogitsTile& tile, RowSums* sums, bool statistics, int64_t begin,
                    int64_t end) {
  fold_rows(tile, sums, statistics, begin, end);
}

void grad_rows_avx2(const LogitsTile& tile, const LogitsGrad& grad, int64_t begin, int64_t end) {
  grad_rows(tile, grad, begin, end);
}

}  // namespace fastrl::cpu
