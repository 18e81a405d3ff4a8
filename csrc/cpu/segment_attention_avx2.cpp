#include "cpu/segment_attention_items.h"

namespace fastrl::cpu {

const SegmentKernels kSegmentKernelsAvx2 = kKernels;

}  // namespace fastrl::cpu
