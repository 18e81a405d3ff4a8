#include "cpu/decode_attention_items.h"

namespace fastrl::cpu {

void decode_items_avx2(const DecodeBatch& batch, int dtype, float* scratch, int64_t begin,
                       int64_t end) {
  decode_items(batch, dtype, scratch, begin, end);
}

}  // namespace fastrl::cpu
