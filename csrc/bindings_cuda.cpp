// fastrl._core_cuda: the CUDA library for Python. Device pointers and the stream cross as integers.
#include <cuda_runtime_api.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "cuda/ops.h"

namespace py = pybind11;
using namespace fastrl;  // NOLINT

namespace {

using Address = std::uintptr_t;
using Unlocked = py::call_guard<py::gil_scoped_release>;

template <typename T>
[[maybe_unused]] T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

[[maybe_unused]] cudaStream_t stream_at(Address address) {
  return reinterpret_cast<cudaStream_t>(address);
}

// Every launch's status goes through here: a launch that was refused must not pass in silence.
[[maybe_unused]] void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) {
    throw std::runtime_error(std::string("fastrl: ") + what + ": " + cudaGetErrorString(status));
  }
}

}  // namespace

PYBIND11_MODULE(_core_cuda, m) {
  m.doc() = "CUDA kernels of fastrl on raw device pointers; called through fastrl.ops only.";
  m.attr("runtime_version") = CUDART_VERSION;
  m.def(
      "probe",
      []() -> std::string {
        const cudaError_t status = cuda::probe();
        return status == cudaSuccess ? "" : cudaGetErrorString(status);
      },
      "Empty if the current device can run this library, else CUDA's own words.");

  m.def("token_logprobs_splits", cuda::token_logprobs_splits);
  m.def(
      "token_logprobs_forward",
      [](Address logits, int dtype, Address targets, int64_t rows, int64_t vocab,
         int64_t row_stride, double temperature, int splits, Address partials, Address logp,
         Address entropy, Address lse, Address stream) {
        check(cuda::token_logprobs_forward(at<void>(logits), dtype, at<int64_t>(targets), rows,
                                           vocab, row_stride, temperature, splits,
                                           at<float>(partials), at<float>(logp), at<float>(entropy),
                                           at<float>(lse), stream_at(stream)),
              "token_logprobs_forward");
      },
      Unlocked());
  m.def(
      "token_logprobs_backward",
      [](Address logits, int dtype, Address targets, int64_t rows, int64_t columns,
         int64_t row_stride, int64_t first_column, int64_t vocab, double temperature, Address lse,
         Address exact_lse, Address entropy, Address grad_logp, Address grad_entropy,
         Address others, Address out, int64_t out_stride, Address stream) {
        check(cuda::token_logprobs_backward(
                  at<void>(logits), dtype, at<int64_t>(targets), rows, columns, row_stride,
                  first_column, vocab, temperature, at<float>(lse), at<double>(exact_lse),
                  at<float>(entropy), at<float>(grad_logp), at<float>(grad_entropy),
                  at<float>(others), at<void>(out), out_stride, stream_at(stream)),
              "token_logprobs_backward");
      },
      Unlocked());
  m.def(
      "logprob_fold_start",
      [](Address sums, int64_t rows, Address stream) {
        check(cuda::logprob_fold_start(at<double>(sums), rows, stream_at(stream)),
              "logprob_fold_start");
      },
      Unlocked());
  m.def(
      "logprob_fold",
      [](Address logits, int dtype, Address targets, int64_t rows, int64_t columns,
         int64_t row_stride, int64_t first_column, double temperature, bool statistics,
         Address sums, Address stream) {
        check(cuda::logprob_fold(at<void>(logits), dtype, at<int64_t>(targets), rows, columns,
                                 row_stride, first_column, temperature, statistics,
                                 at<double>(sums), stream_at(stream)),
              "logprob_fold");
      },
      Unlocked());
  m.def(
      "logprob_fold_finish",
      [](Address sums, int64_t rows, int64_t vocab, double temperature, bool statistics,
         Address logp, Address entropy, Address lse, Address top1, Address mean_logit,
         Address log_sum_sq, Address stream) {
        check(cuda::logprob_fold_finish(at<double>(sums), rows, vocab, temperature, statistics,
                                        at<float>(logp), at<float>(entropy), at<double>(lse),
                                        at<float>(top1), at<float>(mean_logit),
                                        at<float>(log_sum_sq), stream_at(stream)),
              "logprob_fold_finish");
      },
      Unlocked());
  m.def(
      "gae",
      [](Address rewards, Address values, Address mask, int64_t rows, int64_t columns, double gamma,
         double lam, Address advantages, Address returns, Address stream) {
        check(cuda::gae(at<float>(rewards), at<float>(values), at<uint8_t>(mask), rows, columns,
                        gamma, lam, at<float>(advantages), at<float>(returns), stream_at(stream)),
              "gae");
      },
      Unlocked());
  m.def("whiten_shares", cuda::whiten_shares);
  m.def(
      "whiten",
      [](Address x, Address mask, int64_t n, bool shift_mean, int share_count, Address shares,
         Address out, Address stream) {
        check(cuda::whiten(at<float>(x), at<uint8_t>(mask), n, shift_mean, share_count,
                           at<double>(shares), at<float>(out), stream_at(stream)),
              "whiten");
      },
      Unlocked());
  m.def(
      "shaped_rewards",
      [](Address scores, Address logp, Address ref_logp, Address mask, int64_t rows,
         int64_t columns, double coefficient, int kind, Address rewards, Address kl,
         Address stream) {
        check(cuda::shaped_rewards(at<float>(scores), at<float>(logp), at<float>(ref_logp),
                                   at<uint8_t>(mask), rows, columns, coefficient, kind,
                                   at<float>(rewards), at<float>(kl), stream_at(stream)),
              "shaped_rewards");
      },
      Unlocked());
  m.def(
      "sample",
      [](Address logits, int dtype, int64_t rows, int64_t vocab, Address seeds, Address steps,
         double temperature, int64_t top_k, double top_p, double min_p, Address tokens,
         Address logp, Address logp_full, Address stream) {
        check(
            cuda::sample(at<void>(logits), dtype, rows, vocab, at<int64_t>(seeds),
                         at<int64_t>(steps), temperature, top_k, top_p, min_p, at<int64_t>(tokens),
                         at<float>(logp), at<float>(logp_full), stream_at(stream)),
            "sample");
      },
      Unlocked());
  m.def(
      "gumbel_noise",
      [](Address seeds, Address steps, Address out, int64_t rows, int64_t vocab, Address stream) {
        check(cuda::gumbel_noise(at<int64_t>(seeds), at<int64_t>(steps), rows, vocab,
                                 at<float>(out), stream_at(stream)),
              "gumbel_noise");
      },
      Unlocked());
  m.def(
      "penalise",
      [](Address logits, int dtype, int64_t rows, int64_t vocab, Address seen, int64_t length,
         double penalty, Address out, Address stream) {
        check(cuda::penalise(at<void>(logits), dtype, rows, vocab, at<int64_t>(seen), length,
                             penalty, at<float>(out), stream_at(stream)),
              "penalise");
      },
      Unlocked());
}
