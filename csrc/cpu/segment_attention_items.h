// The body of segment_attention_base.cpp and _avx2.cpp: attention in blocks of queries and keys
// that stay in the caches (Dao, arXiv 2307.08691, algorithms 1 and 2), in fp32.
#pragma once

#include <cmath>

#include "cpu/segment_attention.h"
#include "cpu/segment_attention_tiles.h"

namespace fastrl::cpu {
namespace {

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

void turn(const SegmentBatch& b, const Rows& rows, int64_t segment, int64_t kv_head,
          float* turned) {
  const int64_t length = b.segments.lengths[segment];
  float* to = turned + b.turned(kv_head, b.blocks[segment]);
  for (int64_t begin = 0; begin < length; begin += kKeyBlock, to += b.width * kKeyBlock) {
    const int64_t count = least(kKeyBlock, length - begin);
    const float* from = rows.at(b.keys[segment] + begin, kv_head);
    for (int64_t first = 0; first < kKeyBlock; first += kLanes) {
      const int64_t some = most(0, least(kLanes, count - first));
      for (int64_t d = 0; d < b.width; ++d) {
        float* lanes = to + d * kKeyBlock + first;
        for (int64_t i = 0; i < some; ++i) lanes[i] = from[(first + i) * rows.token + d];
        for (int64_t i = some; i < kLanes; ++i) lanes[i] = 0.0f;
      }
    }
  }
}

inline int64_t whole_vectors(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

// Some queries of a segment, and where they stand among all the keys that the segment sees.
struct Queries {
  int64_t row;  // of the first, among all queries
  int64_t count;
  int64_t place;  // of the first, among the keys seen
};

inline Queries queries_of(const SegmentBatch& b, int64_t segment, int64_t first) {
  const int64_t asking = b.segments.asking[segment];
  const int64_t place = b.before(segment) + b.segments.lengths[segment] - asking + first;
  return {b.queries[segment] + first, least(kQueryBlock, asking - first), place};
}

// A block of keys that some queries see something of.
struct Block {
  int64_t index;  // among the transposed blocks
  int64_t row;    // of the first key
  int64_t count;
  int64_t place;  // of the first key, among the keys seen

  // The keys [first, end) of the block that the query at `place` sees.
  int64_t end(int64_t query) const { return most(0, least(count, query + 1 - place)); }
  int64_t first(int64_t query, int64_t window) const {
    return window > 0 ? most(0, least(count, query + 1 - window - place)) : 0;
  }
};

// body(block) for each block of the keys that the queries see anything of, in order.
template <typename Body>
inline void each_block(const SegmentBatch& b, int64_t segment, const Queries& q, const Body& body) {
  const int64_t last = q.place + q.count - 1;
  int64_t place = 0;
  const int64_t parts[] = {b.segments.after[segment], segment};
  for (const int64_t part : parts) {
    if (part < 0) continue;
    const int64_t length = b.segments.lengths[part];
    for (int64_t begin = 0; begin < length; begin += kKeyBlock) {
      const Block block{b.blocks[part] + begin / kKeyBlock, b.keys[part] + begin,
                        least(kKeyBlock, length - begin), place + begin};
      const bool reached = b.window <= 0 || block.place + block.count > q.place + 1 - b.window;
      if (block.place <= last && reached) body(block);
    }
    place += length;
  }
}

// body(row, rows, end) for each strip of the queries; keys from `end` on are seen by none of it.
template <typename Body>
inline void each_strip(const Queries& q, const Block& block, const Body& body) {
  for (int64_t row = 0; row < q.count; row += kTileRows) {
    const int64_t rows = least(kTileRows, q.count - row);
    body(row, rows, block.end(q.place + row + rows - 1));
  }
}

// scores (count, kKeyBlock) = queries keysᵀ, a strip's up to the last key that it sees.
inline void score(const SegmentBatch& b, const float* rows, int64_t stride, const float* turned,
                  const Queries& q, const Block& block, float* scores) {
  each_strip(q, block, [&](int64_t row, int64_t some, int64_t end) {
    multiply({rows + row * stride, stride, 1}, turned, kKeyBlock, scores + row * kKeyBlock,
             kKeyBlock, some, b.width, whole_vectors(end), false);
  });
}

// to (count, width) += weights (count, kKeyBlock) rows, a strip's up to the last key that it sees.
inline void gather(const SegmentBatch& b, const float* weights, const Rows& rows, int64_t kv_head,
                   const Queries& q, const Block& block, float* to, int64_t stride) {
  each_strip(q, block, [&](int64_t row, int64_t some, int64_t end) {
    multiply({weights + row * kKeyBlock, kKeyBlock, 1}, rows.at(block.row, kv_head), rows.token,
             to + row * stride, stride, some, end, b.width, true);
  });
}

// to (keys, width) += weightsᵀ rows, for each strip of keys from the first query that sees it on.
inline void scatter(const SegmentBatch& b, const float* weights, const float* rows, int64_t stride,
                    const Queries& q, const Block& block, float* to) {
  const int64_t to_stride = b.kv_heads * b.width;
  for (int64_t key = 0; key < block.count; key += kTileRows) {
    const int64_t some = least(kTileRows, block.count - key);
    const int64_t first = most(0, block.place + key - q.place);
    if (first >= q.count) return;
    multiply({weights + first * kKeyBlock + key, 1, kKeyBlock}, rows + first * stride, stride,
             to + key * to_stride, to_stride, some, q.count - first, b.width, true);
  }
}

// Of scores, n are made: they become e^(scaling * score - above) where [first, end) are seen, all
// else up to `count` 0. Returns their sum.
inline float weigh(const SegmentBatch& b, float* scores, int64_t n, int64_t first, int64_t end,
                   int64_t count, float above) {
  Floats total = {};
  for (int64_t j = 0; j < n; j += kLanes) {
    store(scores + j, exponential(load(scores + j) * b.scaling - above));
  }
  for (int64_t j = 0; j < first; ++j) scores[j] = 0.0f;
  for (int64_t j = end; j < most(n, count); ++j) scores[j] = 0.0f;
  for (int64_t j = 0; j < n; j += kLanes) total += load(scores + j);
  return sum(total);
}

inline float largest_of(const float* scores, int64_t first, int64_t end) {
  Floats best = all(-HUGE_VALF);
  int64_t j = first;
  for (; j + kLanes <= end; j += kLanes) best = larger(load(scores + j), best);
  float result = largest(best);
  for (; j < end; ++j) result = scores[j] > result ? scores[j] : result;
  return result;
}

inline float dot(const float* a, const float* b, int64_t n) {
  Floats lanes = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) lanes += load(a + i) * load(b + i);
  float total = sum(lanes);
  for (; i < n; ++i) total += a[i] * b[i];
  return total;
}

inline void scale(float* row, int64_t n, float factor) {
  for (int64_t i = 0; i < n; ++i) row[i] *= factor;
}

void forward(const SegmentBatch& b, const float* keys, int64_t segment, int64_t head, int64_t first,
             float* scratch, float* out, float* lse) {
  const Queries q = queries_of(b, segment, first);
  const int64_t kv_head = b.key_of(head);
  float* scores = scratch;
  float* mixed = scores + kQueryBlock * kKeyBlock;
  float* top = mixed + kQueryBlock * b.width;
  float* mass = top + kQueryBlock;
  for (int64_t i = 0; i < q.count; ++i) top[i] = -HUGE_VALF, mass[i] = 0.0f;
  for (int64_t i = 0; i < q.count * b.width; ++i) mixed[i] = 0.0f;
  each_block(b, segment, q, [&](const Block& block) {
    score(b, b.query.at(q.row, head), b.query.token, keys + b.turned(kv_head, block.index), q,
          block, scores);
    each_strip(q, block, [&](int64_t row, int64_t some, int64_t seen) {
      for (int64_t i = row; i < row + some; ++i) {
        float* line = scores + i * kKeyBlock;
        const int64_t begin = block.first(q.place + i, b.window), end = block.end(q.place + i);
        const float best = begin < end ? largest_of(line, begin, end) * b.scaling : -HUGE_VALF;
        // NaN is not larger than anything; a row that has one gets it from the exponentials.
        const float above = best > top[i] ? best : top[i];
        const float kept = top[i] == above ? 1.0f : std::exp(top[i] - above);
        mass[i] = mass[i] * kept + weigh(b, line, whole_vectors(seen), begin, end, seen, above);
        if (kept != 1.0f) scale(mixed + i * b.width, b.width, kept);
        top[i] = above;
      }
    });
    gather(b, scores, b.value, kv_head, q, block, mixed, b.width);
  });
  const int64_t all_queries = b.queries[b.segments.count];
  for (int64_t i = 0; i < q.count; ++i) {
    float* to = out + ((q.row + i) * b.heads + head) * b.width;
    for (int64_t d = 0; d < b.width; ++d) to[d] = mixed[i * b.width + d] / mass[i];
    lse[head * all_queries + q.row + i] = top[i] + std::log(mass[i]);
  }
}

// What the queries of a block give to the gradients.
inline void backward_block(const SegmentBatch& b, const SegmentGradients& g, const float* keys,
                           const float* values, int64_t segment, int64_t head, int64_t first,
                           float* scratch) {
  const Queries q = queries_of(b, segment, first);
  const int64_t kv_head = b.key_of(head), all_queries = b.queries[b.segments.count];
  const int64_t stride = b.heads * b.width;
  const int64_t place = (q.row * b.heads + head) * b.width;
  const float* upstream = g.out_gradient + place;
  const float* lse = g.lse + head * all_queries + q.row;
  float* weights = scratch;
  float* pull = weights + kQueryBlock * kKeyBlock;  // gradients of the weights, then of the scores
  float* common = pull + kQueryBlock * kKeyBlock;
  for (int64_t i = 0; i < q.count; ++i) {
    common[i] = dot(upstream + i * stride, g.out + place + i * stride, b.width);
    for (int64_t d = 0; d < b.width; ++d) g.query[place + i * stride + d] = 0.0f;
  }
  each_block(b, segment, q, [&](const Block& block) {
    const int64_t turned = b.turned(kv_head, block.index);
    score(b, b.query.at(q.row, head), b.query.token, keys + turned, q, block, weights);
    score(b, upstream, stride, values + turned, q, block, pull);
    each_strip(q, block, [&](int64_t row, int64_t some, int64_t seen) {
      const int64_t made = whole_vectors(seen);
      for (int64_t i = row; i < row + some; ++i) {
        float* weight = weights + i * kKeyBlock;
        float* slope = pull + i * kKeyBlock;
        weigh(b, weight, made, block.first(q.place + i, b.window), block.end(q.place + i),
              block.count, lse[i]);
        for (int64_t j = 0; j < made; j += kLanes) {
          store(slope + j, load(weight + j) * (load(slope + j) - common[i]) * b.scaling);
        }
        for (int64_t j = made; j < block.count; ++j) slope[j] = 0.0f;
      }
    });
    const int64_t kv_place = (block.row * b.kv_heads + kv_head) * b.width;
    scatter(b, weights, upstream, stride, q, block, g.value + kv_place);
    scatter(b, pull, b.query.at(q.row, head), b.query.token, q, block, g.key + kv_place);
    gather(b, pull, b.key, kv_head, q, block, g.query + place, stride);
  });
}

void backward_segment(const SegmentBatch& b, const SegmentGradients& g, const float* keys,
                      const float* values, int64_t segment, int64_t kv_head, float* scratch) {
  const int64_t group = b.heads / b.kv_heads;
  for (int64_t t = b.keys[segment]; t < b.keys[segment + 1]; ++t) {
    const int64_t place = (t * b.kv_heads + kv_head) * b.width;
    for (int64_t d = 0; d < b.width; ++d) g.key[place + d] = g.value[place + d] = 0.0f;
  }
  for (int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
    for (int64_t first = 0; first < b.segments.asking[segment]; first += kQueryBlock) {
      backward_block(b, g, keys, values, segment, head, first, scratch);
    }
  }
}

void backward(const SegmentBatch& b, const SegmentGradients& g, const float* keys,
              const float* values, int64_t root, int64_t kv_head, float* scratch) {
  backward_segment(b, g, keys, values, root, kv_head, scratch);
  for (int64_t segment = 0; segment < b.segments.count; ++segment) {
    if (b.segments.after[segment] != root) continue;
    backward_segment(b, g, keys, values, segment, kv_head, scratch);
  }
}

constexpr SegmentKernels kKernels{turn, forward, backward};

}  // namespace
}  // namespace fastrl::cpu
