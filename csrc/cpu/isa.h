// Which instruction set the running processor offers. Files named *_avx2.cpp and *_avx512.cpp exist
// only on x86-64 (FASTRL_X86); they are called only behind a check of isa().
//
// Such files define functions of internal linkage (static or anonymous namespace) but for their
// entry points, and use no inline library functions of external linkage (std::max and friends on
// floats are inlined; std::vector, std::string and std::function are not): the linker keeps one
// copy of each, and a copy compiled for AVX-512 must not serve a baseline file.
#pragma once

namespace fastrl::cpu {

enum class Isa : int { kBase = 0, kAvx2 = 1, kAvx512 = 2 };

// The best level present, or less if limit_isa asked for less.
Isa isa();

// Use at most this level from now on (tests compare the levels); kAvx512 lifts the limit.
void limit_isa(Isa level);

}  // namespace fastrl::cpu
