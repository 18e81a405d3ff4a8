// Attention of one new token a row over the keys of its prompt and of its answer so far.
#pragma once

#include <cstdint>

namespace fastrl::cpu {

// (2, slots, kv_heads, room, width): keys, then values, of prompts or of answers.
struct KeyValues {
  const void* data;
  int64_t slots;
  int64_t room;
};

struct DecodeBatch {
  const void* query;  // (rows, heads, width)
  int64_t rows;
  int64_t heads;
  int64_t kv_heads;
  int64_t width;
  KeyValues prompts;
  KeyValues answers;              // row i is in slot i
  const int64_t* prompt_of;       // (rows) slot of the prompt
  const int64_t* prompt_lengths;  // (rows)
  const int64_t* answer_lengths;  // (rows) without the new token, which stands behind them
  float scaling;
  int64_t window;  // keys a query sees, itself included; 0: all
  void* out;       // as the query

  // Keys of a row, the new token's included.
  int64_t keys(int64_t row) const { return prompt_lengths[row] + answer_lengths[row] + 1; }
};

// Floats that a thread works on: scores of the queries of one key head.
static inline int64_t decode_scratch(const DecodeBatch& batch, int64_t most_keys) {
  return batch.heads / batch.kv_heads * most_keys;
}

// Items [begin, end) of the rows * kv_heads there are; scratch: decode_scratch(...) floats.
using DecodeItems = void (*)(const DecodeBatch&, int dtype, float* scratch, int64_t begin,
                             int64_t end);

void decode_items_base(const DecodeBatch&, int, float*, int64_t, int64_t);
#if defined(FASTRL_X86)
void decode_items_avx2(const DecodeBatch&, int, float*, int64_t, int64_t);
void decode_items_avx512(const DecodeBatch&, int, float*, int64_t, int64_t);
#endif

}  // namespace fastrl::cpu
