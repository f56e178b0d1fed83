// The inner loops of GroupNorm on the CPU. All of them walk rows x columns of elements, columns contiguous, with parameters
// and sums per column, so that one set of loops serves both layouts: channels-last a column is a channel and a row a pixel;
// else the plane of one channel is folded into rows of kLanes pixels and its parameters are repeated.
// Instantiated per storage type and instruction set in group_norm.cpp and group_norm_backward.cpp.
#pragma once

#include <cstdint>

#include "../group_norm.h"
#include "vector.h"

namespace fastnas {

constexpr int64_t kLanes = 128;    // columns of a folded plane
constexpr int64_t kTileRows = 64;  // rows that are summed in the type of the elements' sums before they join the double ones

// act(z); both comparisons let NaN through, as torch does.
template <Activation kAct, typename A>
FASTNAS_INLINE A activate(A z) {
  if (kAct == Activation::kRelu) return z < A(0) ? A(0) : z;
  if (kAct == Activation::kSilu) return z / (A(1) + exponential(-z));
  return z;
}
// grad * act'(z)
template <Activation kAct, typename A>
FASTNAS_INLINE A activation_gradient(A grad, A z) {
  if (kAct == Activation::kRelu) return z <= A(0) ? A(0) : grad;
  if (kAct == Activation::kSilu) {
    const A sigmoid = A(1) / (A(1) + exponential(-z));
    return grad * sigmoid * (A(1) + z * (A(1) - sigmoid));
  }
  return grad;
}

// One column's parameters: z = (x - mean) * scale + offset + residual, and in the backward pass
// dx = scale * dz - lift - slope * (x - mean).
template <typename A>
struct Columns {
  const A* __restrict mean;
  const A* __restrict scale;
  const A* __restrict offset;
  const A* __restrict lift;
  const A* __restrict slope;
};

// S: type of x, grad and the results; R: type of the residual and its gradient; strides in elements between rows.
template <typename S, typename R>
struct NormJob {
  using A = accumulator_t<S>;
  int64_t rows, cols;
  Activation activation;
  const S* x;
  int64_t x_stride;
  const R* residual;  // or null
  int64_t residual_stride;
  Columns<A> columns;
  const S* grad;
  int64_t grad_stride;
  S* out;  // the forward result or dx; null: not wanted
  int64_t out_stride;
  R* residual_grad;  // or null
  int64_t residual_grad_stride;
  A* tile;  // scratch of 3 * cols
  double* __restrict first_sum;   // [cols]: means, or sums of dz * (x - mean)
  double* __restrict second_sum;  // [cols]: sums of squared deviations, or of dz
};

// ---------------------------------------------------------------------------------------------------------------------
// Mean and sum of squared deviations per column, into sums that start at zero. Each tile is summed as distances from its first row, which bounds the loss by
// cancellation to kTileRows roundings whatever the mean is (one far element costs the tile's sum d^2 * 64 roundings and adds
// d^2 to the true value); tiles are joined by the formula of Chan et al. 1979.

template <typename S, typename R>
FASTNAS_INLINE void moments_body(const NormJob<S, R>& job) {
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
      for (int64_t c = 0; c < cols; ++c) {
        const A d0 = widen(x0[c]) - first[c], d1 = widen(x1[c]) - first[c];
        const A d2 = widen(x2[c]) - first[c], d3 = widen(x3[c]) - first[c];
        sum[c] += (d0 + d1) + (d2 + d3);
        square[c] += (d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3);
      }
    }
    for (; r < rows; ++r) {
      const S* __restrict row = x + r * job.x_stride;
      for (int64_t c = 0; c < cols; ++c) {
        const A d = widen(row[c]) - first[c];
        sum[c] += d;
        square[c] += d * d;
      }
    }
    // In double, so that squares beyond the range of float give an infinite variance and not NaN.
    const double n = static_cast<double>(rows), before = static_cast<double>(begin), share = n / (before + n);
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
// out = act(z)

template <Activation kAct, bool kResidual, typename S, typename R>
FASTNAS_INLINE void apply_rows(const NormJob<S, R>& job) {
  using A = accumulator_t<S>;
  const Columns<A> columns = job.columns;
  for (int64_t r = 0; r < job.rows; ++r) {
    const S* __restrict x = job.x + r * job.x_stride;
    const R* __restrict residual = kResidual ? job.residual + r * job.residual_stride : nullptr;
    S* __restrict out = job.out + r * job.out_stride;
    for (int64_t c = 0; c < job.cols; ++c) {
      A z = (widen(x[c]) - columns.mean[c]) * columns.scale[c] + columns.offset[c];
      if (kResidual) z += static_cast<A>(widen(residual[c]));
      narrow(activate<kAct>(z), out[c]);
    }
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// first_sum += dz * (x - mean), second_sum += dz, per column

template <Activation kAct, bool kResidual, typename S, typename R>
FASTNAS_INLINE void gradient_sum_rows(const NormJob<S, R>& job) {
  using A = accumulator_t<S>;
  const Columns<A> columns = job.columns;
  const int64_t cols = job.cols;
  A* __restrict along = job.tile;
  A* __restrict plain = job.tile + cols;
  for (int64_t begin = 0; begin < job.rows; begin += kTileRows) {
    const int64_t end = job.rows - begin < kTileRows ? job.rows : begin + kTileRows;
    for (int64_t c = 0; c < 2 * cols; ++c) job.tile[c] = A(0);
    for (int64_t r = begin; r < end; ++r) {
      const S* __restrict x = job.x + r * job.x_stride;
      const S* __restrict grad = job.grad + r * job.grad_stride;
      const R* __restrict residual = kResidual ? job.residual + r * job.residual_stride : nullptr;
      for (int64_t c = 0; c < cols; ++c) {
        const A centred = widen(x[c]) - columns.mean[c];
        A z = centred * columns.scale[c] + columns.offset[c];
        if (kResidual) z += static_cast<A>(widen(residual[c]));
        const A dz = activation_gradient<kAct>(static_cast<A>(widen(grad[c])), z);
        along[c] += dz * centred;
        plain[c] += dz;
      }
    }
    for (int64_t c = 0; c < cols; ++c) {
      job.first_sum[c] += along[c];
      job.second_sum[c] += plain[c];
    }
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// dx = scale * dz - lift - slope * (x - mean), dresidual = dz

template <Activation kAct, bool kResidual, bool kInput, bool kResidualGrad, typename S, typename R>
FASTNAS_INLINE void gradient_rows(const NormJob<S, R>& job) {
  using A = accumulator_t<S>;
  const Columns<A> columns = job.columns;
  for (int64_t r = 0; r < job.rows; ++r) {
    const S* __restrict x = job.x + r * job.x_stride;
    const S* __restrict grad = job.grad + r * job.grad_stride;
    const R* __restrict residual = kResidual ? job.residual + r * job.residual_stride : nullptr;
    S* __restrict out = kInput ? job.out + r * job.out_stride : nullptr;
    R* __restrict residual_grad = kResidualGrad ? job.residual_grad + r * job.residual_grad_stride : nullptr;
    for (int64_t c = 0; c < job.cols; ++c) {
      const A centred = widen(x[c]) - columns.mean[c];
      A z = centred * columns.scale[c] + columns.offset[c];
      if (kResidual) z += static_cast<A>(widen(residual[c]));
      const A dz = activation_gradient<kAct>(static_cast<A>(widen(grad[c])), z);
      if (kInput) narrow(columns.scale[c] * dz - (columns.lift[c] + columns.slope[c] * centred), out[c]);
      if (kResidualGrad) narrow(dz, residual_grad[c]);
    }
  }
}

}  // namespace fastnas
