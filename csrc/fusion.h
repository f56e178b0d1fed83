// Weighted fusion of a BiFPN node (EfficientDet, Tan et al. 2020, section 3.3): what the CPU and the CUDA kernels share.
//
//   out = activation(sum over i of c_i * R_i(x_i))
//
// R_i brings an input to the node's size: nearest-neighbour up, 3x3 / stride 2 max-pool down, or nothing. The shares c_i:
//   fast     relu(w_i) / (eps + sum over j of relu(w_j))
//   softmax  exp(w_i) / sum over j of exp(w_j)
//   sum      1
// Here: which input cells an output cell needs and the other way round, the shares, and the gradient of the weights.
#pragma once

#include <cmath>
#include <cstdint>

#include "activation.h"
#include "geometry.h"

// On the GPU arrays that loops index must become registers.
#if defined(__CUDA_ARCH__)
#define FASTNAS_UNROLL _Pragma("unroll")
#else
#define FASTNAS_UNROLL
#endif

namespace fastnas {

enum class Method { kFast, kSoftmax, kSum };
enum class Resample { kSame, kUp, kDown };

constexpr int kMostInputs = 3;

// ---------------------------------------------------------------------------------------------------------------------
// Cells

// One axis of F.interpolate(mode="nearest") from `coarse` to `fine` = 2 * coarse - 1, 2 * coarse or 2 * coarse + 1 cells:
// floor(cell * coarse / fine), in integers, because torch's fp32 product rounds on axes of more than 2800 cells.
struct UpAxis {
  int32_t fine, shift;

  FASTNAS_HD UpAxis() : fine(0), shift(0) {}
  FASTNAS_HD UpAxis(int64_t coarse_cells, int64_t fine_cells)
      : fine(static_cast<int32_t>(fine_cells)), shift(fine_cells == 2 * coarse_cells + 1 ? 1 : 0) {}

  FASTNAS_HD int32_t source(int32_t cell) const { return cell < shift ? 0 : (cell - shift) >> 1; }
  // The fine cells that read coarse cell c: first(c) to end(c) - 1, at most three.
  FASTNAS_HD int32_t first(int32_t c) const { return c == 0 ? 0 : 2 * c + shift; }
  FASTNAS_HD int32_t end(int32_t c) const { return 2 * c + shift + 2 < fine ? 2 * c + shift + 2 : fine; }
};

// One axis of a max-pool over 3 cells with stride 2: window o reads cells start(o) to start(o) + 2 that are on the map.
// `pad` cells lie before the map: one in torch's symmetric form; TensorFlow's SAME puts the odd one behind the map.
struct PoolAxis {
  int32_t size, windows, pad;

  FASTNAS_HD PoolAxis() : size(0), windows(0), pad(0) {}
  FASTNAS_HD PoolAxis(int64_t cells, bool symmetric)
      : size(static_cast<int32_t>(cells)),
        windows(static_cast<int32_t>((cells + 1) / 2)),
        pad(symmetric || cells % 2 ? 1 : 0) {}

  FASTNAS_HD int32_t start(int32_t window) const { return 2 * window - pad; }
  // The tap's cell; a tap outside repeats the nearest one inside, which changes no maximum and not where it is found.
  FASTNAS_HD int32_t cell(int32_t window, int32_t tap) const {
    const int32_t at = start(window) + tap;
    return at < 0 ? 0 : at >= size ? size - 1 : at;
  }
  // The windows that read a cell: last_window(cell) (when it exists) as tap 0 or 1, and, when the tap is 0, the window
  // before it as tap 2.
  FASTNAS_HD int32_t last_window(int32_t cell) const { return (cell + pad) >> 1; }
  FASTNAS_HD int32_t tap_in_last(int32_t cell) const { return (cell + pad) & 1; }
  // The cells that a band of windows [from, to) answers for, so that every cell has one band.
  FASTNAS_HD int32_t first_owned(int32_t from) const { return from == 0 ? 0 : start(from); }
  FASTNAS_HD int32_t end_owned(int32_t to) const { return to == windows ? size : start(to); }
};

// torch's max_pool2d takes the first of equal maxima and the last NaN.
template <typename T>
FASTNAS_HD bool replaces(T value, T best) {
  return value > best || value != value;
}

// ---------------------------------------------------------------------------------------------------------------------
// Shares

template <typename T>
struct Shares {
  T share[kMostInputs];

  // weights: [count], not read by Method::kSum
  FASTNAS_HD Shares(const T* weights, int count, Method method, T eps) {
    T total = method == Method::kFast ? eps : T(0);
    T most = T(0);
    if (method == Method::kSoftmax) {
      most = weights[0];
      FASTNAS_UNROLL
      for (int i = 1; i < kMostInputs; ++i) {
        if (i < count && weights[i] > most) most = weights[i];
      }
    }
    FASTNAS_UNROLL
    for (int i = 0; i < kMostInputs; ++i) {
      share[i] = T(0);
      if (i >= count) continue;
      if (method == Method::kSum) {
        share[i] = T(1);
      } else if (method == Method::kFast) {
        share[i] = weights[i] < T(0) ? T(0) : weights[i];  // NaN stays
      } else {
        share[i] = std::exp(weights[i] - most);
      }
      total += share[i];
    }
    if (method == Method::kSum) return;
    FASTNAS_UNROLL
    for (int i = 0; i < kMostInputs; ++i) share[i] /= total;
  }
};

// weights, dots, gradients: [kMostInputs]; dots[i]: gradient of the loss by share i. By the quotient rule
// d c_i / d u_j = (delta_ij - c_i) / total, where u is what is normalised: relu(w) or exp(w).
template <typename T>
FASTNAS_HD void weight_gradients(const T* weights, const T* dots, int count, Method method, T eps, T* gradients) {
  const Shares<T> shares(weights, count, method, eps);
  T mean = T(0), total = eps;
  FASTNAS_UNROLL
  for (int i = 0; i < kMostInputs; ++i) {
    if (i >= count) continue;
    mean += dots[i] * shares.share[i];
    total += weights[i] < T(0) ? T(0) : weights[i];
  }
  FASTNAS_UNROLL
  for (int i = 0; i < kMostInputs; ++i) {
    if (i >= count) continue;
    const T centred = dots[i] - mean;
    if (method == Method::kSoftmax) {
      gradients[i] = shares.share[i] * centred;
    } else {
      gradients[i] = weights[i] <= T(0) ? T(0) : centred / total;
    }
  }
}

}  // namespace fastnas
