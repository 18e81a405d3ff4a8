// The element types that cross from Python, and how one of them becomes a float.
// The codes are those of DTYPE_CODE in fastrl/ops/_native.py.
#pragma once

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

namespace fastrl {

enum Dtype : int { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

// Plain storage types: the bits only. Everything is computed in float (or double).
struct bf16 {
  uint16_t bits;
};
struct fp16 {
  uint16_t bits;
};

#if !defined(__CUDACC__)

// Functions have internal linkage on purpose: this header is compiled into files with different
// instruction sets, and the linker must never hand a baseline file the AVX-512 copy of a function.
static inline float to_float(float value) { return value; }

static inline float to_float(bf16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof(result));
  return result;
}

static inline float to_float(fp16 value) {
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
  const uint32_t exponent = (value.bits >> 10) & 0x1fu;
  const uint32_t mantissa = value.bits & 0x3ffu;
  if (exponent == 0) {  // zero and subnormals: mantissa * 2^-24 is exact in fp32
    const float magnitude = static_cast<float>(mantissa) * 5.9604644775390625e-08f;
    return sign ? -magnitude : magnitude;
  }
  const uint32_t rebased = exponent == 0x1fu ? 0xffu : exponent + 112u;
  const uint32_t bits = sign | (rebased << 23) | (mantissa << 13);
  float result;
  std::memcpy(&result, &bits, sizeof(result));
  return result;
}

// Calls `body` with a typed null pointer that carries the element type of the code.
//   with_dtype(code, [&](auto* type) { using T = std::remove_pointer_t<decltype(type)>; ... });
template <typename Body>
static inline void with_dtype(int code, Body&& body) {
  switch (code) {
    case kFloat32:
      return body(static_cast<float*>(nullptr));
    case kBFloat16:
      return body(static_cast<bf16*>(nullptr));
    case kFloat16:
      return body(static_cast<fp16*>(nullptr));
  }
  throw std::invalid_argument("fastrl: unknown dtype code " + std::to_string(code));
}

#endif  // !__CUDACC__

}  // namespace fastrl
