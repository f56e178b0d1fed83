// The arithmetic of weight standardisation that the CPU and the CUDA kernels share. No torch here.
//
// Weight Standardization (Qiao, Wang, Liu, Shen, Yuille 2019, arXiv 1903.10520), per filter w of K = I * kh * kw weights:
//   out = factor * what,  what = (w - mean) * rstd,  factor = gain * scale
//   timm, BiT (biased):    rstd = 1 / sqrt(sum (w - mean)^2 / K + eps)
//   the paper (unbiased):  rstd = 1 / (sqrt(sum (w - mean)^2 / (K - 1)) + eps)
// Backwards, with g the gradient of out:
//   dw = factor * (rstd * (g - mean(g)) - what * pull * sum(g * what)),  dgain = scale * sum(g * what)
// where pull = -(d rstd / d w) / (rstd * what): rstd / K, or 1 / ((K - 1) * deviation).
#pragma once

#include "geometry.h"

namespace fastnas {

template <typename T>
struct FilterStats {
  T mean, rstd, pull;
};

// squares: sum of (w - mean)^2. A filter of one weight equals its mean: out and gradient are 0 (torch's std would be NaN, and
// batch_norm refuses). A constant filter has pull 0 in the unbiased form, the subgradient that torch takes of std at 0.
template <typename T>
FASTNAS_HD FilterStats<T> filter_stats(T mean, T squares, int64_t size, T eps, bool unbiased) {
  if (size <= 1) return {mean, T(0), T(0)};
  if (!unbiased) {
    const T rstd = T(1) / std::sqrt(squares / static_cast<T>(size) + eps);
    return {mean, rstd, rstd / static_cast<T>(size)};
  }
  const T deviation = std::sqrt(squares / static_cast<T>(size - 1));
  const T pull = squares > T(0) ? T(1) / (static_cast<T>(size - 1) * deviation) : T(0);
  return {mean, T(1) / (deviation + eps), pull};
}

// dw = grad_slope * g + weight_slope * (w - mean) + offset
template <typename T>
struct FilterGradient {
  T grad_slope, weight_slope, offset;
};

// grad_sum: sum of g; product: sum of g * what
template <typename T>
FASTNAS_HD FilterGradient<T> filter_gradient(const FilterStats<T>& stats, T factor, T grad_sum, T product, int64_t size) {
  const T slope = factor * stats.rstd;
  return {slope, -slope * (stats.pull * product), -slope * (grad_sum / static_cast<T>(size))};
}

}  // namespace fastnas
