// A few rows times a large matrix: out = x Wᵀ + b.
#pragma once

#include <cstdint>

namespace fastrl::cpu {

struct FewRows {
  const float* x;  // (rows, depth)
  int64_t rows;
  int64_t depth;
  const float* weight;  // (width, depth)
  const float* bias;    // (width), or null
  int64_t width;
  float* out;  // (rows, width)
};

// Columns [begin, end) of out, for all rows.
using FewRowsColumns = void (*)(const FewRows&, int64_t begin, int64_t end);

void few_rows_base(const FewRows&, int64_t, int64_t);
#if defined(FASTRL_X86)
void few_rows_avx2(const FewRows&, int64_t, int64_t);
void few_rows_avx512(const FewRows&, int64_t, int64_t);
#endif

}  // namespace fastrl::cpu
