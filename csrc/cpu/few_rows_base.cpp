#include "cpu/few_rows_columns.h"

namespace fastrl::cpu {

void few_rows_base(const FewRows& product, int64_t begin, int64_t end) {
  columns(product, begin, end);
}

}  // namespace fastrl::cpu
