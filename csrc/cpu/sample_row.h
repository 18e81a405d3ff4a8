// The body of sample_base.cpp, sample_avx2.cpp and sample_avx512.cpp. Vectors are GCC's and Clang's
// generic ones, 16 lanes wide, which the compiler maps to what the file's instruction set has. All
// functions have internal linkage (see isa.h). These files are compiled without contraction to FMA:
// `noise` must give the same bits as every other backend.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "cpu/sample_kernels.h"
#include "dtype.h"

namespace fastrl::cpu {
namespace {

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX2__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif
constexpr int kLanes = kBytes / 4;
constexpr int kGroups = kSampleBlock / (4 * kLanes);  // vectors of counters in a block

typedef float Floats __attribute__((vector_size(kBytes)));
typedef int32_t Ints __attribute__((vector_size(kBytes)));
typedef uint32_t Words __attribute__((vector_size(kBytes)));
typedef uint64_t Pairs __attribute__((vector_size(kBytes)));

constexpr float kInfinity = __builtin_inff();

#define FASTRL_INLINE inline __attribute__((always_inline))

FASTRL_INLINE Floats all(float value) { return Floats{} + value; }

FASTRL_INLINE Floats load(const float* from) {
  Floats value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}

FASTRL_INLINE void store(float* to, Floats value) { std::memcpy(to, &value, sizeof(value)); }

FASTRL_INLINE Floats floats_of(Ints bits) { return (Floats)bits; }

FASTRL_INLINE Floats larger(Floats a, Floats b) { return a > b ? a : b; }

FASTRL_INLINE float largest(Floats value) {
  float best = value[0];
  for (int i = 1; i < kLanes; ++i) best = value[i] > best ? value[i] : best;
  return best;
}

template <typename T>
FASTRL_INLINE Floats load_as_floats(const T* from) {
  Floats value = {};
  float* lanes = reinterpret_cast<float*>(&value);
  for (int i = 0; i < kLanes; ++i) lanes[i] = to_float(from[i]);
  return value;
}

template <>
FASTRL_INLINE Floats load_as_floats<float>(const float* from) {
  return load(from);
}

// kLanes values from `from`, or -inf where they lie beyond `count`.
template <typename T>
FASTRL_INLINE Floats load_tail(const T* from, int64_t count) {
  if (count >= kLanes) return load_as_floats(from);
  Floats value = all(-kInfinity);
  float* lanes = reinterpret_cast<float*>(&value);
  for (int64_t i = 0; i < count; ++i) lanes[i] = to_float(from[i]);
  return value;
}

// ---- the row
// --------------------------------------------------------------------------------------

template <typename T>
int64_t shift_typed(const T* x, int64_t vocab, float rate, float* d, float* block_max) {
  Floats best = all(-kInfinity);
  Ints bad = {};
  for (int64_t i = 0; i < vocab; i += kLanes) {
    const Floats value = load_tail(x + i, vocab - i);
    best = larger(value, best);
    bad |= value != value;
  }
  const float top = largest(best);
  for (int i = 0; i < kLanes; ++i) {
    if (bad[i]) return -1;
  }
  if (!(top > -kInfinity && top < kInfinity)) return -1;
  int64_t first = -1;
  for (int64_t begin = 0, block = 0; begin < vocab; begin += kSampleBlock, ++block) {
    best = all(-kInfinity);
    for (int64_t i = begin; i < begin + kSampleBlock; i += kLanes) {
      const Floats value = (load_tail(x + i, vocab - i) - top) * rate;
      store(d + i, value);
      best = larger(value, best);
    }
    block_max[block] = largest(best);
    if (first < 0 && block_max[block] == 0.0f) {
      first = begin;
      while (d[first] != 0.0f) ++first;
    }
  }
  return first;
}

int64_t shift(const void* logits, int dtype, int64_t vocab, float rate, float* d,
              float* block_max) {
  if (dtype == kBFloat16) {
    return shift_typed(static_cast<const bf16*>(logits), vocab, rate, d, block_max);
  }
  if (dtype == kFloat16) {
    return shift_typed(static_cast<const fp16*>(logits), vocab, rate, d, block_max);
  }
  return shift_typed(static_cast<const float*>(logits), vocab, rate, d, block_max);
}

// 2^f on [-1/2, 1/2].
FASTRL_INLINE Floats exp2_poly(Floats f) {
  Floats poly = all(0.00015453163359779865f);
  poly = poly * f + 0.0013390863314270973f;
  poly = poly * f + 0.009618083015084267f;
  poly = poly * f + 0.055503569543361664f;
  poly = poly * f + 0.24022650718688965f;
  poly = poly * f + 0.6931471824645996f;
  return poly * f + 1.0f;
}

// exp(d) of d <= 0, zero below -87.
FASTRL_INLINE Floats exponential(Floats d) {
  const Floats y = larger(d, all(-87.0f)) * 1.44269504f;
  const Floats magic = all(12582912.0f);  // 1.5 * 2^23: adding it rounds to a whole number
  const Floats whole = (y + magic) - magic;
  const Floats f = y - whole;
  const Ints exponent = (__builtin_convertvector(whole, Ints) + 127) << 23;
  return d > -87.0f ? exp2_poly(f) * floats_of(exponent) : all(0.0f);
}

double sum_exp(const float* d, const float* block_max, int64_t blocks, float threshold) {
  double total = 0.0;
  for (int64_t block = 0; block < blocks; ++block) {
    if (!(block_max[block] >= threshold && block_max[block] > -87.0f)) continue;
    Floats sum = {};
    for (int64_t i = block * kSampleBlock; i < (block + 1) * kSampleBlock; i += kLanes) {
      const Floats value = load(d + i);
      sum += value >= threshold ? exponential(value) : all(0.0f);
    }
    float block_sum = 0.0f;
    for (int i = 0; i < kLanes; ++i) block_sum += sum[i];
    total += block_sum;
  }
  return total;
}

// floor(2^40 exp(d)) as whole floats, operation by operation as in the reference.
FASTRL_INLINE Floats weight(Floats d) {
  const Floats y = larger(d, all(-40.0f)) * 1.4426950216293335f;
  const Floats shifted = y + 0.5f;
  const Floats cut = __builtin_convertvector(__builtin_convertvector(shifted, Ints), Floats);
  const Floats whole = cut > shifted ? cut - 1.0f : cut;  // floor(shifted)
  const Floats poly = exp2_poly(y - whole);
  return poly * floats_of((__builtin_convertvector(whole, Ints) + (40 + 127)) << 23);
}

void weights(const float* d, int64_t n, int64_t* out) {
  for (int64_t i = 0; i < n; i += kLanes) {
    const Floats value = weight(load(d + i));
    for (int c = 0; c < kLanes; ++c) out[i + c] = static_cast<int64_t>(value[c]);
  }
}

void weigh(const float* d, const float* block_max, int64_t blocks, float threshold, int64_t* bins) {
  float weight_of[kSampleBlock];
  for (int64_t block = 0; block < blocks; ++block) {
    if (!(block_max[block] >= threshold && block_max[block] > -32.0f)) continue;
    const float* value = d + block * kSampleBlock;
    for (int i = 0; i < kSampleBlock; i += kLanes) store(weight_of + i, weight(load(value + i)));
    for (int i = 0; i < kSampleBlock; ++i) {
      if (value[i] >= threshold) bins[sample_bin(value[i])] += static_cast<int64_t>(weight_of[i]);
    }
  }
}

// ---- the noise
// ------------------------------------------------------------------------------------

// The low word of each pair times the factor.
FASTRL_INLINE Pairs multiply_low(Pairs value, uint32_t factor) {
#if defined(__AVX512F__)
  return (Pairs)_mm512_maskz_mul_epu32(0xFF, (__m512i)value, _mm512_set1_epi64(factor));
#elif defined(__AVX2__)
  return (Pairs)_mm256_mul_epu32((__m256i)value, _mm256_set1_epi64x(factor));
#elif defined(__SSE2__)
  return (Pairs)_mm_mul_epu32((__m128i)value, _mm_set1_epi64x(factor));
#else
  return (value & 0xFFFFFFFFu) * static_cast<uint64_t>(factor);
#endif
}

// High and low words of factor * a. Even words are the low ones of their pair (little-endian).
FASTRL_INLINE void multiply(uint32_t factor, Words a, Words* high, Words* low) {
  const Pairs even = multiply_low((Pairs)a, factor);
  const Pairs odd = multiply_low((Pairs)a >> 32, factor);
  const uint64_t upper = 0xFFFFFFFF00000000u;
  *high = (Words)((even >> 32) | (odd & upper));
  *low = (Words)((even & ~upper) | (odd << 32));
}

// words[w] holds word w of kLanes consecutive counters: those of tokens 4 (first + lane) + w.
FASTRL_INLINE void random_words(uint32_t first, uint64_t seed, uint64_t step, Words* words) {
  Words c0 = {};
  for (int lane = 0; lane < kLanes; ++lane) c0[lane] = first + static_cast<uint32_t>(lane);
  Words c1 = Words{} + static_cast<uint32_t>(step);
  Words c2 = Words{} + static_cast<uint32_t>(step >> 32);
  Words c3 = {};
  uint32_t k0 = static_cast<uint32_t>(seed);
  uint32_t k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    Words high0, low0, high1, low1;
    multiply(0xD2511F53u, c0, &high0, &low0);
    multiply(0xCD9E8D57u, c2, &high1, &low1);
    c0 = high1 ^ c1 ^ k0;
    c1 = low1;
    c2 = high0 ^ c3 ^ k1;
    c3 = low0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  words[0] = c0;
  words[1] = c1;
  words[2] = c2;
  words[3] = c3;
}

// words[4 g + w]: word w of the g-th vector of counters in the block.
FASTRL_INLINE void block_words(int64_t block, uint64_t seed, uint64_t step, Words* words) {
  for (int g = 0; g < kGroups; ++g) {
    const int64_t first = (block * kGroups + g) * kLanes;
    random_words(static_cast<uint32_t>(first), seed, step, words + 4 * g);
  }
}

FASTRL_INLINE Floats natural_log(Floats x) {
  const Ints bits = (Ints)x;
  const Ints exponent = (bits - 0x3F3504F3) >> 23;
  const Floats f = floats_of(bits - (exponent << 23)) - 1.0f;
  Floats poly = all(-0.0790274366736412f);
  poly = poly * f + 0.12622319161891937f;
  poly = poly * f + -0.12998183071613312f;
  poly = poly * f + 0.14214496314525604f;
  poly = poly * f + -0.166412815451622f;
  poly = poly * f + 0.20001044869422913f;
  poly = poly * f + -0.25000306963920593f;
  poly = poly * f + 0.3333333134651184f;
  const Floats square = f * f;
  const Floats count = __builtin_convertvector(exponent, Floats);
  const Floats tail = (square * f * poly + count * -2.12194440e-4f) - square * 0.5f;
  return (f + tail) + count * 0.693359375f;
}

FASTRL_INLINE Floats gumbel(Words words) {
  // The two halves are exact in fp32, so their sum is the word rounded once.
  const Floats high = __builtin_convertvector((Ints)(words >> 16), Floats) * 65536.0f;
  const Floats word = high + __builtin_convertvector((Ints)(words & 0xFFFFu), Floats);
  Floats u = (word + 0.5f) * 2.3283064365386963e-10f;  // 2^-32
  const Floats most = all(0.99999994f);                // 1 - 2^-24
  u = u < most ? u : most;
  const Floats rest = 1.0f - u;
  const Floats lost = (1.0f - rest) - u;
  return -natural_log(-(natural_log(rest) + lost));
}

FASTRL_INLINE void block_noise(const Words* words, float* out) {
  for (int i = 0; i < 4 * kGroups; ++i) {
    const Floats value = gumbel(words[i]);
    for (int lane = 0; lane < kLanes; ++lane)
      out[4 * (i / 4 * kLanes + lane) + i % 4] = value[lane];
  }
}

void noise(int64_t block, uint64_t seed, uint64_t step, float* out) {
  Words words[4 * kGroups];
  block_words(block, seed, step, words);
  block_noise(words, out);
}

// The largest word whose noise can reach `needed`: noise >= t means e <= exp(-t), and u <= e.
// Margins cover the rounding of noise and sum.
FASTRL_INLINE uint32_t largest_useful_word(float needed) {
  if (needed < 1e-3f) return 0xFFFFFFFFu;
  const double bound = static_cast<double>(expf(1e-3f - needed)) * 4294967296.0 + 2.0;
  return bound < 4294967295.0 ? static_cast<uint32_t>(bound) : 0xFFFFFFFFu;
}

struct Best {
  float score;
  int64_t index;
};

FASTRL_INLINE void draw_block(const float* d, int64_t block, float threshold, const Words* words,
                              Best* best) {
  float noise_of[kSampleBlock];
  block_noise(words, noise_of);
  const int64_t begin = block * kSampleBlock;
  for (int64_t i = 0; i < kSampleBlock; ++i) {
    if (!(d[begin + i] >= threshold)) continue;
    const float score = d[begin + i] + noise_of[i];
    const bool tie = score == best->score && begin + i < best->index;
    if (score > best->score || tie) *best = {score, begin + i};
  }
}

// Most blocks are dismissed by their largest d or by their random words, without a logarithm.
int64_t draw(const float* d, const float* block_max, int64_t blocks, float threshold, uint64_t seed,
             uint64_t step, int64_t likely) {
  Best best = {-kInfinity, blocks * kSampleBlock};
  Words words[4 * kGroups];
  block_words(likely / kSampleBlock, seed, step, words);
  draw_block(d, likely / kSampleBlock, threshold, words, &best);
  for (int64_t block = 0; block < blocks; ++block) {
    if (!(block_max[block] >= threshold) || block == likely / kSampleBlock) continue;
    const float needed = best.score - block_max[block];
    if (needed > 23.0f) continue;  // noise is at most 22.88
    block_words(block, seed, step, words);
    const uint32_t useful = largest_useful_word(needed);
    Ints hits = {};
    for (int i = 0; i < 4 * kGroups; ++i) hits |= (Ints)(words[i] <= useful);
    int32_t any = 0;
    for (int lane = 0; lane < kLanes; ++lane) any |= hits[lane];
    if (any) draw_block(d, block, threshold, words, &best);
  }
  return best.index;
}

constexpr SampleKernels kKernels = {shift, sum_exp, weigh, weights, draw, noise};

}  // namespace
}  // namespace fastrl::cpu
