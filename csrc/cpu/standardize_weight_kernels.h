// The inner loops of weight standardisation on the CPU, one filter at a time. A filter is at most some tens of KB, so it is
// widened once into a row of fp32 (or fp64) that stays in the first-level cache, in the order of the result; mean, variance
// and result are then exact passes over that row, and memory is read once and written once.
// Instantiated per type and instruction set in standardize_weight.cpp.
#pragma once

#include <cstdint>
#include <type_traits>

#include "vector.h"

namespace fastnas::standardize {

// The order of a filter in memory is (i, y, x) or (y, x, i); the row may want the other one.
enum class Order { kSame, kInputsToTaps, kTapsToInputs };  // the outer index before and after

template <typename S, typename A>
struct LoadJob {
  const S* from;
  A* row;
  int64_t inputs, taps;
  Order order;
};

// kTaps: known when compiled, or 0. One input at a time: short strides over taps stay in the cache whatever they are, while
// gathers over inputs cost several cycles an element.
template <int kTaps, typename S, typename A>
FASTNAS_INLINE void reorder(const LoadJob<S, A>& job) {
  const S* __restrict from = job.from;
  A* __restrict row = job.row;
  const int64_t inputs = job.inputs, taps = kTaps > 0 ? kTaps : job.taps;
  if (job.order == Order::kInputsToTaps) {
    for (int64_t i = 0; i < inputs; ++i) {
      for (int64_t t = 0; t < taps; ++t) row[t * inputs + i] = static_cast<A>(widen(from[i * taps + t]));
    }
  } else {
    for (int64_t i = 0; i < inputs; ++i) {
      for (int64_t t = 0; t < taps; ++t) row[i * taps + t] = static_cast<A>(widen(from[t * inputs + i]));
    }
  }
}

template <typename S, typename A>
FASTNAS_INLINE void load_body(const LoadJob<S, A>& job) {
  if (job.order == Order::kSame) {
    const S* __restrict from = job.from;
    A* __restrict row = job.row;
    for (int64_t i = 0; i < job.inputs * job.taps; ++i) row[i] = static_cast<A>(widen(from[i]));
  } else if (job.taps == 9) {
    reorder<9>(job);
  } else {
    reorder<0>(job);
  }
}

template <typename A, typename T>
FASTNAS_INLINE void narrow_to(A value, T& to) {
  if constexpr (std::is_same_v<T, double>) {
    to = value;
  } else {
    narrow(static_cast<float>(value), to);
  }
}

// Independent partial sums, so that additions neither wait for each other nor need a licence to be reordered: the compiler
// keeps the lanes in registers. The order of the additions is fixed, so results repeat bit by bit.
template <typename A>
struct Lanes {
  static constexpr int64_t kCount = 128 / sizeof(A);
  A lane[kCount] = {};
  A rest = A(0);  // what does not fill all lanes; apart, for an array with a variable index would leave the registers

  FASTNAS_INLINE A total() const {
    A quarter[kCount / 4];
    for (int64_t j = 0; j < kCount / 4; ++j) {
      quarter[j] = (lane[j] + lane[j + kCount / 4]) + (lane[j + kCount / 2] + lane[j + kCount / 4 * 3]);
    }
    A sum = rest;
    for (int64_t j = 0; j < kCount / 4; j += 4) {
      sum += (quarter[j] + quarter[j + 1]) + (quarter[j + 2] + quarter[j + 3]);
    }
    return sum;
  }
};

// Sum of term(i) over i = 0 .. count; before(i) before each full set of lanes
template <typename A, typename Term, typename Before>
FASTNAS_INLINE A sum_lanes(int64_t count, const Term& term, const Before& before) {
  constexpr int64_t kCount = Lanes<A>::kCount;
  Lanes<A> lanes;
  int64_t i = 0;
  for (; i + kCount <= count; i += kCount) {
    before(i);
    for (int64_t j = 0; j < kCount; ++j) lanes.lane[j] += term(i + j);
  }
  for (; i < count; ++i) lanes.rest += term(i);
  return lanes.total();
}

template <typename A>
struct MomentsJob {
  const A* row;
  int64_t count;
  A mean, squares;  // results: mean and sum of squared deviations from it
};

// The lines that hold [i, i + count) of the filter behind this one, which lies there in memory. Without it memory idles during
// the passes that work from the cache (measured: a tenth of the forward pass of all layers of a ResNet-50).
template <typename A>
FASTNAS_INLINE void fetch_next(const A* row, int64_t size, int64_t i, int64_t count) {
  for (int64_t j = 0; j < count; j += 64 / static_cast<int64_t>(sizeof(A))) __builtin_prefetch(row + size + i + j);
}

template <typename A>
FASTNAS_INLINE void moments_body(MomentsJob<A>& job) {
  const A* __restrict row = job.row;
  const int64_t count = job.count;
  const A mean = sum_lanes<A>(count, [row](int64_t i) { return row[i]; }, [](int64_t) {}) / static_cast<A>(count);
  job.squares = sum_lanes<A>(
      count,
      [row, mean](int64_t i) {
        const A distance = row[i] - mean;
        return distance * distance;
      },
      [row, count](int64_t i) { fetch_next(row, count, i, Lanes<A>::kCount); });
  job.mean = mean;
}

// out = (row - mean) * slope
template <typename A, typename T>
struct WriteJob {
  const A* row;
  int64_t count;
  A mean, slope;
  T* out;
};

template <typename A, typename T>
FASTNAS_INLINE void write_body(const WriteJob<A, T>& job) {
  const A* __restrict row = job.row;
  T* __restrict out = job.out;
  for (int64_t i = 0; i < job.count; ++i) narrow_to((row[i] - job.mean) * job.slope, out[i]);
}

// grad_sum = sum of g, product = sum of g * (w - mean)
template <typename A>
struct ProductJob {
  const A* row;
  const A* grad;
  int64_t count;
  A mean;
  A grad_sum, product;  // results
};

template <typename A>
FASTNAS_INLINE void product_body(ProductJob<A>& job) {
  const A* __restrict row = job.row;
  const A* __restrict grad = job.grad;
  const A mean = job.mean;
  constexpr int64_t kCount = Lanes<A>::kCount;
  Lanes<A> sums, products;  // both in one pass, so that both arrays stream from memory together
  int64_t i = 0;
  for (; i + kCount <= job.count; i += kCount) {
    for (int64_t j = 0; j < kCount; ++j) sums.lane[j] += grad[i + j];
    for (int64_t j = 0; j < kCount; ++j) products.lane[j] += grad[i + j] * (row[i + j] - mean);
  }
  for (; i < job.count; ++i) {
    sums.rest += grad[i];
    products.rest += grad[i] * (row[i] - mean);
  }
  job.grad_sum = sums.total();
  job.product = products.total();
}

// dw = grad_slope * g + weight_slope * (w - mean) + offset
template <typename A, typename T>
struct SpreadJob {
  const A* row;
  const A* grad;
  int64_t count;
  A mean, grad_slope, weight_slope, offset;
  T* out;
};

template <typename A, typename T>
FASTNAS_INLINE void spread_one(const SpreadJob<A, T>& job, const A* __restrict row, const A* __restrict grad, T* __restrict out) {
  narrow_to(job.grad_slope * *grad + (job.weight_slope * (*row - job.mean) + job.offset), *out);
}

template <typename A, typename T>
FASTNAS_INLINE void spread_body(const SpreadJob<A, T>& job) {
  const A* __restrict row = job.row;
  const A* __restrict grad = job.grad;
  T* __restrict out = job.out;
  constexpr int64_t kCount = Lanes<A>::kCount;
  int64_t i = 0;
  for (; i + kCount <= job.count; i += kCount) {
    fetch_next(row, job.count, i, kCount);
    fetch_next(grad, job.count, i, kCount);
    FASTNAS_INDEPENDENT
    for (int64_t j = 0; j < kCount; ++j) spread_one(job, row + i + j, grad + i + j, out + i + j);
  }
  for (; i < job.count; ++i) spread_one(job, row + i, grad + i, out + i);
}

}  // namespace fastnas::standardize
