// Entry points of the CPU library: raw pointers, int64 sizes, a dtype code (csrc/dtype.h), a thread
// count. Python has checked shapes, dtypes and contiguity; outputs are allocated by the caller and
// fully written.
#pragma once

#include <cstdint>

namespace fastrl::cpu {}  // namespace fastrl::cpu
