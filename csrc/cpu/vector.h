// What plain loops need to become fast vector code in one portable binary.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

// One function, compiled for AVX-512, AVX2+FMA and the baseline, chosen when the library is loaded. Needs GCC and glibc's
// indirect functions; elsewhere (clang, macOS, ARM) the baseline alone is compiled, which on ARM already means NEON.
#if defined(__x86_64__) && defined(__linux__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define FASTNAS_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FASTNAS_CLONES
#endif
// Before a loop whose iterations touch different elements: with many arrays the compiler would give up proving it.
#if defined(__clang__)
#define FASTNAS_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define FASTNAS_INDEPENDENT _Pragma("GCC ivdep")
#endif
#define FASTNAS_INLINE inline __attribute__((always_inline))
// A lambda is a function of its own: unless it is inlined it would be compiled for the baseline only.
#define FASTNAS_LAMBDA_INLINE __attribute__((always_inline))

namespace fastnas {

// 16-bit floats as bits, with conversions that vectorise (no calls, no branches).
// (References: a copy of a struct that is used twice would keep GCC from it.)
struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

FASTNAS_INLINE float as_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}
FASTNAS_INLINE uint32_t as_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

FASTNAS_INLINE float widen(float value) { return value; }
FASTNAS_INLINE double widen(double value) { return value; }
FASTNAS_INLINE float widen(const BFloat16& value) { return as_float(static_cast<uint32_t>(value.bits) << 16); }
FASTNAS_INLINE float widen(const Float16& value) {
  // The exponent moves from bias 15 to 127 by a multiplication, which is exact for subnormals too.
  const uint32_t magnitude = static_cast<uint32_t>(value.bits & 0x7fffu) << 13;
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
  const uint32_t finite = as_bits(as_float(magnitude) * as_float(0x77800000u));  // 2^112
  const uint32_t special = magnitude | 0x7f800000u;                             // infinity and NaN
  return as_float((magnitude >= 0x0f800000u ? special : finite) | sign);
}

FASTNAS_INLINE void narrow(float value, float& to) { to = value; }
FASTNAS_INLINE void narrow(double value, double& to) { to = value; }
FASTNAS_INLINE void narrow(float value, BFloat16& to) {
  const uint32_t bits = as_bits(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;  // to nearest, ties to even
  to.bits = static_cast<uint16_t>(value != value ? 0x7fc0u : rounded);
}
FASTNAS_INLINE void narrow(float value, Float16& to) {
  const uint32_t bits = as_bits(value);
  const uint32_t magnitude = bits & 0x7fffffffu;
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t normal = (magnitude - 0x38000000u + 0x0fffu + ((magnitude >> 13) & 1u)) >> 13;  // ties to even
  // Below 2^-14 the sum with 0.5 leaves the subnormal's bits, rounded by the addition, at the bottom.
  const uint32_t subnormal = as_bits(as_float(magnitude) + 0.5f) - 0x3f000000u;
  uint32_t result = magnitude < 0x38800000u ? subnormal : normal;
  result = magnitude >= 0x477ff000u ? 0x7c00u : result;  // 65520 and above round to infinity
  result = magnitude > 0x7f800000u ? 0x7e00u : result;   // NaN
  to.bits = static_cast<uint16_t>(result | sign);
}

// 1 / (1 + e^-z) within 2 ulp for float (a call of libm's exp would not vectorise). With e = e^-|z| it is 1 / (1 + e) or, for
// negative z, e / (1 + e): e is 2^n by the exponent's bits times a polynomial on [-ln 2 / 2, ln 2 / 2], 0 from |z| = 88 on.
// Bounds and choices are made on the bits as integers: of comparisons of floats GCC makes paths that it computes side by side.
// NaN gives a number: what multiplies it is NaN too.
FASTNAS_INLINE float sigmoid(float z) {
  const int32_t bits = static_cast<int32_t>(as_bits(z)), magnitude = bits & 0x7fffffff;
  const float x = as_float(static_cast<uint32_t>(magnitude < 0x42b00000 ? magnitude : 0x42b00000));  // |z|, at most 88
  const float shifted = 12583039.0f - x * 1.44269504f;  // 1.5 * 2^23 + 127: the sum's last bits are the nearest integer + 127
  const float n = shifted - 12583039.0f;
  const float q = (x + n * 0.693145752f) + n * 1.42860677e-6f;  // ln 2 in two parts
  float sum = 1.38144591e-3f;
  sum = sum * q - 8.36878084e-3f;
  sum = sum * q + 4.16683927e-2f;
  sum = sum * q - 1.66665196e-1f;
  sum = sum * q + 4.9999994e-1f;
  sum = sum * q - 1.0f;
  const float e = (sum * q + 1.0f) * as_float(as_bits(shifted) << 23);
  const uint32_t negative = static_cast<uint32_t>(bits >> 31);
  const float numerator = as_float((as_bits(e) & negative) | (as_bits(1.0f) & ~negative));
  return numerator / (1.0f + e);
}
FASTNAS_INLINE double sigmoid(double z) { return 1 / (1 + std::exp(-z)); }

// What a type is summed in.
template <typename S>
struct Accumulator {
  using type = float;
};
template <>
struct Accumulator<double> {
  using type = double;
};
template <typename S>
using accumulator_t = typename Accumulator<S>::type;

}  // namespace fastnas
