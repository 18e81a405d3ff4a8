// fastrl._core_cpu: the CPU library for Python. Pointers cross as integers (tensor.data_ptr()).
// Every function releases the GIL.
#include <pybind11/pybind11.h>

#include <cstdint>

#include "cpu/isa.h"
#include "cpu/ops.h"

namespace py = pybind11;
using namespace fastrl;  // NOLINT

namespace {

using Address = std::uintptr_t;
using Unlocked = py::call_guard<py::gil_scoped_release>;

template <typename T>
[[maybe_unused]] T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

}  // namespace

PYBIND11_MODULE(_core_cpu, m) {
  m.doc() = "CPU kernels of fastrl on raw pointers; called through fastrl.ops only.";
  m.attr("openmp") =
#if defined(_OPENMP)
      true;
#else
      false;
#endif
  m.def("isa", [] { return static_cast<int>(cpu::isa()); }, "0 baseline, 1 AVX2, 2 AVX-512.");
  m.def(
      "limit_isa", [](int level) { cpu::limit_isa(static_cast<cpu::Isa>(level)); },
      py::arg("level"), "Use at most this level; 2 lifts the limit.");
}
