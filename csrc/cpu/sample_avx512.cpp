#include "cpu/sample_row.h"

namespace fastrl::cpu {

SampleKernels sample_kernels_avx512() { return kKernels; }

}  // namespace fastrl::cpu
