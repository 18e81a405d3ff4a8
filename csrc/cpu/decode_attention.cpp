#include "cpu/decode_attention.h"

#include <algorithm>
#include <vector>

#include "cpu/isa.h"
#include "cpu/ops.h"
#include "cpu/parallel.h"

namespace fastrl::cpu {
namespace {

constexpr int64_t kGrain = 1 << 17;  // products a thread must have to be worth waking

DecodeItems chosen() {
#if defined(FASTRL_X86)
  if (isa() == Isa::kAvx512) return decode_items_avx512;
  if (isa() == Isa::kAvx2) return decode_items_avx2;
#endif
  return decode_items_base;
}

}  // namespace

void decode_attention(const void* query, int dtype, int64_t rows, int64_t heads, int64_t kv_heads,
                      int64_t width, const void* prompts, int64_t prompt_slots, int64_t prompt_room,
                      const void* answers, int64_t answer_slots, int64_t answer_room,
                      const int64_t* prompt_of, const int64_t* prompt_lengths,
                      const int64_t* answer_lengths, float scaling, int64_t window, void* out,
                      int n_threads) {
  const DecodeBatch batch{query,
                          rows,
                          heads,
                          kv_heads,
                          width,
                          {prompts, prompt_slots, prompt_room},
                          {answers, answer_slots, answer_room},
                          prompt_of,
                          prompt_lengths,
                          answer_lengths,
                          scaling,
                          window,
                          out};
  int64_t most = 0, all = 0;
  for (int64_t row = 0; row < rows; ++row) {
    most = std::max(most, batch.keys(row));
    all += batch.keys(row);
  }
  const int64_t items = rows * kv_heads;
  const int threads = useful_threads(2 * all * heads * width, kGrain, n_threads);
  const int64_t each = decode_scratch(batch, most);
  std::vector<float> scratch(static_cast<size_t>(each * threads));
  const DecodeItems run = chosen();
  parallel_chunks(items, threads, [&](int chunk, int64_t begin, int64_t end) {
    run(batch, dtype, scratch.data() + chunk * each, begin, end);
  });
}

}  // namespace fastrl::cpu
