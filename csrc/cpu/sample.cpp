// One token a row: filters chosen without sorting the vocabulary, then argmax of d + Gumbel noise.
// The definition is in fastrl/ops/sample.py; the loops over a row are in sample_row.h.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <vector>

#include "cpu/isa.h"
#include "cpu/ops.h"
#include "cpu/parallel.h"
#include "cpu/sample_kernels.h"

namespace fastrl::cpu {
namespace {

constexpr float kLowest = -std::numeric_limits<float>::infinity();

SampleKernels kernels() {
#if defined(FASTRL_X86)
  if (isa() == Isa::kAvx512) return sample_kernels_avx512();
  if (isa() == Isa::kAvx2) return sample_kernels_avx2();
#endif
  return sample_kernels_base();
}

struct Row {
  std::vector<float> d;
  std::vector<float> block_max;
  std::vector<float> candidates;
  std::vector<int64_t> weights;
  std::vector<int64_t> bins;
  int64_t blocks;

  explicit Row(int64_t vocab)
      : bins(kSampleBins), blocks((vocab + kSampleBlock - 1) / kSampleBlock) {
    d.resize(blocks * kSampleBlock);
    block_max.resize(blocks);
  }

  // Fills `candidates` with the accepted d >= at_least.
  template <typename Accept>
  void collect(float at_least, const Accept& accept) {
    candidates.clear();
    for (int64_t block = 0; block < blocks; ++block) {
      if (!(block_max[block] >= at_least)) continue;
      for (int64_t i = block * kSampleBlock; i < (block + 1) * kSampleBlock; ++i) {
        if (d[i] >= at_least && accept(d[i])) candidates.push_back(d[i]);
      }
    }
  }
};

float kth_largest(std::vector<float>& values, int64_t k) {
  std::nth_element(values.begin(), values.begin() + (k - 1), values.end(), std::greater<float>());
  return values[k - 1];
}

// The k-th largest block maximum is a lower bound of the k-th largest d: k blocks reach it.
float top_k_threshold(Row& row, int64_t k) {
  float bound = kLowest;
  if (k <= row.blocks) {
    row.candidates = row.block_max;
    bound = kth_largest(row.candidates, k);
  }
  row.collect(bound, [](float) { return true; });
  return kth_largest(row.candidates, k);
}

// The bin in which the running weight reaches the limit is found first, then sorted.
float top_p_threshold(Row& row, double top_p, float at_least, const SampleKernels& kernel) {
  std::fill(row.bins.begin(), row.bins.end(), 0);
  kernel.weigh(row.d.data(), row.block_max.data(), row.blocks, at_least, row.bins.data());
  int64_t total = 0;
  for (const int64_t weight : row.bins) total += weight;
  const int64_t product = static_cast<int64_t>(static_cast<double>(total) * top_p);
  const int64_t limit = product > 1 ? product : 1;
  int64_t above = 0;
  int bin = 0;
  while (bin < kSampleBins && above + row.bins[bin] < limit) above += row.bins[bin++];
  if (bin == kSampleBins) return at_least;
  row.collect(at_least, [bin](float d) { return sample_bin(d) == bin; });
  std::sort(row.candidates.begin(), row.candidates.end(), std::greater<float>());
  const size_t count = row.candidates.size();
  const size_t padded = (count + kSampleBlock - 1) / kSampleBlock * kSampleBlock;
  row.candidates.resize(padded, kLowest);
  row.weights.resize(padded);
  kernel.weights(row.candidates.data(), static_cast<int64_t>(padded), row.weights.data());
  float threshold = at_least;
  for (size_t i = 0; i < count && above < limit; ++i) {
    threshold = row.candidates[i];
    above += row.weights[i];
  }
  return threshold;
}

struct Options {
  float rate;
  int64_t top_k;
  double top_p;
  float min_d;  // log(min_p)
};

float kept_threshold(Row& row, int64_t vocab, const Options& options, const SampleKernels& kernel) {
  float threshold = kLowest;
  if (options.top_k > 0 && options.top_k < vocab) threshold = top_k_threshold(row, options.top_k);
  if (options.top_p < 1.0) threshold = top_p_threshold(row, options.top_p, threshold, kernel);
  return std::max(threshold, options.min_d);
}

}  // namespace

int64_t sample(const void* logits, int dtype, int64_t rows, int64_t vocab, const int64_t* seeds,
               const int64_t* steps, double temperature, int64_t top_k, double top_p, double min_p,
               int64_t* tokens, float* logp, float* logp_full, int n_threads) {
  const bool greedy = temperature == 0.0;
  const float rate = greedy ? 1.0f : static_cast<float>(1.0 / temperature);
  const Options options = {rate, top_k, top_p,
                           min_p > 0.0 ? static_cast<float>(std::log(min_p)) : kLowest};
  const SampleKernels kernel = kernels();
  const int64_t row_bytes = vocab * (dtype == 0 ? 4 : 2);
  std::atomic<int64_t> bad_row{rows};
  const int threads = useful_threads(rows * vocab, int64_t{1} << 15, n_threads);
  parallel_chunks(rows, threads, [&](int, int64_t begin, int64_t end) {
    Row row(vocab);
    for (int64_t r = begin; r < end; ++r) {
      const void* x = static_cast<const char*>(logits) + r * row_bytes;
      float* d = row.d.data();
      const float* block_max = row.block_max.data();
      const int64_t first = kernel.shift(x, dtype, vocab, rate, d, row.block_max.data());
      if (first < 0) {
        note_first(bad_row, r);
        continue;
      }
      float threshold = kLowest;
      tokens[r] = first;
      if (!greedy) {
        threshold = kept_threshold(row, vocab, options, kernel);
        tokens[r] = kernel.draw(d, block_max, row.blocks, threshold, seeds[r], steps[r], first);
      }
      const float chosen = d[tokens[r]];
      d[first] = kLowest;  // exp(0) = 1 is added last: log1p keeps what is left when p -> 1
      const double rest = kernel.sum_exp(d, block_max, row.blocks, kLowest);
      const double kept =
          threshold == kLowest ? rest : kernel.sum_exp(d, block_max, row.blocks, threshold);
      logp_full[r] = static_cast<float>(chosen - std::log1p(rest));
      logp[r] = greedy ? 0.0f : static_cast<float>(chosen - std::log1p(kept));
    }
  });
  return bad_row.load() < rows ? bad_row.load() : -1;
}

void gumbel_noise(const int64_t* seeds, const int64_t* steps, int64_t rows, int64_t vocab,
                  float* out, int n_threads) {
  const SampleKernels kernel = kernels();
  const int threads = useful_threads(rows * vocab, int64_t{1} << 14, n_threads);
  parallel_chunks(rows, threads, [&](int, int64_t begin, int64_t end) {
    float block[kSampleBlock];
    for (int64_t r = begin; r < end; ++r) {
      for (int64_t i = 0; i < vocab; i += kSampleBlock) {
        kernel.noise(i / kSampleBlock, seeds[r], steps[r], block);
        std::memcpy(out + r * vocab + i, block, sizeof(float) * std::min(kSampleBlock, vocab - i));
      }
    }
  });
}

}  // namespace fastrl::cpu
