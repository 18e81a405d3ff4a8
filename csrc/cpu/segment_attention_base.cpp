#include "cpu/segment_attention_items.h"

namespace fastrl::cpu {

const SegmentKernels kSegmentKernelsBase = kKernels;

}  // namespace fastrl::cpu
