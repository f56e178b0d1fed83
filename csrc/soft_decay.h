// Soft-NMS -- Improving Object Detection With One Line of Code (Bodla et al. 2017), section 3: by what a score is multiplied
// when a better box overlaps it. Sources that include this are compiled without contraction into fused multiply-adds, so
// both devices round alike, and pick the same boxes.
#pragma once

#include <cstdint>
#include <cstring>

#include "geometry.h"

namespace fastnas {

// e^x for x <= 0, without a call, so that loops over it vectorise: 2^n * e^r with |r| <= ln(2) / 2, and e^r by the polynomial
// of Cephes' expf. The relative error is below 2e-7; under -87 the result is 0.
FASTNAS_HD float exp_of_negative(float x) {
  const float bounded = larger(-87.0f, x);  // -87 for a NaN
  const float shifted = bounded * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: the sum is rounded to an integer
  const float n = shifted - 12582912.0f;
  const float r = (bounded - n * 0.693359375f) + n * 2.12194440e-4f;
  float series = 1.9875691500e-4f;
  series = series * r + 1.3981999507e-3f;
  series = series * r + 8.3334519073e-3f;
  series = series * r + 4.1665795894e-2f;
  series = series * r + 1.6666665459e-1f;
  series = series * r + 5.0000001201e-1f;
  series = series * (r * r) + r + 1.0f;
  const int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
  float power;
  std::memcpy(&power, &bits, sizeof(power));
  return x < -87.0f ? 0.0f : series * power;
}
FASTNAS_HD double exp_of_negative(double x) { return std::exp(x); }

template <typename T>
struct SoftDecay {
  T threshold;      // linear: overlaps above it count
  T inverse_sigma;  // gaussian

  // 1 where the boxes do not overlap, and where their overlap is no number (both empty, or infinite).
  template <bool kGaussian>
  FASTNAS_HD T factor(const Box<T>& chosen, T chosen_area, const Box<T>& box, T box_area) const {
    const T width = larger(T(0), smaller(chosen.x2, box.x2) - larger(chosen.x1, box.x1));
    const T height = larger(T(0), smaller(chosen.y2, box.y2) - larger(chosen.y1, box.y1));
    const T intersection = width * height;
    const T overlap = intersection / (chosen_area + box_area - intersection);
    if (kGaussian) {
      const T decayed = exp_of_negative(-(overlap * overlap * inverse_sigma));
      return overlap > T(0) ? decayed : T(1);
    }
    return overlap > threshold ? T(1) - overlap : T(1);
  }
};

// Signed integers in the order of the scores, so that the greatest is found without a comparison of floating numbers
// (which would keep loops from vectorising). The lowest integer belongs to no score but a NaN: it marks boxes out of play.
FASTNAS_HD int32_t score_order(float score) {
  score = score == 0 ? 0.0f : score;  // the two zeros are equal
  int32_t bits;
  std::memcpy(&bits, &score, sizeof(bits));
  return bits ^ ((bits >> 31) & 0x7fffffff);
}
FASTNAS_HD int64_t score_order(double score) {
  score = score == 0 ? 0.0 : score;
  int64_t bits;
  std::memcpy(&bits, &score, sizeof(bits));
  return bits ^ ((bits >> 63) & 0x7fffffffffffffff);
}
template <typename Order>
constexpr Order kOutOfPlay = Order(1) << (8 * sizeof(Order) - 1);

}  // namespace fastnas
