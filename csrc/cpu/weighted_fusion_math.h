// Activations of fused maps as branch-free arithmetic, so that loops over them become vector code (libm's exp would not).
#pragma once

#include <cstdint>

#include "../fusion.h"
#include "vector.h"

namespace fastnas {

template <Activation kActivation, typename A>
FASTNAS_INLINE A activate(A z) {
  if (kActivation == Activation::kRelu) return z < A(0) ? A(0) : z;  // NaN stays
  if (kActivation == Activation::kSilu) return z * sigmoid(z);
  return z;
}

template <Activation kActivation, typename A>
FASTNAS_INLINE A activation_slope(A z) {
  if (kActivation == Activation::kRelu) return z <= A(0) ? A(0) : A(1);
  if (kActivation == Activation::kSilu) {
    const A share = sigmoid(z);
    return share * (A(1) + z * (A(1) - share));
  }
  return A(1);
}

}  // namespace fastnas
