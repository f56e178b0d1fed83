// The inner loops of the depthwise convolution on the CPU.
//
// All of them work on one block of channels, as many as fill a register of AVX-512, in rows that have been copied to scratch
// memory as [columns, lanes] in the type that is summed, with zeros where the map is padded: each number is widened once, no
// loop looks at borders, and the layout of the maps does not matter here. Without AVX-512 there are half as many registers of half
// the size: a block is then gone through in two halves, so that the sums stay in registers.
#pragma once

#include <cstdint>
#include <type_traits>

#include "vector.h"

namespace fastnas {

constexpr int64_t kRegister = 64, kHalfRegister = 32;  // bytes

template <typename A>
constexpr int64_t kChannelLanes = kRegister / static_cast<int64_t>(sizeof(A));

template <typename A, int64_t kBytes>
struct Register {
  typedef A Aligned __attribute__((vector_size(kBytes), may_alias));
};

inline bool wide_registers() {
#if defined(__x86_64__) && defined(__GNUC__)
  static const bool found = __builtin_cpu_supports("avx512f");
  return found;
#else
  return false;
#endif
}

#define FASTNAS_UNROLL _Pragma("GCC unroll 32")

// ---------------------------------------------------------------------------------------------------------------------
// result[t] = start + sum over rows r and taps k of source[r][stride * t + k] * weights[r][k]

template <typename A>
struct RowJob {
  const A* const* source;  // [rows] of [columns, lanes]
  const A* weights;        // [rows, taps, lanes]
  const A* start;          // [lanes]
  int64_t rows, taps, stride, count;
  A* result;  // t's at result + t * step
  int64_t step;
  bool wide;  // whole registers
};

template <typename A, int64_t kBytes>
using Aligned = typename Register<A, kBytes>::Aligned;

template <int64_t kBytes, typename A>
FASTNAS_INLINE const Aligned<A, kBytes>& at(const A* rows, int64_t column) {
  return *reinterpret_cast<const Aligned<A, kBytes>*>(rows + column * kChannelLanes<A>);
}
template <int64_t kBytes, typename A>
FASTNAS_INLINE Aligned<A, kBytes>& at(A* rows, int64_t column) {
  return *reinterpret_cast<Aligned<A, kBytes>*>(rows + column * kChannelLanes<A>);
}

// (Loops, not lambdas: those would be compiled for the baseline alone.)
template <int64_t kBytes, typename A>
constexpr int64_t kPartLanes = kBytes / static_cast<int64_t>(sizeof(A));

// kTile results, their sums in registers; of these the first `valid` are written. Every number of a source row is loaded once.
template <int kTaps, int kStride, int kTile, int64_t kBytes, typename A>
FASTNAS_INLINE void correlate_tile(const RowJob<A>& job, int64_t shift, int64_t first, int64_t valid) {
  Aligned<A, kBytes> sums[kTile];
  FASTNAS_UNROLL
  for (int t = 0; t < kTile; ++t) sums[t] = at<kBytes>(job.start + shift, 0);
  const A* weights = job.weights + shift;
  for (int64_t r = 0; r < job.rows; ++r, weights += kTaps * kChannelLanes<A>) {
    const A* source = job.source[r] + shift + first * kStride * kChannelLanes<A>;
    Aligned<A, kBytes> weight[kTaps];
    FASTNAS_UNROLL
    for (int k = 0; k < kTaps; ++k) weight[k] = at<kBytes>(weights, k);
    FASTNAS_UNROLL
    for (int i = 0; i < (kTile - 1) * kStride + kTaps; ++i) {
      const Aligned<A, kBytes> value = at<kBytes>(source, i);
      FASTNAS_UNROLL
      for (int k = 0; k < kTaps; ++k) {
        if (i >= k && (i - k) % kStride == 0 && (i - k) / kStride < kTile) sums[(i - k) / kStride] += value * weight[k];
      }
    }
  }
  A* result = job.result + shift + first * job.step;
  FASTNAS_UNROLL
  for (int t = 0; t < kTile; ++t) {
    if (t < valid) at<kBytes>(result + t * job.step, 0) = sums[t];
  }
}

// Any number of taps and any stride.
template <typename A>
FASTNAS_INLINE void correlate_any(const RowJob<A>& job) {
  for (int64_t t = 0; t < job.count; ++t) {
    Aligned<A, kRegister> sum = at<kRegister>(job.start, 0);
    for (int64_t r = 0; r < job.rows; ++r) {
      for (int64_t k = 0; k < job.taps; ++k) {
        sum += at<kRegister>(job.source[r], t * job.stride + k) * at<kRegister>(job.weights, r * job.taps + k);
      }
    }
    at<kRegister>(job.result + t * job.step, 0) = sum;
  }
}

constexpr int64_t kTile = 8;  // enough sums to hide the latency of a multiply-add

template <int kTaps, int kStride, int64_t kBytes, typename A>
FASTNAS_INLINE void correlate_row(const RowJob<A>& job) {
  for (int64_t shift = 0; shift < kChannelLanes<A>; shift += kPartLanes<kBytes, A>) {
    int64_t t = 0;
    for (; t + kTile <= job.count; t += kTile) correlate_tile<kTaps, kStride, kTile, kBytes>(job, shift, t, kTile);
    if (job.count - t > kTile / 2) {
      correlate_tile<kTaps, kStride, kTile, kBytes>(job, shift, t, job.count - t);
    } else if (t < job.count) {
      correlate_tile<kTaps, kStride, kTile / 2, kBytes>(job, shift, t, job.count - t);
    }
  }
}

// The columns of a source row that may be read for `count` results, from the first on.
inline int64_t columns_read(int64_t count, int64_t taps, int64_t stride) {
  const int64_t whole_tiles = (count + kTile - 1) / kTile * kTile;
  return count > 0 && taps > 0 ? (whole_tiles - 1) * stride + taps : 0;
}

template <int64_t kBytes, typename A>
FASTNAS_INLINE void correlate_as(const RowJob<A>& job) {
  if (job.stride == 1) {
    switch (job.taps) {
      case 1: return correlate_row<1, 1, kBytes>(job);
      case 2: return correlate_row<2, 1, kBytes>(job);
      case 3: return correlate_row<3, 1, kBytes>(job);
      case 5: return correlate_row<5, 1, kBytes>(job);
    }
  }
  if (job.stride == 2 && job.taps == 3) return correlate_row<3, 2, kBytes>(job);
  if (job.stride == 2 && job.taps == 5) return correlate_row<5, 2, kBytes>(job);
  correlate_any(job);
}

template <typename A>
FASTNAS_INLINE void correlate_body(const RowJob<A>& job) {
  job.wide ? correlate_as<kRegister>(job) : correlate_as<kHalfRegister>(job);
}

// ---------------------------------------------------------------------------------------------------------------------
// sums[r][k] += sum over t of grad[t] * source[r][stride * t + k]

template <typename A>
struct WeightJob {
  const A* const* source;  // [rows] of [columns, lanes]
  const A* grad;           // [count, lanes]
  int64_t rows, taps, stride, count;
  A* sums;  // [rows, taps, lanes]
  bool wide;
};

template <int kRows, int kTaps, int kStride, int64_t kBytes, typename A>
FASTNAS_INLINE void sum_rows(const WeightJob<A>& job, int64_t shift, int64_t first_row) {
  const A* const grads = job.grad + shift;
  A* const all = job.sums + shift + first_row * kTaps * kChannelLanes<A>;
  const A* source[kRows];
  Aligned<A, kBytes> sums[kRows * kTaps];
  FASTNAS_UNROLL
  for (int r = 0; r < kRows; ++r) source[r] = job.source[first_row + r] + shift;
  FASTNAS_UNROLL
  for (int i = 0; i < kRows * kTaps; ++i) sums[i] = at<kBytes>(all, i);
  for (int64_t t = 0; t < job.count; ++t) {
    const Aligned<A, kBytes> grad = at<kBytes>(grads, t);
    FASTNAS_UNROLL
    for (int r = 0; r < kRows; ++r) {
      FASTNAS_UNROLL
      for (int k = 0; k < kTaps; ++k) sums[r * kTaps + k] += grad * at<kBytes>(source[r], t * kStride + k);
    }
  }
  FASTNAS_UNROLL
  for (int i = 0; i < kRows * kTaps; ++i) at<kBytes>(all, i) = sums[i];
}

// A square kernel, as many of its rows at a time as the registers hold sums of.
template <int kSide, int kStride, typename A>
FASTNAS_INLINE void sum_square(const WeightJob<A>& job) {
  if (job.wide) return sum_rows<kSide, kSide, kStride, kRegister>(job, 0, 0);
  constexpr int kRows = 12 / kSide < kSide ? 12 / kSide : kSide;
  for (int64_t shift = 0; shift < kChannelLanes<A>; shift += kPartLanes<kHalfRegister, A>) {
    int64_t row = 0;
    for (; row + kRows <= kSide; row += kRows) sum_rows<kRows, kSide, kStride, kHalfRegister>(job, shift, row);
    if (row < kSide) sum_rows<kSide % kRows + (kSide % kRows == 0), kSide, kStride, kHalfRegister>(job, shift, row);
  }
}

template <typename A>
FASTNAS_INLINE void sum_any(const WeightJob<A>& job) {
  for (int64_t r = 0; r < job.rows; ++r) {
    for (int64_t k = 0; k < job.taps; ++k) {
      Aligned<A, kRegister> sum = at<kRegister>(job.sums, r * job.taps + k);
      for (int64_t t = 0; t < job.count; ++t) {
        sum += at<kRegister>(job.grad, t) * at<kRegister>(job.source[r], t * job.stride + k);
      }
      at<kRegister>(job.sums, r * job.taps + k) = sum;
    }
  }
}

template <typename A>
FASTNAS_INLINE void weight_body(const WeightJob<A>& job) {
  if (job.rows == job.taps) {
    if (job.taps == 3 && job.stride == 1) return sum_square<3, 1>(job);
    if (job.taps == 3 && job.stride == 2) return sum_square<3, 2>(job);
    if (job.taps == 5 && job.stride == 1) return sum_square<5, 1>(job);
    if (job.taps == 5 && job.stride == 2) return sum_square<5, 2>(job);
  }
  sum_any(job);
}

// ---------------------------------------------------------------------------------------------------------------------
// Between the maps and scratch memory

// One row of some channels: in a map with strides, in scratch memory as blocks of channels, each [count, lanes] and one after the
// other at a distance of `block_stride`; all strides in elements. Pixel by pixel, as channels-last maps lie in memory.
template <typename S>
struct CopyJob {
  S* map;
  int64_t channels, count;
  int64_t channel_stride, column_stride;
  accumulator_t<std::remove_const_t<S>>* scratch;
  int64_t block_stride;
};

template <typename S>
FASTNAS_INLINE void read_body(const CopyJob<const S>& job) {
  using A = accumulator_t<S>;
  constexpr int64_t kLanes = kChannelLanes<A>;
  const int64_t full = job.channel_stride == 1 ? job.channels / kLanes : 0, rest = full * kLanes;
  for (int64_t t = 0; t < job.count; ++t) {
    const S* __restrict from = job.map + t * job.column_stride;
    A* __restrict to = job.scratch + t * kLanes;
    for (int64_t b = 0; b < full; ++b, from += kLanes, to += job.block_stride) {
      for (int64_t c = 0; c < kLanes; ++c) to[c] = widen(from[c]);
    }
    for (int64_t first = rest; first < job.channels; first += kLanes, to += job.block_stride) {
      for (int64_t c = 0; c < kLanes; ++c) {
        to[c] = first + c < job.channels ? widen(from[(first - rest + c) * job.channel_stride]) : A(0);
      }
    }
  }
}

template <typename S>
FASTNAS_INLINE void write_body(const CopyJob<S>& job) {
  using A = accumulator_t<S>;
  constexpr int64_t kLanes = kChannelLanes<A>;
  const int64_t full = job.channel_stride == 1 ? job.channels / kLanes : 0, rest = full * kLanes;
  for (int64_t t = 0; t < job.count; ++t) {
    S* __restrict to = job.map + t * job.column_stride;
    const A* __restrict from = job.scratch + t * kLanes;
    for (int64_t b = 0; b < full; ++b, to += kLanes, from += job.block_stride) {
      for (int64_t c = 0; c < kLanes; ++c) narrow(from[c], to[c]);
    }
    for (int64_t first = rest; first < job.channels; first += kLanes, from += job.block_stride) {
      for (int64_t c = 0; c < kLanes && first + c < job.channels; ++c) {
        narrow(from[c], to[(first - rest + c) * job.channel_stride]);
      }
    }
  }
}

}  // namespace fastnas
