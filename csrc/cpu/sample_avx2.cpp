#include "cpu/sample_row.h"

namespace fastrl::cpu {

SampleKernels sample_kernels_avx2() { return kKernels; }

}  // namespace fastrl::cpu
