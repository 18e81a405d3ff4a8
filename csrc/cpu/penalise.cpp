// Repetition penalty: the logits as fp32, those of seen tokens divided (positive) or multiplied.
#include <atomic>
#include <type_traits>

#include "cpu/ops.h"
#include "cpu/parallel.h"
#include "dtype.h"

namespace fastrl::cpu {

int64_t penalise(const void* logits, int dtype, int64_t rows, int64_t vocab, const int64_t* seen,
                 int64_t length, float penalty, float* out, int n_threads) {
  std::atomic<int64_t> bad_row{rows};
  const int threads = useful_threads(rows * (vocab + length), int64_t{1} << 16, n_threads);
  with_dtype(dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    parallel_chunks(rows, threads, [&](int, int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const T* x = static_cast<const T*>(logits) + row * vocab;
        float* y = out + row * vocab;
        for (int64_t v = 0; v < vocab; ++v) y[v] = to_float(x[v]);
        for (int64_t i = 0; i < length; ++i) {
          const int64_t id = seen[row * length + i];
          if (id == -1) continue;
          if (id < 0 || id >= vocab) {
            note_first(bad_row, row);
            break;
          }
          const float value = to_float(x[id]);  // from the input: repeats count once
          y[id] = value < 0.0f ? value * penalty : value / penalty;
        }
      }
    });
  });
  return bad_row.load() < rows ? bad_row.load() : -1;
}

}  // namespace fastrl::cpu
