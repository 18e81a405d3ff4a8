// The body of decode_attention_base.cpp, _avx2.cpp and _avx512.cpp. Vectors are GCC's and Clang's
// generic ones, as wide as the file's instruction set has them. All functions have internal linkage
// (see isa.h).
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/decode_attention.h"
#include "dtype.h"

namespace fastrl::cpu {
namespace {

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX2__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif
constexpr int kLanes = kBytes / 4;
constexpr int kBlock = 4;  // vectors of a value that are summed side by side

typedef float Floats __attribute__((vector_size(kBytes)));
typedef int32_t Ints __attribute__((vector_size(kBytes)));
typedef uint32_t Words __attribute__((vector_size(kBytes)));
typedef uint16_t Halves __attribute__((vector_size(kBytes / 2)));

#define FASTRL_INLINE inline __attribute__((always_inline))

FASTRL_INLINE Floats load(const float* from) {
  Floats value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}

FASTRL_INLINE Floats load(const bf16* from) {
  Halves bits;
  std::memcpy(&bits, from, sizeof(bits));
  return (Floats)(__builtin_convertvector(bits, Words) << 16);
}

FASTRL_INLINE void store(float* to, Floats value) { std::memcpy(to, &value, sizeof(value)); }

FASTRL_INLINE float total(Floats value) {
  float lanes[kLanes];
  store(lanes, value);
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  }
  return lanes[0];
}

// exp(d) of d <= 0, zero below -87; relative error below 2e-7 (2^f by a Chebyshev fit).
FASTRL_INLINE Floats exponential(Floats d) {
  const Floats y = (d > -87.0f ? d : Floats{} - 87.0f) * 1.44269504f;
  const Floats magic = Floats{} + 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number
  const Floats whole = (y + magic) - magic;
  const Floats f = y - whole;
  Floats poly = Floats{} + 0.00015453163359779865f;
  poly = poly * f + 0.0013390863314270973f;
  poly = poly * f + 0.009618083015084267f;
  poly = poly * f + 0.055503569543361664f;
  poly = poly * f + 0.24022650718688965f;
  poly = poly * f + 0.6931471824645996f;
  poly = poly * f + 1.0f;
  const Ints exponent = (__builtin_convertvector(whole, Ints) + 127) << 23;
  const Floats value = poly * (Floats)exponent;
  return d > -87.0f ? value : (d == d ? Floats{} : d);
}

FASTRL_INLINE void round_to(float* out, float value) { *out = value; }

// To nearest, ties to even; a NaN keeps a mantissa bit.
FASTRL_INLINE void round_to(bf16* out, float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  const uint32_t rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  out->bits = static_cast<uint16_t>((value != value ? 0x7fc00000u : rounded) >> 16);
}

// One stretch of keys and values of one head, of a prompt or of an answer.
template <typename T>
struct Stretch {
  const T* keys;
  const T* values;
  int64_t first;  // what lies before is out of the window
  int64_t count;
};

template <typename T>
Stretch<T> stretch(const DecodeBatch& b, const KeyValues& store, int64_t slot, int64_t head,
                   int64_t first, int64_t count) {
  const T* data = static_cast<const T*>(store.data);
  const int64_t place = (slot * b.kv_heads + head) * store.room * b.width;
  const int64_t values = store.slots * b.kv_heads * store.room * b.width;
  first = first < 0 ? 0 : (first < count ? first : count);
  return {data + place, data + values + place, first, count};
}

template <typename T>
FASTRL_INLINE float dot(const T* a, const T* b, int64_t n) {
  Floats sums = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) sums += load(a + i) * load(b + i);
  float rest = 0.0f;
  for (; i < n; ++i) rest += to_float(a[i]) * to_float(b[i]);
  return total(sums) + rest;
}

// scores[q * stride + ...] = scaling * query q · key, key by key; returns where the next ones go.
template <typename T>
float* score(const DecodeBatch& b, const T* query, int64_t group, int64_t stride,
             const Stretch<T>& s, float* scores) {
  for (int64_t t = s.first; t < s.count; ++t, ++scores) {
    for (int64_t q = 0; q < group; ++q) {
      scores[q * stride] = b.scaling * dot(query + q * b.width, s.keys + t * b.width, b.width);
    }
  }
  return scores;
}

float largest_of(const float* x, int64_t n) {
  Floats most = Floats{} + x[0];
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const Floats value = load(x + i);
    most = value > most ? value : most;
  }
  float best = x[0];
  for (int lane = 0; lane < kLanes; ++lane) best = most[lane] > best ? most[lane] : best;
  for (; i < n; ++i) best = x[i] > best ? x[i] : best;
  return best;
}

// The scores become exp(score - the largest); returns their sum.
float exponentials(float* scores, int64_t n) {
  const float largest = largest_of(scores, n);
  Floats sums = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const Floats e = exponential(load(scores + i) - largest);
    store(scores + i, e);
    sums += e;
  }
  float tail[kLanes] = {};
  for (int64_t j = i; j < n; ++j) tail[j - i] = scores[j] - largest;
  store(tail, exponential(load(tail)));
  float sum = total(sums);
  for (int64_t j = i; j < n; ++j) {
    scores[j] = tail[j - i];
    sum += scores[j];
  }
  return sum;
}

// sums[0 .. kVectors * kLanes) += weights · values, from column `from` on.
template <int kVectors, typename T>
FASTRL_INLINE void mix(const DecodeBatch& b, const Stretch<T>& s, const float* weights,
                       int64_t from, Floats* sums) {
  const T* values = s.values + from;
  for (int64_t t = s.first; t < s.count; ++t, ++weights) {
    for (int i = 0; i < kVectors; ++i)
      sums[i] += *weights * load(values + t * b.width + i * kLanes);
  }
}

// out = share * (weights · values), kVectors * kLanes columns from `from` on.
template <int kVectors, typename T>
FASTRL_INLINE void mixed(const DecodeBatch& b, const Stretch<T>& prompt, const Stretch<T>& answer,
                         const float* weights, float share, int64_t from, T* out) {
  Floats sums[kVectors] = {};
  mix<kVectors>(b, prompt, weights, from, sums);
  mix<kVectors>(b, answer, weights + prompt.count - prompt.first, from, sums);
  float columns[kVectors * kLanes];
  for (int i = 0; i < kVectors; ++i) store(columns + i * kLanes, sums[i] * share);
  for (int i = 0; i < kVectors * kLanes; ++i) round_to(out + from + i, columns[i]);
}

// The same of one column.
template <typename T>
float mixed_column(const DecodeBatch& b, const Stretch<T>& s, const float* weights,
                   int64_t column) {
  float sum = 0.0f;
  for (int64_t t = s.first; t < s.count; ++t, ++weights) {
    sum += *weights * to_float(s.values[t * b.width + column]);
  }
  return sum;
}

template <typename T>
void item(const DecodeBatch& b, float* scratch, int64_t row, int64_t head) {
  const int64_t group = b.heads / b.kv_heads;
  const int64_t keys = b.keys(row), in_prompt = b.prompt_lengths[row];
  const int64_t first = b.window > 0 && keys > b.window ? keys - b.window : 0;
  const auto prompt = stretch<T>(b, b.prompts, b.prompt_of[row], head, first, in_prompt);
  const auto answer = stretch<T>(b, b.answers, row, head, first - in_prompt, keys - in_prompt);
  const int64_t seen = keys - first;
  const int64_t place = (row * b.heads + head * group) * b.width;
  const T* query = static_cast<const T*>(b.query) + place;
  T* out = static_cast<T*>(b.out) + place;
  float* behind = score(b, query, group, seen, prompt, scratch);
  score(b, query, group, seen, answer, behind);
  for (int64_t q = 0; q < group; ++q, out += b.width) {
    float* weights = scratch + q * seen;
    const float share = 1.0f / exponentials(weights, seen);
    int64_t i = 0;
    for (; i + kBlock * kLanes <= b.width; i += kBlock * kLanes) {
      mixed<kBlock>(b, prompt, answer, weights, share, i, out);
    }
    for (; i + kLanes <= b.width; i += kLanes) mixed<1>(b, prompt, answer, weights, share, i, out);
    for (; i < b.width; ++i) {
      const float* after = weights + prompt.count - prompt.first;
      const float sum = mixed_column(b, prompt, weights, i) + mixed_column(b, answer, after, i);
      round_to(out + i, share * sum);
    }
  }
}

void decode_items(const DecodeBatch& b, int dtype, float* scratch, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    if (dtype == kBFloat16) {
      item<bf16>(b, scratch, i / b.kv_heads, i % b.kv_heads);
    } else {
      item<float>(b, scratch, i / b.kv_heads, i % b.kv_heads);
    }
  }
}

#undef FASTRL_INLINE

}  // namespace
}  // namespace fastrl::cpu
