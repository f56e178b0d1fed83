// The bodies of the loops of norm_job.h, compiled per storage type and instruction set in norm_forward.cpp and norm_backward.cpp.
#pragma once

#include <cstdint>
#include <type_traits>

#include "norm_job.h"
#include "vector.h"

namespace fastnas {

constexpr int kRowsAtOnce = 4;  // so that the parameters of a column are loaded once for so many rows

// act(z); both comparisons let NaN through, as torch does.
template <Activation kAct, typename A>
FASTNAS_INLINE A activate(A z) {
  if (kAct == Activation::kRelu) return z < A(0) ? A(0) : z;
  if (kAct == Activation::kRelu6) return z < A(0) ? A(0) : z > A(6) ? A(6) : z;
  if (kAct == Activation::kSilu) return z * sigmoid(z);
  return z;
}
// grad * act'(z); of relu and relu6 the result serves as well as z.
template <Activation kAct, typename A>
FASTNAS_INLINE A activation_gradient(A grad, A z) {
  if (kAct == Activation::kRelu) return z <= A(0) ? A(0) : grad;
  if (kAct == Activation::kRelu6) return (z <= A(0)) | (z >= A(6)) ? A(0) : grad;
  if (kAct == Activation::kSilu) {
    const A share = sigmoid(z);
    return grad * share * (A(1) + z * (A(1) - share));
  }
  return grad;
}

// ---------------------------------------------------------------------------------------------------------------------
// Mean and sum of squared deviations per column, into sums that start at zero. Each tile is summed as distances from its first
// row, which bounds the loss by cancellation to kTileRows roundings whatever the mean is (one far element costs the tile's sum
// d^2 * 64 roundings and adds d^2 to the true value); tiles are joined by the formula of Chan et al. 1979.

template <typename S, typename R>
FASTNAS_INLINE void norm_moments_body(const NormJob<S, R>& job) {
  using A = accumulator_t<S>;
  const int64_t cols = job.cols;
  A* __restrict first = job.tile;
  A* __restrict sum = job.tile + cols;
  A* __restrict square = job.tile + 2 * cols;
  double* __restrict mean = job.first_sum;
  double* __restrict deviation = job.second_sum;
  for (int64_t begin = 0; begin < job.rows; begin += kTileRows) {
    const int64_t rows = job.rows - begin < kTileRows ? job.rows - begin : kTileRows;
    const S* __restrict x = job.x + begin * job.x_stride;
    FASTNAS_INDEPENDENT
    for (int64_t c = 0; c < cols; ++c) {
      first[c] = widen(x[c]);
      sum[c] = square[c] = A(0);
    }
    int64_t r = 1;
    for (; r + 3 < rows; r += 4) {
      const S* __restrict x0 = x + r * job.x_stride;
      const S* __restrict x1 = x0 + job.x_stride;
      const S* __restrict x2 = x1 + job.x_stride;
      const S* __restrict x3 = x2 + job.x_stride;
      FASTNAS_INDEPENDENT
      for (int64_t c = 0; c < cols; ++c) {
        const A d0 = widen(x0[c]) - first[c], d1 = widen(x1[c]) - first[c];
        const A d2 = widen(x2[c]) - first[c], d3 = widen(x3[c]) - first[c];
        sum[c] += (d0 + d1) + (d2 + d3);
        square[c] += (d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3);
      }
    }
    for (; r < rows; ++r) {
      const S* __restrict row = x + r * job.x_stride;
      FASTNAS_INDEPENDENT
      for (int64_t c = 0; c < cols; ++c) {
        const A d = widen(row[c]) - first[c];
        sum[c] += d;
        square[c] += d * d;
      }
    }
    // In double, so that squares beyond the range of float give an infinite variance and not NaN.
    const double n = static_cast<double>(rows), before = static_cast<double>(begin), share = n / (before + n);
    FASTNAS_INDEPENDENT
    for (int64_t c = 0; c < cols; ++c) {
      const double s = sum[c], shift = s / n;
      double own = square[c] - s * shift;
      own = own < 0 ? 0 : own;
      const double delta = first[c] + shift - mean[c];
      mean[c] += delta * share;
      deviation[c] += own + delta * delta * (before * share);
    }
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// The forward pass. Rows are taken kRowsAtOnce at a time, what is left one by one.

#define FASTNAS_EACH_ROW _Pragma("GCC unroll 4") for (int k = 0; k < kRows; ++k)

template <int kRows, Activation kAct, bool kResidual, typename S, typename R>
FASTNAS_INLINE void apply_block(const NormJob<S, R>& job, int64_t row) {
  using A = accumulator_t<S>;
  const A* __restrict mean = job.columns.mean;
  const A* __restrict scale = job.columns.scale;
  const A* __restrict offset = job.columns.offset;
  const int64_t cols = job.cols, xs = job.x_stride, ts = job.third_stride, os = job.out_stride;
  const S* __restrict x = job.x + row * xs;
  const R* __restrict residual = kResidual ? job.third + row * ts : nullptr;
  S* __restrict out = job.out + row * os;
  FASTNAS_INDEPENDENT
  for (int64_t c = 0; c < cols; ++c) {
    const A m = mean[c], s = scale[c], o = offset[c];
    FASTNAS_EACH_ROW {
      A z = (widen(x[k * xs + c]) - m) * s + o;
      if (kResidual) z += static_cast<A>(widen(residual[k * ts + c]));
      narrow(activate<kAct>(z), out[k * os + c]);
    }
  }
}

// out = act(z)
template <Activation kAct, bool kResidual, typename S, typename R>
FASTNAS_INLINE void apply_rows(const NormJob<S, R>& job) {
  int64_t r = 0;
  for (; r + kRowsAtOnce <= job.rows; r += kRowsAtOnce) apply_block<kRowsAtOnce, kAct, kResidual>(job, r);
  for (; r < job.rows; ++r) apply_block<1, kAct, kResidual>(job, r);
}

// ---------------------------------------------------------------------------------------------------------------------
// The backward pass

template <int kRows, Activation kAct, Third kThird, typename S, typename R>
FASTNAS_INLINE void gradient_sum_block(const NormJob<S, R>& job, int64_t row) {
  using A = accumulator_t<S>;
  const A* __restrict mean = job.columns.mean;
  const A* __restrict scale = job.columns.scale;
  const A* __restrict offset = job.columns.offset;
  const int64_t cols = job.cols, xs = job.x_stride, ts = job.third_stride, gs = job.grad_stride;
  const S* __restrict x = job.x + row * xs;
  const S* __restrict grad = job.grad + row * gs;
  const R* __restrict third = kThird == Third::kNone ? nullptr : job.third + row * ts;
  A* __restrict along = job.tile;
  A* __restrict plain = job.tile + cols;
  FASTNAS_INDEPENDENT
  for (int64_t c = 0; c < cols; ++c) {
    const A m = mean[c], s = scale[c], o = offset[c];
    A sum_along = along[c], sum_plain = plain[c];
    FASTNAS_EACH_ROW {
      const A centred = widen(x[k * xs + c]) - m;
      A z = centred * s + o;
      if (kThird == Third::kResidual) z += static_cast<A>(widen(third[k * ts + c]));
      if (kThird == Third::kResult) z = static_cast<A>(widen(third[k * ts + c]));
      const A dz = activation_gradient<kAct>(static_cast<A>(widen(grad[k * gs + c])), z);
      sum_along += dz * centred;
      sum_plain += dz;
    }
    along[c] = sum_along;
    plain[c] = sum_plain;
  }
}

// first_sum += dz * (x - mean), second_sum += dz, per column
template <Activation kAct, Third kThird, typename S, typename R>
FASTNAS_INLINE void gradient_sum_rows(const NormJob<S, R>& job) {
  const int64_t cols = job.cols;
  for (int64_t begin = 0; begin < job.rows; begin += kTileRows) {
    const int64_t end = job.rows - begin < kTileRows ? job.rows : begin + kTileRows;
    FASTNAS_INDEPENDENT
    for (int64_t c = 0; c < 2 * cols; ++c) job.tile[c] = 0;
    int64_t r = begin;
    for (; r + kRowsAtOnce <= end; r += kRowsAtOnce) gradient_sum_block<kRowsAtOnce, kAct, kThird>(job, r);
    for (; r < end; ++r) gradient_sum_block<1, kAct, kThird>(job, r);
    FASTNAS_INDEPENDENT
    for (int64_t c = 0; c < cols; ++c) {
      job.first_sum[c] += job.tile[c];
      job.second_sum[c] += job.tile[cols + c];
    }
  }
}

template <int kRows, Activation kAct, Third kThird, bool kInput, bool kResidualGrad, typename S, typename R>
FASTNAS_INLINE void gradient_block(const NormJob<S, R>& job, int64_t row) {
  using A = accumulator_t<S>;
  const A* __restrict mean = job.columns.mean;
  const A* __restrict scale = job.columns.scale;
  const A* __restrict offset = job.columns.offset;
  const A* __restrict lift = job.columns.lift;
  const A* __restrict slope = job.columns.slope;
  const int64_t cols = job.cols, xs = job.x_stride, ts = job.third_stride, gs = job.grad_stride;
  const int64_t os = job.out_stride, ds = job.residual_grad_stride;
  const S* __restrict x = job.x + row * xs;
  const S* __restrict grad = job.grad + row * gs;
  const R* __restrict third = kThird == Third::kNone ? nullptr : job.third + row * ts;
  S* __restrict out = kInput ? job.out + row * os : nullptr;
  R* __restrict residual_grad = kResidualGrad ? job.residual_grad + row * ds : nullptr;
  FASTNAS_INDEPENDENT
  for (int64_t c = 0; c < cols; ++c) {
    const A m = mean[c], s = scale[c], o = offset[c], l = lift[c], p = slope[c];
    FASTNAS_EACH_ROW {
      const A centred = widen(x[k * xs + c]) - m;
      A z = centred * s + o;
      if (kThird == Third::kResidual) z += static_cast<A>(widen(third[k * ts + c]));
      if (kThird == Third::kResult) z = static_cast<A>(widen(third[k * ts + c]));
      const A dz = activation_gradient<kAct>(static_cast<A>(widen(grad[k * gs + c])), z);
      if (kInput) narrow(s * dz - (l + p * centred), out[k * os + c]);
      if (kResidualGrad) narrow(dz, residual_grad[k * ds + c]);
    }
  }
}

// dx = scale * dz - lift - slope * (x - mean), dresidual = dz
template <Activation kAct, Third kThird, bool kInput, bool kResidualGrad, typename S, typename R>
FASTNAS_INLINE void gradient_rows(const NormJob<S, R>& job) {
  int64_t r = 0;
  for (; r + kRowsAtOnce <= job.rows; r += kRowsAtOnce) {
    gradient_block<kRowsAtOnce, kAct, kThird, kInput, kResidualGrad>(job, r);
  }
  for (; r < job.rows; ++r) gradient_block<1, kAct, kThird, kInput, kResidualGrad>(job, r);
}

// Defines a loop for all storage types, each compiled per instruction set. (target_clones and templates do not mix, so the types
// are spelled out.)
#define FASTNAS_COMPILE_FOR_NORM_TYPES(name)                                             \
  FASTNAS_CLONES void name(const NormJob<float, float>& job) { name##_body(job); }       \
  FASTNAS_CLONES void name(const NormJob<double, double>& job) { name##_body(job); }     \
  FASTNAS_CLONES void name(const NormJob<BFloat16, BFloat16>& job) { name##_body(job); } \
  FASTNAS_CLONES void name(const NormJob<BFloat16, float>& job) { name##_body(job); }    \
  FASTNAS_CLONES void name(const NormJob<Float16, Float16>& job) { name##_body(job); }   \
  FASTNAS_CLONES void name(const NormJob<Float16, float>& job) { name##_body(job); }

}  // namespace fastnas
