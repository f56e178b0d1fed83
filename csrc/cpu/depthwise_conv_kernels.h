// The inner loops of the depthwise convolution on the CPU.
//
// All of them work on one block of channels, as many as fill a register of 64 bytes, in rows that have been copied to scratch
// memory as [columns, lanes] in the type that is summed, with zeros where the map is padded: each number is widened once, no
// loop looks at borders, and the layout of the maps does not matter here.
#pragma once

#include <cstdint>
#include <type_traits>

#include "vector.h"

namespace fastnas {

constexpr int64_t kRegister = 64;  // bytes: one register of AVX-512; elsewhere the compiler makes several of it

template <typename A>
constexpr int64_t kChannelLanes = kRegister / static_cast<int64_t>(sizeof(A));

template <typename A>
struct Register {
  typedef A Aligned __attribute__((vector_size(kRegister), may_alias));
  typedef A Anywhere __attribute__((vector_size(kRegister), may_alias, aligned(sizeof(A))));
};

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
};

// kTile results, their sums in registers; of these the first `valid` are written. Every number of a source row is loaded once.
template <int kTaps, int kStride, int kTile, typename A>
FASTNAS_INLINE void correlate_tile(const RowJob<A>& job, int64_t first, int64_t valid) {
  using Aligned = typename Register<A>::Aligned;
  constexpr int64_t kLanes = kChannelLanes<A>;
  Aligned sums[kTile];
  FASTNAS_UNROLL
  for (int t = 0; t < kTile; ++t) sums[t] = *reinterpret_cast<const Aligned*>(job.start);
  const Aligned* weights = reinterpret_cast<const Aligned*>(job.weights);
  for (int64_t r = 0; r < job.rows; ++r, weights += kTaps) {
    const Aligned* source = reinterpret_cast<const Aligned*>(job.source[r] + first * kStride * kLanes);
    Aligned weight[kTaps];
    FASTNAS_UNROLL
    for (int k = 0; k < kTaps; ++k) weight[k] = weights[k];
    FASTNAS_UNROLL
    for (int i = 0; i < (kTile - 1) * kStride + kTaps; ++i) {
      const Aligned value = source[i];
      FASTNAS_UNROLL
      for (int k = 0; k < kTaps; ++k) {
        if (i >= k && (i - k) % kStride == 0 && (i - k) / kStride < kTile) sums[(i - k) / kStride] += value * weight[k];
      }
    }
  }
  A* result = job.result + first * job.step;
  FASTNAS_UNROLL
  for (int t = 0; t < kTile; ++t) {
    if (t < valid) *reinterpret_cast<typename Register<A>::Anywhere*>(result + t * job.step) = sums[t];
  }
}

// Any number of taps and any stride.
template <typename A>
FASTNAS_INLINE void correlate_any(const RowJob<A>& job) {
  using Aligned = typename Register<A>::Aligned;
  for (int64_t t = 0; t < job.count; ++t) {
    Aligned sum = *reinterpret_cast<const Aligned*>(job.start);
    const Aligned* weights = reinterpret_cast<const Aligned*>(job.weights);
    for (int64_t r = 0; r < job.rows; ++r, weights += job.taps) {
      const Aligned* source = reinterpret_cast<const Aligned*>(job.source[r]) + t * job.stride;
      for (int64_t k = 0; k < job.taps; ++k) sum += source[k] * weights[k];
    }
    *reinterpret_cast<typename Register<A>::Anywhere*>(job.result + t * job.step) = sum;
  }
}

constexpr int64_t kTile = 8;  // enough sums to hide the latency of a multiply-add

template <int kTaps, int kStride, typename A>
FASTNAS_INLINE void correlate_row(const RowJob<A>& job) {
  int64_t t = 0;
  for (; t + kTile <= job.count; t += kTile) correlate_tile<kTaps, kStride, kTile>(job, t, kTile);
  if (job.count - t > kTile / 2) return correlate_tile<kTaps, kStride, kTile>(job, t, job.count - t);
  if (t < job.count) correlate_tile<kTaps, kStride, kTile / 2>(job, t, job.count - t);
}

// The columns of a source row that may be read for `count` results, from the first on.
inline int64_t columns_read(int64_t count, int64_t taps, int64_t stride) {
  const int64_t whole_tiles = (count + kTile - 1) / kTile * kTile;
  return count > 0 && taps > 0 ? (whole_tiles - 1) * stride + taps : 0;
}

template <typename A>
FASTNAS_INLINE void correlate_body(const RowJob<A>& job) {
  if (job.stride == 1) {
    switch (job.taps) {
      case 1: return correlate_row<1, 1>(job);
      case 2: return correlate_row<2, 1>(job);
      case 3: return correlate_row<3, 1>(job);
      case 5: return correlate_row<5, 1>(job);
    }
  }
  if (job.stride == 2 && job.taps == 3) return correlate_row<3, 2>(job);
  if (job.stride == 2 && job.taps == 5) return correlate_row<5, 2>(job);
  correlate_any(job);
}

// ---------------------------------------------------------------------------------------------------------------------
// sums[r][k] += sum over t of grad[t] * source[r][stride * t + k]

template <typename A>
struct WeightJob {
  const A* const* source;  // [rows] of [columns, lanes]
  const A* grad;           // [count, lanes]
  int64_t rows, taps, stride, count;
  A* sums;  // [rows, taps, lanes]
};

template <int kRows, int kTaps, int kStride, typename A>
FASTNAS_INLINE void weight_sums(const WeightJob<A>& job) {
  using Aligned = typename Register<A>::Aligned;
  Aligned* all = reinterpret_cast<Aligned*>(job.sums);
  const Aligned* grads = reinterpret_cast<const Aligned*>(job.grad);
  const Aligned* source[kRows];
  Aligned sums[kRows * kTaps];
  FASTNAS_UNROLL
  for (int r = 0; r < kRows; ++r) source[r] = reinterpret_cast<const Aligned*>(job.source[r]);
  FASTNAS_UNROLL
  for (int i = 0; i < kRows * kTaps; ++i) sums[i] = all[i];
  for (int64_t t = 0; t < job.count; ++t) {
    const Aligned grad = grads[t];
    FASTNAS_UNROLL
    for (int r = 0; r < kRows; ++r) {
      FASTNAS_UNROLL
      for (int k = 0; k < kTaps; ++k) sums[r * kTaps + k] += grad * source[r][t * kStride + k];
    }
  }
  FASTNAS_UNROLL
  for (int i = 0; i < kRows * kTaps; ++i) all[i] = sums[i];
}

template <typename A>
FASTNAS_INLINE void weight_sums_any(const WeightJob<A>& job) {
  using Aligned = typename Register<A>::Aligned;
  Aligned* all = reinterpret_cast<Aligned*>(job.sums);
  const Aligned* grads = reinterpret_cast<const Aligned*>(job.grad);
  for (int64_t r = 0; r < job.rows; ++r) {
    for (int64_t k = 0; k < job.taps; ++k) {
      const Aligned* source = reinterpret_cast<const Aligned*>(job.source[r]) + k;
      Aligned sum = all[r * job.taps + k];
      for (int64_t t = 0; t < job.count; ++t) sum += grads[t] * source[t * job.stride];
      all[r * job.taps + k] = sum;
    }
  }
}

template <typename A>
FASTNAS_INLINE void weight_body(const WeightJob<A>& job) {
  const bool narrow = job.stride == 1, wide = job.stride == 2;
  if (job.rows == 3 && job.taps == 3 && narrow) return weight_sums<3, 3, 1>(job);
  if (job.rows == 3 && job.taps == 3 && wide) return weight_sums<3, 3, 2>(job);
  if (job.rows == 5 && job.taps == 5 && narrow) return weight_sums<5, 5, 1>(job);
  if (job.rows == 5 && job.taps == 5 && wide) return weight_sums<5, 5, 2>(job);
  weight_sums_any(job);
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
