// fastrl._core_cpu: the CPU library for Python. Pointers cross as integers (tensor.data_ptr()).
// Every function releases the GIL.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>

#include "cpu/isa.h"
#include "cpu/ops.h"
#include "cpu/pages.h"
#include "cpu/segment_attention.h"

namespace py = pybind11;
using namespace fastrl;  // NOLINT

namespace {

using Address = std::uintptr_t;
using Unlocked = py::call_guard<py::gil_scoped_release>;

template <typename T>
[[maybe_unused]] T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

using Strides = std::array<int64_t, 2>;  // from token to token, from head to head

cpu::Rows rows_of(Address data, const Strides& strides) {
  return {at<float>(data), strides[0], strides[1]};
}

// Lengths, segments before and asking tokens of `segments` segments, one list behind the other.
cpu::SegmentBatch segment_batch(const std::array<Address, 3>& heads_of,
                                const std::array<Strides, 3>& strides, Address table,
                                int64_t segments, int64_t heads, int64_t kv_heads, int64_t width,
                                double scaling, int64_t window) {
  const int64_t* lists = at<int64_t>(table);
  cpu::SegmentBatch batch{};
  batch.query = rows_of(heads_of[0], strides[0]);
  batch.key = rows_of(heads_of[1], strides[1]);
  batch.value = rows_of(heads_of[2], strides[2]);
  batch.segments = {segments, lists, lists + segments, lists + 2 * segments};
  batch.heads = heads;
  batch.kv_heads = kv_heads;
  batch.width = width;
  batch.scaling = static_cast<float>(scaling);
  batch.window = window;
  return batch;
}

}  // namespace

PYBIND11_MODULE(_core_cpu, m) {
  m.doc() = "CPU kernels of fastrl on raw pointers; called through fastrl.ops only.";
  m.attr("openmp") =
#if defined(_OPENMP)
      true;
#else
      false;
#endif
  m.def("isa", [] { return static_cast<int>(cpu::isa()); }, "0 baseline, 1 AVX2, 2 AVX-512.");
  m.def(
      "limit_isa", [](int level) { cpu::limit_isa(static_cast<cpu::Isa>(level)); },
      py::arg("level"), "Use at most this level; 2 lifts the limit.");

  m.def(
      "token_logprobs_forward",
      [](Address logits, int dtype, Address targets, int64_t rows, int64_t vocab,
         int64_t row_stride, double temperature, Address logp, Address entropy, Address lse,
         int n_threads) {
        cpu::token_logprobs_forward(at<void>(logits), dtype, at<int64_t>(targets), rows, vocab,
                                    row_stride, temperature, at<float>(logp), at<float>(entropy),
                                    at<float>(lse), n_threads);
      },
      Unlocked());
  m.def(
      "token_logprobs_backward",
      [](Address logits, int dtype, Address targets, int64_t rows, int64_t columns,
         int64_t row_stride, int64_t first_column, double temperature, Address lse, Address entropy,
         Address grad_logp, Address grad_entropy, Address others, Address out, int64_t out_stride,
         int n_threads) {
        cpu::token_logprobs_backward(
            at<void>(logits), dtype, at<int64_t>(targets), rows, columns, row_stride, first_column,
            temperature, at<double>(lse), at<float>(entropy), at<float>(grad_logp),
            at<float>(grad_entropy), at<float>(others), at<void>(out), out_stride, n_threads);
      },
      Unlocked());
  m.def(
      "expect_writes",
      [](Address buffer, int64_t bytes) {
        cpu::expect_writes(at<void>(buffer), static_cast<size_t>(bytes));
      },
      Unlocked());
  m.def(
      "logprob_fold_start",
      [](Address sums, int64_t rows) { cpu::logprob_fold_start(at<double>(sums), rows); },
      Unlocked());
  m.def(
      "logprob_fold",
      [](Address logits, int dtype, Address targets, int64_t rows, int64_t columns,
         int64_t row_stride, int64_t first_column, double temperature, bool statistics,
         Address sums, int n_threads) {
        cpu::logprob_fold(at<void>(logits), dtype, at<int64_t>(targets), rows, columns, row_stride,
                          first_column, temperature, statistics, at<double>(sums), n_threads);
      },
      Unlocked());
  m.def(
      "logprob_fold_finish",
      [](Address sums, int64_t rows, int64_t vocab, double temperature, bool statistics,
         Address logp, Address entropy, Address lse, Address top1, Address mean_logit,
         Address log_sum_sq) {
        cpu::logprob_fold_finish(at<double>(sums), rows, vocab, temperature, statistics,
                                 at<float>(logp), at<float>(entropy), at<double>(lse),
                                 at<float>(top1), at<float>(mean_logit), at<float>(log_sum_sq));
      },
      Unlocked());

  m.def(
      "gae",
      [](Address rewards, Address values, Address mask, int64_t rows, int64_t columns, double gamma,
         double lam, Address advantages, Address returns, int n_threads) {
        cpu::gae(at<float>(rewards), at<float>(values), at<uint8_t>(mask), rows, columns, gamma,
                 lam, at<float>(advantages), at<float>(returns), n_threads);
      },
      Unlocked());
  m.def(
      "whiten",
      [](Address x, Address mask, int64_t n, bool shift_mean, Address out, int n_threads) {
        return cpu::whiten(at<float>(x), at<uint8_t>(mask), n, shift_mean, at<float>(out),
                           n_threads);
      },
      Unlocked());
  m.def(
      "shaped_rewards",
      [](Address scores, Address logp, Address ref_logp, Address mask, int64_t rows,
         int64_t columns, double coefficient, int kind, Address rewards, Address kl,
         int n_threads) {
        return cpu::shaped_rewards(at<float>(scores), at<float>(logp), at<float>(ref_logp),
                                   at<uint8_t>(mask), rows, columns, coefficient, kind,
                                   at<float>(rewards), at<float>(kl), n_threads);
      },
      Unlocked());
  m.def(
      "plan_packing",
      [](Address lengths, int64_t n, int64_t capacity, Address order, Address offsets) {
        return cpu::plan_packing(at<int64_t>(lengths), n, capacity, at<int64_t>(order),
                                 at<int64_t>(offsets));
      },
      Unlocked());
  m.def(
      "sample",
      [](Address logits, int dtype, int64_t rows, int64_t vocab, Address seeds, Address steps,
         double temperature, int64_t top_k, double top_p, double min_p, Address tokens,
         Address logp, Address logp_full, int n_threads) {
        return cpu::sample(at<void>(logits), dtype, rows, vocab, at<int64_t>(seeds),
                           at<int64_t>(steps), temperature, top_k, top_p, min_p,
                           at<int64_t>(tokens), at<float>(logp), at<float>(logp_full), n_threads);
      },
      Unlocked());
  m.def(
      "gumbel_noise",
      [](Address seeds, Address steps, Address out, int64_t rows, int64_t vocab, int n_threads) {
        cpu::gumbel_noise(at<int64_t>(seeds), at<int64_t>(steps), rows, vocab, at<float>(out),
                          n_threads);
      },
      Unlocked());
  m.def(
      "penalise",
      [](Address logits, int dtype, int64_t rows, int64_t vocab, Address seen, int64_t length,
         double penalty, Address out, int n_threads) {
        return cpu::penalise(at<void>(logits), dtype, rows, vocab, at<int64_t>(seen), length,
                             static_cast<float>(penalty), at<float>(out), n_threads);
      },
      Unlocked());
  m.def(
      "decode_attention",
      [](Address query, int dtype, int64_t rows, int64_t heads, int64_t kv_heads, int64_t width,
         Address prompts, int64_t prompt_slots, int64_t prompt_room, Address answers,
         int64_t answer_slots, int64_t answer_room, Address prompt_of, Address prompt_lengths,
         Address answer_lengths, double scaling, int64_t window, Address out, int n_threads) {
        cpu::decode_attention(at<void>(query), dtype, rows, heads, kv_heads, width,
                              at<void>(prompts), prompt_slots, prompt_room, at<void>(answers),
                              answer_slots, answer_room, at<int64_t>(prompt_of),
                              at<int64_t>(prompt_lengths), at<int64_t>(answer_lengths),
                              static_cast<float>(scaling), window, at<void>(out), n_threads);
      },
      Unlocked());
  m.def(
      "segment_attention_forward",
      [](std::array<Address, 3> qkv, std::array<Strides, 3> strides, Address table,
         int64_t segments, int64_t heads, int64_t kv_heads, int64_t width, double scaling,
         int64_t window, Address out, Address lse, int n_threads) {
        cpu::segment_attention_forward(
            segment_batch(qkv, strides, table, segments, heads, kv_heads, width, scaling, window),
            at<float>(out), at<float>(lse), n_threads);
      },
      Unlocked());
  m.def(
      "segment_attention_backward",
      [](std::array<Address, 3> qkv, std::array<Strides, 3> strides, Address table,
         int64_t segments, int64_t heads, int64_t kv_heads, int64_t width, double scaling,
         int64_t window, Address out, Address lse, Address out_gradient,
         std::array<Address, 3> gradients, int n_threads) {
        cpu::segment_attention_backward(
            segment_batch(qkv, strides, table, segments, heads, kv_heads, width, scaling, window),
            {at<float>(out), at<float>(lse), at<float>(out_gradient), at<float>(gradients[0]),
             at<float>(gradients[1]), at<float>(gradients[2])},
            n_threads);
      },
      Unlocked());
  m.def(
      "few_rows_linear",
      [](Address x, int64_t rows, int64_t depth, Address weight, Address bias, int64_t width,
         Address out, int n_threads) {
        cpu::few_rows_linear(at<float>(x), rows, depth, at<float>(weight), at<float>(bias), width,
                             at<float>(out), n_threads);
      },
      Unlocked());
}
