// One token a row: a block a row, which stays in the second-level cache for the few passes made.
//   1. the largest logit;  2. if there are filters, the threshold, by histograms;
//   3. sums for the two log-probabilities and argmax of d + noise, in one pass.
// Integer sums are the only atomics whose result counts, so every run gives the same answer.
#include "cuda/ops.h"
#include "cuda/sample_noise.cuh"

namespace fastrl::cuda {
namespace {

constexpr int kThreads = 1024;
constexpr int kBins = 2048;
constexpr float kBinsPerUnit =
    64.0f;                     // first pass: bins are linear in d; beyond d = -32 is one bin
constexpr int kGroup = 4;      // tokens of one Philox counter
constexpr int kKeyDigits = 3;  // further passes: 11, 11 and 10 bits of the key

struct Filters {
  float rate;  // 1 / temperature
  int64_t top_k;
  double top_p;
  float least;  // log(min_p)
  bool greedy;
};

template <typename T>
struct Row {
  const T* logits;
  int64_t vocab;
  float largest;
  float rate;

  __device__ float at(int64_t token) const {
    return times(minus(read(logits[token]), largest), rate);
  }
};

// Smaller for larger d <= 0; the same order as the numbers'.
__device__ __forceinline__ uint32_t key_of(float d) { return __float_as_uint(fabsf(d)); }

__device__ __forceinline__ int bin_of(float d) {
  const float scaled = fabsf(d) * kBinsPerUnit;
  return scaled < kBins - 1 ? static_cast<int>(scaled) : kBins - 1;
}

struct Extent {
  float largest;
  int bad;  // not 0: a NaN was seen

  __device__ Extent from_higher_lane(int offset) const {
    return {__shfl_down_sync(kWholeWarp, largest, offset),
            __shfl_down_sync(kWholeWarp, bad, offset)};
  }
};

template <typename T>
__device__ Extent extent_of(const T* logits, int64_t vocab) {
  Extent extent = {-kInfinity, 0};
  for (int64_t token = threadIdx.x; token < vocab; token += kThreads) {
    const float x = read(logits[token]);
    extent.bad |= x != x;
    extent.largest = fmaxf(extent.largest, x);
  }
  return broadcast(reduce_block(extent, [](Extent a, Extent b) {
    return Extent{fmaxf(a.largest, b.largest), a.bad | b.bad};
  }));
}

struct Crossing {
  int bin;         // kBins: the limit is not reached
  uint64_t above;  // the sum of the bins before it
};

// The first bin at which base + running sum reaches the limit. Two bins a thread; all threads get
// it.
__device__ Crossing find_crossing(const uint64_t* bins, uint64_t base, uint64_t limit) {
  __shared__ uint64_t warp_sum[kWarp];
  __shared__ Crossing found;
  const int lane = threadIdx.x % kWarp;
  const int warp = threadIdx.x / kWarp;
  const uint64_t first = bins[2 * threadIdx.x];
  const uint64_t both = first + bins[2 * threadIdx.x + 1];
  uint64_t running = both;
  for (int offset = 1; offset < kWarp; offset *= 2) {
    const uint64_t left = __shfl_up_sync(kWholeWarp, running, offset);
    if (lane >= offset) running += left;
  }
  if (lane == kWarp - 1) warp_sum[warp] = running;
  if (threadIdx.x == 0) found = {kBins, 0};
  __syncthreads();
  uint64_t before = base + running - both;
  for (int other = 0; other < warp; ++other) before += warp_sum[other];
  if (before < limit && before + both >= limit) {  // true for one thread at most
    const bool second = before + first < limit;
    found = {static_cast<int>(2 * threadIdx.x) + second, second ? before + first : before};
  }
  __syncthreads();
  return found;
}

// Sums measure(d) by bin over the tokens that `selects` accepts.
template <typename T, typename Selects, typename Bin, typename Measure>
__device__ void fill_bins(const Row<T>& row, const Selects& selects, const Bin& bin,
                          const Measure& measure, uint64_t* bins) {
  __syncthreads();  // the bins of the pass before have been read
  for (int i = threadIdx.x; i < kBins; i += kThreads) bins[i] = 0;
  __syncthreads();
  for (int64_t token = threadIdx.x; token < row.vocab; token += kThreads) {
    const float d = row.at(token);
    if (!selects(d)) continue;
    const uint64_t amount = measure(d);
    if (amount != 0) {
      atomicAdd(reinterpret_cast<unsigned long long*>(&bins[bin(d)]),
                static_cast<unsigned long long>(amount));
    }
  }
  __syncthreads();
}

// The smallest d >= least such that measure, summed over all larger ones, stays below the limit
// that limit_of(total) names; `least` if it is never reached.
template <typename T, typename Measure, typename Limit>
__device__ float select_threshold(const Row<T>& row, float least, const Measure& measure,
                                  const Limit& limit_of, uint64_t* bins) {
  fill_bins(row, [least](float d) { return d >= least; }, bin_of, measure, bins);
  const uint64_t mine = bins[2 * threadIdx.x] + bins[2 * threadIdx.x + 1];
  const uint64_t limit = limit_of(broadcast(sum_of_block(mine)));
  const Crossing start = find_crossing(bins, 0, limit);
  if (start.bin == kBins) return least;
  uint64_t above = start.above;
  uint32_t prefix = 0;
  int shift = 32;
  for (int digit = 0; digit < kKeyDigits; ++digit) {
    const int bits = digit < kKeyDigits - 1 ? 11 : 10;
    const int known = shift;
    shift -= bits;
    const auto selects = [=](float d) {
      const bool same = known == 32 || key_of(d) >> known == prefix;
      return d >= least && bin_of(d) == start.bin && same;
    };
    const uint32_t digit_mask = (1u << bits) - 1u;
    const auto bin = [=](float d) { return static_cast<int>((key_of(d) >> shift) & digit_mask); };
    fill_bins(row, selects, bin, measure, bins);
    const Crossing next = find_crossing(bins, above, limit);
    above = next.above;
    prefix = (prefix << bits) | static_cast<uint32_t>(next.bin);
  }
  return -__uint_as_float(prefix);
}

template <typename T>
__device__ float kept_threshold(const Row<T>& row, const Filters& filters, uint64_t* bins) {
  float threshold = -kInfinity;
  if (filters.top_k > 0 && filters.top_k < row.vocab) {
    const uint64_t k = filters.top_k;
    threshold = select_threshold(
        row, threshold, [](float) { return uint64_t{1}; }, [k](uint64_t) { return k; }, bins);
  }
  if (filters.top_p < 1.0) {
    const double top_p = filters.top_p;
    const auto limit = [top_p](uint64_t total) {
      const uint64_t product = static_cast<uint64_t>(static_cast<double>(total) * top_p);
      return product > 1 ? product : uint64_t{1};
    };
    threshold = select_threshold(row, threshold, weight, limit, bins);
  }
  return fmaxf(threshold, filters.least);
}

struct Best {
  float score;
  long long token;

  __device__ Best from_higher_lane(int offset) const {
    return {__shfl_down_sync(kWholeWarp, score, offset),
            __shfl_down_sync(kWholeWarp, token, offset)};
  }
};

__device__ __forceinline__ Best better(const Best& a, const Best& b) {
  if (a.score != b.score) return a.score > b.score ? a : b;
  return a.token < b.token ? a : b;
}

// Integers in the order of the floats.
__device__ __forceinline__ int ordered(float x) {
  const int bits = static_cast<int>(__float_as_uint(x));
  return bits < 0 ? bits ^ 0x7FFFFFFF : bits;
}

__device__ __forceinline__ float unordered(int code) {
  return __uint_as_float(static_cast<uint32_t>(code < 0 ? code ^ 0x7FFFFFFF : code));
}

// The largest word whose noise can reach `needed`: noise >= t means e <= exp(-t), and u <= e. The
// margins cover all rounding. Pruning by it never changes the result.
__device__ __forceinline__ uint32_t largest_useful_word(float needed) {
  const float bound = fast_exp2((2e-3f - needed) * 1.44269504f + 32.0f) + 256.0f;
  return bound < 4294967040.0f ? static_cast<uint32_t>(bound) : 0xFFFFFFFFu;
}

struct Draw {
  Best best;
  double rest_full;  // sum of exp(d) but of one d = 0
  double rest_kept;
};

template <typename T>
__device__ Draw draw_token(const Row<T>& row, float threshold, bool greedy, uint64_t seed,
                           uint64_t step) {
  __shared__ int leader;  // a score that some token has reached
  if (threadIdx.x == 0) leader = ordered(-kInfinity);
  __syncthreads();
  Best best = {-kInfinity, row.vocab};
  float full = 0.0f;
  float kept = 0.0f;
  long long largest_count = 0;
  for (int64_t group = threadIdx.x; kGroup * group < row.vocab; group += kThreads) {
    float d[kGroup];
    float top = -kInfinity;
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
      const int64_t token = kGroup * group + i;
      d[i] = token < row.vocab ? row.at(token) : -kInfinity;
      largest_count += d[i] == 0.0f;
      const float share = d[i] < 0.0f ? fast_exp2(d[i] * 1.44269504f) : 0.0f;
      full += share;
      kept += d[i] >= threshold ? share : 0.0f;
      if (!(d[i] >= threshold)) d[i] = -kInfinity;
      top = fmaxf(top, d[i]);
    }
    const float score = unordered(*const_cast<volatile int*>(&leader));
    const float needed = greedy ? 0.0f : score - top;
    if (top == -kInfinity || needed > 23.0f) continue;  // noise is at most 22.88
    uint4 words = make_uint4(0, 0, 0, 0);
    if (!greedy) words = random_words(static_cast<uint32_t>(group), seed, step);
    const uint32_t useful = greedy ? 0xFFFFFFFFu : largest_useful_word(needed);
    const uint32_t word[kGroup] = {words.x, words.y, words.z, words.w};
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
      if (d[i] == -kInfinity || word[i] > useful) continue;
      const float sum = greedy ? d[i] : plus(d[i], gumbel(word[i]));
      if (sum > best.score) {
        best = {sum, kGroup * group + i};
        atomicMax(&leader, ordered(sum));
      }
    }
  }
  best = reduce_block(best, better);
  const double count = static_cast<double>(sum_of_block(largest_count)) - 1.0;
  const double sum_full = sum_of_block(static_cast<double>(full));
  const double sum_kept = sum_of_block(static_cast<double>(kept));
  return {best, sum_full + count, sum_kept + count};
}

template <typename T>
__global__ __launch_bounds__(kThreads) void sample_rows(const T* logits, int64_t vocab,
                                                        const int64_t* seeds, const int64_t* steps,
                                                        Filters filters, int64_t* tokens,
                                                        float* logp, float* logp_full) {
  __shared__ uint64_t bins[kBins];
  const int64_t r = blockIdx.x;
  Row<T> row = {logits + r * vocab, vocab, 0.0f, filters.rate};
  const Extent extent = extent_of(row.logits, vocab);
  if (extent.bad || !(fabsf(extent.largest) < kInfinity)) {
    if (threadIdx.x == 0) {
      tokens[r] = 0;
      logp[r] = nanf("");
      logp_full[r] = nanf("");
    }
    return;
  }
  row.largest = extent.largest;
  const float threshold = filters.greedy ? -kInfinity : kept_threshold(row, filters, bins);
  const Draw draw = draw_token(row, threshold, filters.greedy, seeds[r], steps[r]);
  if (threadIdx.x != 0) return;
  const double chosen = row.at(draw.best.token);
  tokens[r] = draw.best.token;
  logp_full[r] = static_cast<float>(chosen - log1p(draw.rest_full));
  logp[r] = filters.greedy ? 0.0f : static_cast<float>(chosen - log1p(draw.rest_kept));
}

constexpr int kNoiseThreads = 256;

__global__ void noise_rows(const int64_t* seeds, const int64_t* steps, int64_t vocab,
                           int64_t blocks, float* out) {
  const int64_t r = blockIdx.x / blocks;
  const int64_t group = blockIdx.x % blocks * kNoiseThreads + threadIdx.x;
  if (kGroup * group >= vocab) return;
  const uint4 words = random_words(static_cast<uint32_t>(group), seeds[r], steps[r]);
  const uint32_t word[kGroup] = {words.x, words.y, words.z, words.w};
  for (int i = 0; i < kGroup && kGroup * group + i < vocab; ++i) {
    out[r * vocab + kGroup * group + i] = gumbel(word[i]);
  }
}

}  // namespace

cudaError_t sample(const void* logits, int dtype, int64_t rows, int64_t vocab, const int64_t* seeds,
                   const int64_t* steps, double temperature, int64_t top_k, double top_p,
                   double min_p, int64_t* tokens, float* logp, float* logp_full,
                   cudaStream_t stream) {
  const bool greedy = temperature == 0.0;
  const float rate = greedy ? 1.0f : static_cast<float>(1.0 / temperature);
  const float least = min_p > 0.0 ? static_cast<float>(std::log(min_p)) : -kInfinity;
  const Filters filters = {rate, top_k, top_p, least, greedy};
  return with_element(dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    return launch(sample_rows<T>, rows, kThreads, stream, static_cast<const T*>(logits), vocab,
                  seeds, steps, filters, tokens, logp, logp_full);
  });
}

cudaError_t gumbel_noise(const int64_t* seeds, const int64_t* steps, int64_t rows, int64_t vocab,
                         float* out, cudaStream_t stream) {
  const int64_t per_block = kGroup * static_cast<int64_t>(kNoiseThreads);
  const int64_t blocks = (vocab + per_block - 1) / per_block;
  return launch(noise_rows, rows * blocks, kNoiseThreads, stream, seeds, steps, vocab, blocks, out);
}

}  // namespace fastrl::cuda
