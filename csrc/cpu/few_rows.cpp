#include "cpu/few_rows.h"

#include "cpu/isa.h"
#include "cpu/ops.h"
#include "cpu/parallel.h"

namespace fastrl::cpu {
namespace {

constexpr int64_t kGrain = 1 << 18;  // products a thread must have to be worth waking

FewRowsColumns chosen() {
#if defined(FASTRL_X86)
  if (isa() == Isa::kAvx512) return few_rows_avx512;
  if (isa() == Isa::kAvx2) return few_rows_avx2;
#endif
  return few_rows_base;
}

}  // namespace

void few_rows_linear(const float* x, int64_t rows, int64_t depth, const float* weight,
                     const float* bias, int64_t width, float* out, int n_threads) {
  const FewRows product{x, rows, depth, weight, bias, width, out};
  const FewRowsColumns run = chosen();
  const int threads = useful_threads(rows * depth * width, kGrain, n_threads);
  parallel_chunks(width, threads, [&](int, int64_t begin, int64_t end) {
    if (begin < end) run(product, begin, end);
  });
}

}  // namespace fastrl::cpu
