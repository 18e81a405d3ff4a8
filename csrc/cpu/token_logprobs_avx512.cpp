// The row kernels of token_logprobs for AVX-512 (F, BW, DQ, VL).
#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 calls the deliberately undefined operands inside its own AVX-512 intrinsics uninitialised.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#include "cpu/token_logprobs.h"
#include "dtype.h"

namespace fastrl::cpu {
namespace {

struct Vec {
  static constexpr int kLanes = 16;
  using F = __m512;
  using M = __mmask16;

  static F set(float value) { return _mm512_set1_ps(value); }
  static __mmask16 first(int64_t n) { return static_cast<__mmask16>((1u << n) - 1u); }  // n <= 16

  static F widen(__m256i bits, bf16) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
  }
  static F widen(__m256i bits, fp16) { return _mm512_cvtph_ps(bits); }
  static F load(const float* p) { return _mm512_loadu_ps(p); }
  template <typename H>
  static F load(const H* p) {
    return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), H{});
  }
  static F load_n(const float* p, int64_t n, float fill) {
    return _mm512_mask_loadu_ps(set(fill), first(n), p);
  }
  template <typename H>
  static F load_n(const H* p, int64_t n, float fill) {
    return _mm512_mask_mov_ps(set(fill), first(n),
                              widen(_mm256_maskz_loadu_epi16(first(n), p), H{}));
  }

  static __m256i narrow(F v, bf16) {  // round to nearest even; a NaN keeps a mantissa bit
    const __m512i bits = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded =
        _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __m512i quiet = _mm512_set1_epi32(0x7fc00000);
    const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_mask_mov_epi32(rounded, nan, quiet), 16));
  }
  static __m256i narrow(F v, fp16) {
    return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  static void store(float* p, F v) { _mm512_storeu_ps(p, v); }
  template <typename H>
  static void store(H* p, F v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow(v, H{}));
  }
  static void store_n(float* p, F v, int64_t n) { _mm512_mask_storeu_ps(p, first(n), v); }
  template <typename H>
  static void store_n(H* p, F v, int64_t n) {
    _mm256_mask_storeu_epi16(p, first(n), narrow(v, H{}));
  }
  static void stream(float* p, F v) { _mm512_stream_ps(p, v); }
  template <typename H>
  static void stream(H* p, F v) {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(p), narrow(v, H{}));
  }
  static void fence() { _mm_sfence(); }

  static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F max(F a, F b) { return _mm512_max_ps(a, b); }
  static F mul_live(M live, F a, F b) { return _mm512_maskz_mul_ps(live, a, b); }
  static F fma_live(M live, F a, F b, F c) { return _mm512_mask3_fmadd_ps(a, b, c, live); }

  // Relative error below 1.6e-7; coefficients from a minimax fit of 2^f on [-1/2, 1/2].
  static F exp2(F d, M* live) {
    *live = _mm512_cmp_ps_mask(d, set(-126.0f), _CMP_NLT_UQ);
    const F whole = _mm512_roundscale_ps(d, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const F f = sub(d, whole);
    F poly = fma(set(0.00132647273f), f, set(0.00967151299f));
    poly = fma(poly, f, set(0.0555073358f));
    poly = fma(poly, f, set(0.240222424f));
    poly = fma(poly, f, set(0.693147004f));
    poly = fma(poly, f, set(1.0f));
    return _mm512_maskz_scalef_ps(*live, poly, whole);
  }
  static double sum(F v) {
    return _mm512_reduce_add_pd(_mm512_add_pd(_mm512_cvtps_pd(_mm512_castps512_ps256(v)),
                                              _mm512_cvtps_pd(_mm512_extractf32x8_ps(v, 1))));
  }
  static double largest(F v) { return _mm512_reduce_max_ps(v); }
};

}  // namespace
}  // namespace fastrl::cpu

#include "cpu/token_logprobs_rows.h"

namespace fastrl::cpu {

void fold_rows_avx512(const LogitsTile& tile, RowSums* sums, bool statistics, int64_t begin,
                      int64_t end) {
  fold_rows(tile, sums, statistics, begin, end);
}

void grad_rows_avx512(const LogitsTile& tile, const LogitsGrad& grad, int64_t begin, int64_t end) {
  grad_rows(tile, grad, begin, end);
}

}  // namespace fastrl::cpu
