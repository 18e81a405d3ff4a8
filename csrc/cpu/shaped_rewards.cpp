// Per-token rewards of classic PPO: a KL penalty everywhere, the row's score on its last token.
#include <cmath>
#include <cstdint>

#include "cpu/ops.h"
#include "cpu/pages.h"
#include "cpu/parallel.h"

namespace fastrl::cpu {
namespace {

constexpr int64_t kGrain = 1 << 16;

template <typename Penalty>
void penalise(const float* logp, const float* ref_logp, int64_t n, float coefficient,
              float* rewards, float* kl, Penalty penalty) {
  for (int64_t i = 0; i < n; ++i) {
    const float k = penalty(logp[i] - ref_logp[i]);
    kl[i] = k;
    rewards[i] = -coefficient * k;
  }
}

int64_t last_counted(const uint8_t* mask, int64_t columns) {
  int64_t t = columns - 1;
  while (t >= 0 && !mask[t]) --t;
  return t;
}

}  // namespace

int64_t shaped_rewards(const float* scores, const float* logp, const float* ref_logp,
                       const uint8_t* mask, int64_t rows, int64_t columns, double coefficient,
                       int kind, float* rewards, float* kl, int n_threads) {
  for (int64_t row = 0; row < rows; ++row) {
    if (last_counted(mask + row * columns, columns) < 0) return row;
  }
  const size_t bytes = static_cast<size_t>(rows * columns) * sizeof(float);
  expect_writes(rewards, bytes);
  expect_writes(kl, bytes);
  const float c = static_cast<float>(coefficient);
  const int threads = useful_threads(rows * columns, kGrain, n_threads);
  parallel_chunks(rows, threads, [&](int, int64_t begin, int64_t end) {
    const int64_t at = begin * columns;
    const int64_t n = (end - begin) * columns;
    const auto apply = [&](auto penalty) {
      penalise(logp + at, ref_logp + at, n, c, rewards + at, kl + at, penalty);
    };
    switch (kind) {
      case kKlAbs:
        apply([](float d) { return std::fabs(d); });
        break;
      case kKlMse:
        apply([](float d) { return 0.5f * (d * d); });
        break;
      default:
        apply([](float d) { return d; });
    }
    for (int64_t row = begin; row < end; ++row) {
      rewards[row * columns + last_counted(mask + row * columns, columns)] += scores[row];
    }
  });
  return -1;
}

}  // namespace fastrl::cpu
