// Splitting work over threads. Chunks are fixed by the sizes and the thread count, never by timing,
// so a reduction over per-chunk results in chunk order gives the same bits every run.
#pragma once

#include <atomic>
#include <cstdint>

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace fastrl::cpu {

// Threads worth waking: one for each `grain` units of work, at most n_threads, at least one.
static inline int useful_threads(int64_t work, int64_t grain, int n_threads) {
#if defined(_OPENMP)
  const int64_t wanted = work / (grain > 0 ? grain : 1);
  const int64_t most = n_threads > 1 ? n_threads : 1;
  return static_cast<int>(wanted < 1 ? 1 : (wanted < most ? wanted : most));
#else
  (void)work, (void)grain, (void)n_threads;
  return 1;
#endif
}

// Calls body(chunk, begin, end) once for each of `chunks` contiguous pieces of [0, size), each
// piece on a thread of its own. The body must not throw.
template <typename Body>
static inline void parallel_chunks(int64_t size, int chunks, const Body& body) {
  if (chunks <= 1) {
    body(0, int64_t{0}, size);
    return;
  }
#if defined(_OPENMP)
#pragma omp parallel for num_threads(chunks) schedule(static, 1)
#endif
  for (int chunk = 0; chunk < chunks; ++chunk) {
    const int64_t share = size / chunks;
    const int64_t rest = size % chunks;
    const int64_t begin = chunk * share + (chunk < rest ? chunk : rest);
    body(chunk, begin, begin + share + (chunk < rest ? 1 : 0));
  }
}

// Keeps the smallest row that any thread gives, so that an error names the first one.
static inline void note_first(std::atomic<int64_t>& first, int64_t row) {
  int64_t seen = first.load();
  while (row < seen && !first.compare_exchange_weak(seen, row)) {
  }
}

}  // namespace fastrl::cpu
