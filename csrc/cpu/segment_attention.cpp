#include "cpu/segment_attention.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <vector>

#include "cpu/isa.h"
#include "cpu/ops.h"
#include "cpu/parallel.h"

namespace fastrl::cpu {
namespace {

constexpr int64_t kGrain = 1 << 18;  // products a thread must have to be worth waking

const SegmentKernels& kernels() {
#if defined(FASTRL_X86)
  if (isa() >= Isa::kAvx2) return kSegmentKernelsAvx2;
#endif
  return kSegmentKernelsBase;
}

// The starts that a batch refers to.
struct Starts {
  std::vector<int64_t> queries, keys, blocks;

  explicit Starts(const SegmentTable& table) : queries{0}, keys{0}, blocks{0} {
    for (int64_t i = 0; i < table.count; ++i) {
      queries.push_back(queries.back() + table.asking[i]);
      keys.push_back(keys.back() + table.lengths[i]);
      blocks.push_back(blocks.back() + (table.lengths[i] + kKeyBlock - 1) / kKeyBlock);
    }
  }

  void give(SegmentBatch& batch) const {
    batch.queries = queries.data();
    batch.keys = keys.data();
    batch.blocks = blocks.data();
  }
};

int64_t products(const SegmentBatch& b) {
  int64_t pairs = 0;
  for (int64_t i = 0; i < b.segments.count; ++i) {
    pairs += b.segments.asking[i] * (b.before(i) + b.segments.lengths[i]);
  }
  return pairs * b.heads * b.width;
}

// body(item, thread) for each item, on whichever thread is free: no item depends on another.
template <typename Body>
void each_item(int64_t items, int threads, const Body& body) {
  std::atomic<int64_t> next{0};
  parallel_chunks(threads, threads, [&](int thread, int64_t, int64_t) {
    for (int64_t item = next++; item < items; item = next++) body(item, thread);
  });
}

// Floats that nothing has written yet.
using Floats = std::unique_ptr<float[]>;

Floats floats(int64_t count) { return Floats(new float[static_cast<size_t>(count)]); }

Floats turned(const SegmentBatch& b, const Rows& rows, int threads) {
  const int64_t blocks = b.blocks[b.segments.count];
  Floats result = floats(b.kv_heads * blocks * b.width * kKeyBlock);
  each_item(b.segments.count * b.kv_heads, threads, [&](int64_t item, int) {
    kernels().turn(b, rows, item / b.kv_heads, item % b.kv_heads, result.get());
  });
  return result;
}

struct Work {
  int64_t segment, head, first;
};

}  // namespace

void segment_attention_forward(const SegmentBatch& given, float* out, float* lse, int n_threads) {
  SegmentBatch batch = given;
  const Starts starts(batch.segments);
  starts.give(batch);
  const int threads = useful_threads(2 * products(batch), kGrain, n_threads);
  const Floats keys = turned(batch, batch.key, threads);
  std::vector<Work> items;
  for (int64_t segment = 0; segment < batch.segments.count; ++segment) {
    for (int64_t head = 0; head < batch.heads; ++head) {
      for (int64_t first = 0; first < batch.segments.asking[segment]; first += kQueryBlock) {
        items.push_back({segment, head, first});
      }
    }
  }
  const int64_t each = segment_scratch(batch.width);
  const Floats scratch = floats(each * threads);
  each_item(static_cast<int64_t>(items.size()), threads, [&](int64_t item, int thread) {
    const Work& work = items[static_cast<size_t>(item)];
    kernels().forward(batch, keys.get(), work.segment, work.head, work.first,
                      scratch.get() + thread * each, out, lse);
  });
}

void segment_attention_backward(const SegmentBatch& given, const SegmentGradients& gradients,
                                int n_threads) {
  SegmentBatch batch = given;
  const Starts starts(batch.segments);
  starts.give(batch);
  const int threads = useful_threads(5 * products(batch), kGrain, n_threads);
  const Floats keys = turned(batch, batch.key, threads);
  const Floats values = turned(batch, batch.value, threads);
  std::vector<Work> items;
  for (int64_t segment = 0; segment < batch.segments.count; ++segment) {
    if (batch.segments.after[segment] >= 0) continue;
    for (int64_t head = 0; head < batch.kv_heads; ++head) items.push_back({segment, head, 0});
  }
  const int64_t each = segment_scratch(batch.width);
  const Floats scratch = floats(each * threads);
  each_item(static_cast<int64_t>(items.size()), threads, [&](int64_t item, int thread) {
    const Work& work = items[static_cast<size_t>(item)];
    kernels().backward(batch, gradients, keys.get(), values.get(), work.segment, work.head,
                       scratch.get() + thread * each);
  });
}

}  // namespace fastrl::cpu
