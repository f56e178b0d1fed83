// Activations of fused maps as branch-free arithmetic, so that loops over them become vector code (libm's exp would not).
#pragma once

#include <cmath>
#include <cstdint>

#include "../fusion.h"
#include "vector.h"

// A lambda is a function of its own: unless it is inlined it would be compiled for the baseline only.
#define FASTNAS_LAMBDA_INLINE __attribute__((always_inline))

namespace fastnas {

// exp(x) = 2^n * exp(r), n the integer next to x / ln 2 and |r| <= ln 2 / 2; exp(r) by its Taylor series up to r^7 (error
// below 1e-8), so the result is within 2e-7 of its size. Infinite from 88.4 on, nothing below -87; NaN gives a number:
// what multiplies it is NaN too.
FASTNAS_INLINE float vector_exp(float x) {
  constexpr float kToInteger = 12582912.0f;  // 1.5 * 2^23: a float beside it has integer steps
  x = x > -87.0f ? x : -87.0f;
  x = x < 89.0f ? x : 89.0f;
  const float shifted = x * 1.44269504f + kToInteger;
  const float n = shifted - kToInteger;
  float r = x - n * 0.693359375f;  // ln 2 in two parts, the first of few digits: n times it is exact
  r = r + n * 2.12194440e-4f;
  float p = 1.98412698e-4f;
  p = p * r + 1.38888889e-3f;
  p = p * r + 8.33333333e-3f;
  p = p * r + 4.16666667e-2f;
  p = p * r + 1.66666667e-1f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  return p * as_float((as_bits(shifted) << 23) + 0x3f800000u);  // the low bits of `shifted` are n
}
FASTNAS_INLINE double vector_exp(double x) { return std::exp(x); }

template <Activation kActivation, typename A>
FASTNAS_INLINE A activate(A z) {
  if (kActivation == Activation::kRelu) return z < A(0) ? A(0) : z;  // NaN stays
  if (kActivation == Activation::kSilu) return z / (A(1) + vector_exp(-z));
  return z;
}

template <Activation kActivation, typename A>
FASTNAS_INLINE A activation_slope(A z) {
  if (kActivation == Activation::kRelu) return z <= A(0) ? A(0) : A(1);
  if (kActivation == Activation::kSilu) {
    const A sigmoid = A(1) / (A(1) + vector_exp(-z));
    return sigmoid * (A(1) + z * (A(1) - sigmoid));
  }
  return A(1);
}

}  // namespace fastnas
