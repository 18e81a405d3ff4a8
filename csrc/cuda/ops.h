// Entry points of the CUDA library: device pointers, int64 sizes, a dtype code (csrc/dtype.h) and
// the stream of the caller. Each launches and returns; none allocates or synchronises.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace fastrl::cuda {

// cudaSuccess if this library holds code that the current device can run; nothing is launched.
cudaError_t probe();

}  // namespace fastrl::cuda
