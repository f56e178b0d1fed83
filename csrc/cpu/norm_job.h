// What the inner loops of GroupNorm and batch norm on the CPU are given. All of them walk rows x columns of elements, columns
// contiguous, with parameters and sums per column, so that one set of loops serves both layouts: channels-last a column is a
// channel and a row a pixel; else the plane of one channel is folded into rows of kLanes pixels and its parameters are repeated.
#pragma once

#include <cstdint>

#include "../activation.h"
#include "vector.h"

namespace fastnas {

constexpr int64_t kLanes = 128;    // columns of a folded plane
constexpr int64_t kTileRows = 64;  // rows that are summed in the type of the elements' sums before they join the double ones

// One column's parameters: z = (x - mean) * scale + offset + residual, and in the backward pass
// dx = scale * dz - lift - slope * (x - mean).
template <typename A>
struct Columns {
  const A *mean, *scale, *offset, *lift, *slope;
};

// The map that is read beside x (and grad): kResult, in the backward pass of relu and relu6, stands for z and the residual in it.
enum class Third { kNone, kResidual, kResult };

// S: type of x, grad and the results; R: type of the third map and the residual's gradient; strides in elements between rows.
template <typename S, typename R>
struct NormJob {
  using A = accumulator_t<S>;
  int64_t rows, cols;
  Activation activation;
  const S* x;
  int64_t x_stride;
  Third third_kind;
  const R* third;  // or null
  int64_t third_stride;
  Columns<A> columns;
  const S* grad;
  int64_t grad_stride;
  S* out;  // the forward result or dx; null: not wanted
  int64_t out_stride;
  R* residual_grad;  // or null
  int64_t residual_grad_stride;
  A* tile;             // scratch of 3 * cols
  double* first_sum;   // [cols]: means, or sums of dz * (x - mean)
  double* second_sum;  // [cols]: sums of squared deviations, or of dz
};

#define FASTNAS_FOR_NORM_TYPES(declare)                                            \
  declare(float, float) declare(double, double) declare(BFloat16, BFloat16)        \
  declare(BFloat16, float) declare(Float16, Float16) declare(Float16, float)
#define FASTNAS_NORM_LOOPS(S, R)                                                            \
  void norm_moments(const NormJob<S, R>&);       /* per column, into sums that start at 0 */ \
  void norm_apply(const NormJob<S, R>&);         /* out = act(z) */                         \
  void norm_gradient_sums(const NormJob<S, R>&); /* adds to the sums of each column */      \
  void norm_gradients(const NormJob<S, R>&);     /* dx and, where wanted, the residual's */
FASTNAS_FOR_NORM_TYPES(FASTNAS_NORM_LOOPS)

}  // namespace fastnas
