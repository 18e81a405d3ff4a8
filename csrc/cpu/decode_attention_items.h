// The body of decode_attention_base.cpp, _avx2.cpp and _avx512.cpp: loops that the compiler turns
// into vectors of what the file's instruction set has. All functions have internal linkage (isa.h).
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "cpu/decode_attention.h"
#include "dtype.h"

namespace fastrl::cpu {
namespace {

constexpr int kLanes = 16;  // independent sums, so that addition need not be reordered

template <typename T>
inline float dot(const T* a, const T* b, int64_t n) {
  float sums[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      sums[lane] += to_float(a[i + lane]) * to_float(b[i + lane]);
    }
  }
  float total = 0.0f;
  for (; i < n; ++i) total += to_float(a[i]) * to_float(b[i]);
  for (int lane = 0; lane < kLanes; ++lane) total += sums[lane];
  return total;
}

inline void store(float* out, float value) { *out = value; }

// Round to nearest, ties to even.
inline void store(bf16* out, float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  out->bits = static_cast<uint16_t>(nan ? 0x7fc0u : (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// One stretch of keys of one head: prompt or answer.
template <typename T>
struct Stretch {
  const T* keys;
  const T* values;
  int64_t first;  // what the window leaves out
  int64_t count;

  static Stretch of(const KeyValues& store, const DecodeBatch& b, int64_t slot, int64_t head,
                    int64_t first, int64_t count) {
    const T* data = static_cast<const T*>(store.data);
    const int64_t place = (slot * b.kv_heads + head) * store.room * b.width;
    const int64_t all = store.slots * b.kv_heads * store.room * b.width;
    return {data + place, data + all + place, first < count ? first : count, count};
  }
};

// scores[q][...] = scaling * query q · key, for every key of the stretch in reach.
template <typename T>
inline float* score(const DecodeBatch& b, const T* query, int64_t group, int64_t stride,
                    const Stretch<T>& s, float* __restrict scores) {
  for (int64_t t = s.first; t < s.count; ++t, ++scores) {
    const T* key = s.keys + t * b.width;
    for (int64_t q = 0; q < group; ++q) {
      scores[q * stride] = b.scaling * dot(query + q * b.width, key, b.width);
    }
  }
  return scores;
}

template <typename T>
inline const float* mix(const DecodeBatch& b, int64_t group, int64_t stride, const Stretch<T>& s,
                        const float* weights, float* __restrict sums) {
  for (int64_t t = s.first; t < s.count; ++t, ++weights) {
    const T* value = s.values + t * b.width;
    for (int64_t q = 0; q < group; ++q) {
      const float weight = weights[q * stride];
      float* sum = sums + q * b.width;
      for (int64_t i = 0; i < b.width; ++i) sum[i] += weight * to_float(value[i]);
    }
  }
  return weights;
}

// Scores become their softmax.
inline void softmax(float* scores, int64_t n) {
  float largest = scores[0];
  for (int64_t i = 1; i < n; ++i) largest = scores[i] > largest ? scores[i] : largest;
  float sum = 0.0f;
  for (int64_t i = 0; i < n; ++i) {
    scores[i] = expf(scores[i] - largest);
    sum += scores[i];
  }
  for (int64_t i = 0; i < n; ++i) scores[i] /= sum;
}

template <typename T>
void item(const DecodeBatch& b, float* scratch, int64_t row, int64_t head) {
  const int64_t group = b.heads / b.kv_heads;
  const int64_t keys = b.keys(row);
  const int64_t skipped = b.window > 0 && keys > b.window ? keys - b.window : 0;
  const int64_t in_prompt = b.prompt_lengths[row];
  const auto prompt = Stretch<T>::of(b.prompts, b, b.prompt_of[row], head, skipped, in_prompt);
  const auto answer =
      Stretch<T>::of(b.answers, b, row, head, skipped > in_prompt ? skipped - in_prompt : 0,
                     b.answer_lengths[row] + 1);
  const int64_t seen = keys - skipped;
  const int64_t place = (row * b.heads + head * group) * b.width;
  const T* query = static_cast<const T*>(b.query) + place;
  T* out = static_cast<T*>(b.out) + place;
  float* weights = scratch;
  float* sums = scratch + group * seen;
  score(b, query, group, seen, answer, score(b, query, group, seen, prompt, weights));
  for (int64_t q = 0; q < group; ++q) softmax(weights + q * seen, seen);
  for (int64_t i = 0; i < group * b.width; ++i) sums[i] = 0.0f;
  mix(b, group, seen, answer, mix(b, group, seen, prompt, weights, sums), sums);
  for (int64_t i = 0; i < group * b.width; ++i) store(out + i, sums[i]);
}

inline void decode_items(const DecodeBatch& b, int dtype, float* scratch, int64_t begin,
                         int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    if (dtype == kBFloat16) {
      item<bf16>(b, scratch, i / b.kv_heads, i % b.kv_heads);
    } else {
      item<float>(b, scratch, i / b.kv_heads, i % b.kv_heads);
    }
  }
}

}  // namespace
}  // namespace fastrl::cpu
