// The row kernels of token_logprobs in portable C++: eight lanes in an array, which compilers turn
// into whatever vectors the baseline of the machine has.
#include <cstring>

#include "cpu/token_logprobs.h"
#include "dtype.h"

namespace fastrl::cpu {
namespace {

struct Vec {
  static constexpr int kLanes = 8;
  struct F {
    float lane[kLanes];
  };
  struct M {
    bool lane[kLanes];
  };

  template <typename Body>
  static F each(const Body& body) {
    F result;
    for (int i = 0; i < kLanes; ++i) result.lane[i] = body(i);
    return result;
  }

  static F set(float value) {
    return each([&](int) { return value; });
  }
  static float get(float value) { return value; }
  static float get(bf16 value) { return to_float(value); }
  static float get(fp16 value) {  // without branches: the multiplication mends the exponent's bias
    const uint32_t bits = static_cast<uint32_t>(value.bits & 0x7fffu) << 13;
    const uint32_t special = bits >= 0x0f800000u ? 0x7f800000u : 0u;  // infinity or NaN
    const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
    float magnitude;
    std::memcpy(&magnitude, &bits, sizeof(magnitude));
    magnitude *= 5.192296858534828e+33f;  // 2^112
    uint32_t result;
    std::memcpy(&result, &magnitude, sizeof(result));
    result |= special | sign;
    std::memcpy(&magnitude, &result, sizeof(magnitude));
    return magnitude;
  }
  template <typename T>
  static F load(const T* p) {
    return each([&](int i) { return get(p[i]); });
  }
  template <typename T>
  static F load_n(const T* p, int64_t n, float fill) {
    return each([&](int i) { return i < n ? get(p[i]) : fill; });
  }

  static void put(float* p, float value) { *p = value; }
  static void put(bf16* p, float value) {  // round to nearest even; a NaN keeps a mantissa bit
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    const uint32_t rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
    p->bits = static_cast<uint16_t>((value != value ? 0x7fc00000u : rounded) >> 16);
  }
  static void put(fp16* p, float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    const uint32_t sign = (bits >> 16) & 0x8000u;
    const uint32_t magnitude = bits & 0x7fffffffu;
    uint32_t half;
    if (magnitude > 0x7f800000u) {
      half = 0x7e00u;
    } else if (magnitude >= 0x477ff000u) {  // 65520 and above round to infinity
      half = 0x7c00u;
    } else if (magnitude >= 0x38800000u) {
      half = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    } else {  // subnormal: the sum's own rounding leaves value * 2^24 in the low bits
      float small;
      std::memcpy(&small, &magnitude, sizeof(small));
      small += 0.5f;
      std::memcpy(&half, &small, sizeof(half));
      half -= 0x3f000000u;
    }
    p->bits = static_cast<uint16_t>(sign | half);
  }
  template <typename T>
  static void store_n(T* p, const F& v, int64_t n) {
    for (int i = 0; i < n; ++i) put(p + i, v.lane[i]);
  }
  template <typename T>
  static void store(T* p, const F& v) {
    for (int i = 0; i < kLanes; ++i) put(p + i, v.lane[i]);
  }
  template <typename T>
  static void stream(T* p, const F& v) {
    store(p, v);
  }
  static void fence() {}

  static F sub(const F& a, const F& b) {
    return each([&](int i) { return a.lane[i] - b.lane[i]; });
  }
  static F add(const F& a, const F& b) {
    return each([&](int i) { return a.lane[i] + b.lane[i]; });
  }
  static F mul(const F& a, const F& b) {
    return each([&](int i) { return a.lane[i] * b.lane[i]; });
  }
  static F fma(const F& a, const F& b, const F& c) {
    return each([&](int i) { return a.lane[i] * b.lane[i] + c.lane[i]; });
  }
  static F max(const F& a, const F& b) {
    return each([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
  }
  static F mul_live(const M& live, const F& a, const F& b) {
    return each([&](int i) { return live.lane[i] ? a.lane[i] * b.lane[i] : 0.0f; });
  }
  static F fma_live(const M& live, const F& a, const F& b, const F& c) {
    return each(
        [&](int i) { return live.lane[i] ? a.lane[i] * b.lane[i] + c.lane[i] : c.lane[i]; });
  }

  // Relative error below 2e-7; coefficients from a minimax fit of 2^f on [-1/2, 1/2].
  static F exp2(const F& d, M* live) {
    constexpr float kToInteger = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer
    for (int i = 0; i < kLanes; ++i) live->lane[i] = !(d.lane[i] < -126.0f);
    return each([&](int i) {
      const float x = live->lane[i] ? d.lane[i] : 0.0f;
      const float whole = (x + kToInteger) - kToInteger;
      const float f = x - whole;
      float poly = 0.00132647273f * f + 0.00967151299f;
      poly = poly * f + 0.0555073358f;
      poly = poly * f + 0.240222424f;
      poly = poly * f + 0.693147004f;
      poly = poly * f + 1.0f;
      // A NaN has made `poly` NaN; its power only has to be defined.
      const int32_t power = (whole == whole ? static_cast<int32_t>(whole) : 0) + 127;
      const uint32_t bits = static_cast<uint32_t>(power) << 23;
      float scale;
      std::memcpy(&scale, &bits, sizeof(scale));
      return live->lane[i] ? poly * scale : 0.0f;
    });
  }
  static double sum(const F& v) {
    double total = 0.0;
    for (int i = 0; i < kLanes; ++i) total += v.lane[i];
    return total;
  }
  static double largest(const F& v) {
    float best = v.lane[0];
    for (int i = 1; i < kLanes; ++i) best = v.lane[i] > best ? v.lane[i] : best;
    return best;
  }
};

}  // namespace
}  // namespace fastrl::cpu

#include "cpu/token_logprobs_rows.h"

namespace fastrl::cpu {

void fold_rows_base(const LogitsTile& tile, RowSums* sums, bool statistics, int64_t begin,
                    int64_t end) {
  fold_rows(tile, sums, statistics, begin, end);
}

void grad_rows_base(const LogitsTile& tile, const LogitsGrad& grad, int64_t begin, int64_t end) {
  grad_rows(tile, grad, begin, end);
}

}  // namespace fastrl::cpu
