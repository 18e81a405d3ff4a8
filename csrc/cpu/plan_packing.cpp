// Best-fit decreasing (arXiv:2404.10830): longest rows first, each into the bin with the least free
// space that still holds it; among equals the bin that has had this space longest; else a new bin.
#include <algorithm>
#include <cstdint>
#include <deque>
#include <map>
#include <numeric>
#include <vector>

#include "cpu/ops.h"

namespace fastrl::cpu {
namespace {

constexpr int32_t kNone = -1;
constexpr int64_t kDenseLimit = int64_t{1} << 20;  // above this, tables by space would not fit

// Bins by free space in [1, limit], for limits that allow a table: a bitset of the spaces that some
// bin has, 64 to the word with a summary word above each 64 words, and a queue of bins for each
// space.
class DenseSpaces {
 public:
  explicit DenseSpaces(int64_t limit) : head_(limit + 1, kNone), tail_(limit + 1, kNone) {
    for (int64_t words = limit + 1; words > 1 || levels_.empty();) {
      words = (words + 63) / 64;
      levels_.emplace_back(words, 0);
    }
  }

  // The least space >= wanted that some bin has, or kNone.
  int64_t least(int64_t wanted) const {
    int64_t index = wanted;
    for (size_t level = 0; level < levels_.size(); ++level) {
      const int64_t word = index >> 6;
      if (word >= static_cast<int64_t>(levels_[level].size())) return kNone;
      const uint64_t bits = levels_[level][word] >> (index & 63);
      if (bits != 0) return descend(level, index + __builtin_ctzll(bits));
      index = word + 1;
    }
    return kNone;
  }

  int32_t take(int64_t space) {
    const int32_t bin = head_[space];
    head_[space] = next_[bin];
    if (head_[space] == kNone) {
      tail_[space] = kNone;
      clear(space);
    }
    return bin;
  }

  void put(int64_t space, int32_t bin) {
    if (next_.size() <= static_cast<size_t>(bin)) next_.resize(bin + 1, kNone);
    next_[bin] = kNone;
    if (tail_[space] == kNone) {
      head_[space] = bin;
      set(space);
    } else {
      next_[tail_[space]] = bin;
    }
    tail_[space] = bin;
  }

 private:
  int64_t descend(size_t level, int64_t index) const {
    while (level > 0) {
      --level;
      index = (index << 6) + __builtin_ctzll(levels_[level][index]);
    }
    return index;
  }

  void set(int64_t index) {
    for (auto& level : levels_) {
      level[index >> 6] |= uint64_t{1} << (index & 63);
      index >>= 6;
    }
  }

  void clear(int64_t index) {
    for (auto& level : levels_) {
      level[index >> 6] &= ~(uint64_t{1} << (index & 63));
      if (level[index >> 6] != 0) return;
      index >>= 6;
    }
  }

  std::vector<std::vector<uint64_t>> levels_;  // levels_[0] has one bit for each space
  std::vector<int32_t> head_, tail_;           // by space
  std::vector<int32_t> next_;                  // by bin
};

// The same for any capacity.
class SparseSpaces {
 public:
  explicit SparseSpaces(int64_t) {}

  int64_t least(int64_t wanted) const {
    const auto found = bins_.lower_bound(wanted);
    return found == bins_.end() ? kNone : found->first;
  }

  int64_t take(int64_t space) {
    const auto found = bins_.find(space);
    const int64_t bin = found->second.front();
    found->second.pop_front();
    if (found->second.empty()) bins_.erase(found);
    return bin;
  }

  void put(int64_t space, int32_t bin) { bins_[space].push_back(bin); }

 private:
  std::map<int64_t, std::deque<int32_t>> bins_;
};

// Rows of one length, as they lie in the sorted list.
struct Run {
  int64_t length;
  int64_t count;
};

// Rows longer than 0, longest first, equal ones in their own order; and the runs of equal lengths.
std::vector<Run> longest_first(const int64_t* lengths, int64_t n, std::vector<int32_t>& sorted) {
  const int64_t longest = n == 0 ? 0 : *std::max_element(lengths, lengths + n);
  std::vector<Run> runs;
  if (longest > kDenseLimit) {
    for (int64_t row = 0; row < n; ++row) {
      if (lengths[row] > 0) sorted.push_back(static_cast<int32_t>(row));
    }
    std::stable_sort(sorted.begin(), sorted.end(),
                     [lengths](int32_t a, int32_t b) { return lengths[a] > lengths[b]; });
    for (int32_t row : sorted) runs.push_back({lengths[row], 1});
    return runs;
  }
  std::vector<int64_t> start(longest + 1, 0);  // by length: first how many, then where they begin
  for (int64_t row = 0; row < n; ++row) ++start[lengths[row]];
  int64_t before = 0;
  for (int64_t length = longest; length >= 1; --length) {
    const int64_t count = start[length];
    if (count > 0) runs.push_back({length, count});
    start[length] = before;
    before += count;
  }
  sorted.resize(before);
  for (int64_t row = 0; row < n; ++row) {
    if (lengths[row] > 0) sorted[start[lengths[row]]++] = static_cast<int32_t>(row);
  }
  return runs;
}

template <typename Spaces>
int64_t fill(const std::vector<Run>& runs, const std::vector<int32_t>& sorted, int64_t capacity,
             int64_t* order, int64_t* offsets) {
  Spaces spaces(capacity);
  std::vector<int32_t> bin_of(sorted.size());
  std::vector<int64_t> rows_in;  // by bin
  size_t i = 0;
  for (const Run& run : runs) {
    for (int64_t k = 0; k < run.count; ++k, ++i) {
      const int64_t found = spaces.least(run.length);
      if (found == kNone) rows_in.push_back(0);
      const int32_t bin =
          found == kNone ? static_cast<int32_t>(rows_in.size() - 1) : spaces.take(found);
      const int64_t left = (found == kNone ? capacity : found) - run.length;
      if (left > 0) spaces.put(left, bin);
      ++rows_in[bin];
      bin_of[i] = bin;
    }
  }
  const int64_t bins = static_cast<int64_t>(rows_in.size());
  offsets[0] = 0;
  std::partial_sum(rows_in.begin(), rows_in.end(), offsets + 1);
  std::copy(offsets, offsets + bins, rows_in.begin());  // from here on: where the next row goes
  for (i = 0; i < sorted.size(); ++i) order[rows_in[bin_of[i]]++] = sorted[i];
  return bins;
}

}  // namespace

int64_t plan_packing(const int64_t* lengths, int64_t n, int64_t capacity, int64_t* order,
                     int64_t* offsets) {
  std::vector<int32_t> sorted;
  const std::vector<Run> runs = longest_first(lengths, n, sorted);
  if (capacity <= kDenseLimit) return fill<DenseSpaces>(runs, sorted, capacity, order, offsets);
  return fill<SparseSpaces>(runs, sorted, capacity, order, offsets);
}

}  // namespace fastrl::cpu
