// Attention of segments laid end to end: each sees itself causally, and before that all of another.
#pragma once

#include <cstdint>

namespace fastrl::cpu {

constexpr int64_t kQueryBlock = 48;
constexpr int64_t kKeyBlock = 64;

// (tokens, heads, width) with these elements from token to token and head to head; rows are dense.
struct Rows {
  const float* data;
  int64_t token;
  int64_t head;

  const float* at(int64_t row, int64_t which) const { return data + row * token + which * head; }
};

struct SegmentTable {
  int64_t count;
  const int64_t* lengths;  // tokens, each with a key
  const int64_t* after;    // the segment whose keys come before its own, or -1
  const int64_t* asking;   // how many of the last tokens have a query
};

struct SegmentBatch {
  Rows query;
  Rows key;
  Rows value;
  SegmentTable segments;
  int64_t heads;
  int64_t kv_heads;
  int64_t width;
  float scaling;   // more than 0
  int64_t window;  // keys a query sees, itself included; 0: all
  // Made by the driver, for each segment and the end.
  const int64_t* queries;  // first query
  const int64_t* keys;     // first key
  const int64_t* blocks;   // first block of kKeyBlock keys

  int64_t key_of(int64_t head) const { return head / (heads / kv_heads); }
  int64_t before(int64_t segment) const {
    const int64_t other = segments.after[segment];
    return other < 0 ? 0 : segments.lengths[other];
  }
  // Blocks of transposed keys or values, (width, kKeyBlock) each.
  int64_t turned(int64_t kv_head, int64_t block) const {
    return (kv_head * blocks[segments.count] + block) * width * kKeyBlock;
  }
};

struct SegmentGradients {
  const float* out;  // (queries, heads, width), as is out_gradient
  const float* lse;  // (heads, queries)
  const float* out_gradient;
  float* query;  // (queries, heads, width)
  float* key;    // (tokens, kv_heads, width)
  float* value;
};

// Floats a thread works on.
static inline int64_t segment_scratch(int64_t width) {
  return kQueryBlock * (2 * kKeyBlock + width + 4);
}

// One instruction set's functions.
struct SegmentKernels {
  // The blocks of a segment's rows (keys or values) of one head, transposed, zeros behind the last.
  void (*turn)(const SegmentBatch&, const Rows&, int64_t segment, int64_t kv_head, float* turned);
  // The queries of one block of a segment, one head.
  void (*forward)(const SegmentBatch&, const float* keys, int64_t segment, int64_t head,
                  int64_t first, float* scratch, float* out, float* lse);
  // All that a segment without one before it, and those that continue it, give one key head.
  void (*backward)(const SegmentBatch&, const SegmentGradients&, const float* keys,
                   const float* values, int64_t root, int64_t kv_head, float* scratch);
};

extern const SegmentKernels kSegmentKernelsBase;
#if defined(FASTRL_X86)
extern const SegmentKernels kSegmentKernelsAvx2;
#endif

}  // namespace fastrl::cpu
