// The loops of `sample` over one row, compiled once for each instruction set from sample_row.h.
// The exact definition of every number is in fastrl/ops/sample.py.
#pragma once

#include <cstdint>

namespace fastrl::cpu {

constexpr int64_t kSampleBlock = 64;  // tokens: 16 Philox counters of 4 words
constexpr int kSampleBins = 2048;     // of width 1/64 in d: beyond d = -32 weights are zero

// A row is d[0 .. blocks * kSampleBlock), filled with -inf beyond the vocabulary, and the largest d
// of each block.
struct SampleKernels {
  // d = (x - largest x) * rate. Returns the first index with d == 0, or -1 for a row that cannot be
  // sampled from (NaN, +inf, only -inf).
  int64_t (*shift)(const void* logits, int dtype, int64_t vocab, float rate, float* d,
                   float* block_max);
  // Sum of exp(d) over d >= threshold.
  double (*sum_exp)(const float* d, const float* block_max, int64_t blocks, float threshold);
  // Adds the integer weights of all d >= threshold to their bins.
  void (*weigh)(const float* d, const float* block_max, int64_t blocks, float threshold,
                int64_t* bins);
  // floor(2^40 exp(d)) of n values; n and both buffers are a multiple of kSampleBlock long.
  void (*weights)(const float* d, int64_t n, int64_t* out);
  // First index of the largest d + noise among d >= threshold; `likely` is any index kept.
  int64_t (*draw)(const float* d, const float* block_max, int64_t blocks, float threshold,
                  uint64_t seed, uint64_t step, int64_t likely);
  // Noise of a block: out[kSampleBlock].
  void (*noise)(int64_t block, uint64_t seed, uint64_t step, float* out);
};

SampleKernels sample_kernels_base();
SampleKernels sample_kernels_avx2();    // x86-64 only
SampleKernels sample_kernels_avx512();  // x86-64 only

// Bin of d <= 0; larger d, lower bin.
static inline int sample_bin(float d) {
  const float scaled = d * -64.0f;
  return scaled < static_cast<float>(kSampleBins - 1) ? static_cast<int>(scaled) : kSampleBins - 1;
}

}  // namespace fastrl::cpu
