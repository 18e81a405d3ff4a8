// fastrl._core_cuda: the CUDA library for Python. Device pointers and the stream cross as integers.
#include <cuda_runtime_api.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "cuda/ops.h"

namespace py = pybind11;
using namespace fastrl;  // NOLINT

namespace {

using Address = std::uintptr_t;
using Unlocked = py::call_guard<py::gil_scoped_release>;

template <typename T>
[[maybe_unused]] T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

[[maybe_unused]] cudaStream_t stream_at(Address address) {
  return reinterpret_cast<cudaStream_t>(address);
}

// Every launch's status goes through here: a launch that was refused must not pass in silence.
[[maybe_unused]] void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) {
    throw std::runtime_error(std::string("fastrl: ") + what + ": " + cudaGetErrorString(status));
  }
}

}  // namespace

PYBIND11_MODULE(_core_cuda, m) {
  m.doc() = "CUDA kernels of fastrl on raw device pointers; called through fastrl.ops only.";
  m.attr("runtime_version") = CUDART_VERSION;
  m.def(
      "probe",
      []() -> std::string {
        const cudaError_t status = cuda::probe();
        return status == cudaSuccess ? "" : cudaGetErrorString(status);
      },
      "Empty if the current device can run this library, else CUDA's own words.");
}
