// Numbers whose ascending order is the order of scores and of classes, the same on both devices.
#pragma once

#include <cstdint>
#include <cstring>

#include "geometry.h"

namespace fastnas {

// Ascending keys are descending scores. NaN comes first (torch sorts it as the greatest) and the two zeros are equal.
FASTNAS_HD uint64_t descending_key(float score) {
  score = score == 0 ? 0.0f : score;
  uint32_t bits;
  std::memcpy(&bits, &score, sizeof(bits));
  if (score != score) bits = 0x7fffffffu;
  return bits >> 31 ? bits : 0x7fffffffu - bits;
}
FASTNAS_HD uint64_t descending_key(double score) {
  score = score == 0 ? 0.0 : score;
  uint64_t bits;
  std::memcpy(&bits, &score, sizeof(bits));
  if (score != score) bits = 0x7fffffffffffffffull;
  return bits >> 63 ? bits : 0x7fffffffffffffffull - bits;
}
FASTNAS_HD uint64_t ascending_key(int64_t value) { return static_cast<uint64_t>(value) ^ (1ull << 63); }

}  // namespace fastnas
