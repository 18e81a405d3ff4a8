#include "cpu/isa.h"

#include <atomic>

namespace fastrl::cpu {
namespace {

Isa detect() {
#if defined(FASTRL_X86)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  if (avx512) return Isa::kAvx512;
  if (avx2) return Isa::kAvx2;
#endif
  return Isa::kBase;
}

std::atomic<int> limit{static_cast<int>(Isa::kAvx512)};

}  // namespace

Isa isa() {
  static const int present = static_cast<int>(detect());
  const int allowed = limit.load(std::memory_order_relaxed);
  return static_cast<Isa>(present < allowed ? present : allowed);
}

void limit_isa(Isa level) { limit.store(static_cast<int>(level), std::memory_order_relaxed); }

}  // namespace fastrl::cpu
