#include "cpu/sample_row.h"

namespace fastrl::cpu {

SampleKernels sample_kernels_base() { return kKernels; }

}  // namespace fastrl::cpu
