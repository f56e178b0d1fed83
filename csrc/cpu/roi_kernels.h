// The two inner loops of RoIAlign on the CPU: channels are innermost and contiguous, so every cell of a bin is one
// vectorised pass over the channels. Instantiated per storage type and instruction set in roi_align.cpp.
#pragma once

#include <cstdint>

#include "roi_taps.h"
#include "vector.h"

namespace fastnas {

// acc[0..count) (+)= sum of `Cells` weighted cells
template <int Cells, bool First, typename S, typename A>
FASTNAS_INLINE void gather_cells(const S* const* cells, const A* weights, int64_t count, A* __restrict acc) {
  const S* __restrict c0 = cells[0];
  const S* __restrict c1 = cells[Cells > 1 ? 1 : 0];
  const S* __restrict c2 = cells[Cells > 2 ? 2 : 0];
  const S* __restrict c3 = cells[Cells > 3 ? 3 : 0];
  const A w0 = weights[0], w1 = weights[1], w2 = weights[2], w3 = weights[3];
  for (int64_t c = 0; c < count; ++c) {
    A sum = First ? A(0) : acc[c];
    sum += w0 * widen(c0[c]);
    if (Cells > 1) sum += w1 * widen(c1[c]);
    if (Cells > 2) sum += w2 * widen(c2[c]);
    if (Cells > 3) sum += w3 * widen(c3[c]);
    acc[c] = sum;
  }
}

template <bool First, typename S, typename A>
FASTNAS_INLINE void gather_some(const S* const* cells, const A* weights, int64_t cell_count, int64_t count, A* acc) {
  switch (cell_count) {
    case 1: return gather_cells<1, First>(cells, weights, count, acc);
    case 2: return gather_cells<2, First>(cells, weights, count, acc);
    case 3: return gather_cells<3, First>(cells, weights, count, acc);
    case 4: return gather_cells<4, First>(cells, weights, count, acc);
  }
}

template <typename S>
struct PoolJob {
  const S* image;               // [H, W, C] of the region's image: strides below, channels contiguous
  int64_t row_stride, col_stride, channels;
  const AxisTaps<accumulator_t<S>>* rows;
  const AxisTaps<accumulator_t<S>>* cols;
  int64_t pooled_height, pooled_width;
  accumulator_t<S>* sum;        // [C] scratch
  S* out;                       // [ph, pw, C]: strides below
  int64_t out_bin_stride, out_channel_stride;
};

// Four cells per pass, so that the running sum is loaded and stored once for four cells.
template <typename S>
FASTNAS_INLINE void pool_body(const PoolJob<S>& job) {
  using A = accumulator_t<S>;
  const double samples = static_cast<double>(job.rows->samples()) * static_cast<double>(job.cols->samples());
  const A average = samples > 0 ? static_cast<A>(1 / samples) : A(0);
  A* __restrict sum = job.sum;
  for (int64_t ph = 0; ph < job.pooled_height; ++ph) {
    for (int64_t pw = 0; pw < job.pooled_width; ++pw) {
      const S* cells[4];
      A weights[4] = {};
      int64_t pending = 0;
      bool first = true;
      const auto flush = [&] {
        if (first) {
          gather_some<true>(cells, weights, pending, job.channels, sum);
        } else {
          gather_some<false>(cells, weights, pending, job.channels, sum);
        }
        first = false;
        pending = 0;
      };
      for (const Tap<A>* y = job.rows->begin(ph); y != job.rows->end(ph); ++y) {
        const S* row = job.image + y->cell * job.row_stride;
        for (const Tap<A>* x = job.cols->begin(pw); x != job.cols->end(pw); ++x) {
          cells[pending] = row + x->cell * job.col_stride;
          weights[pending++] = y->weight * x->weight * average;
          if (pending == 4) flush();
        }
      }
      if (pending > 0) flush();
      S* __restrict out = job.out + (ph * job.pooled_width + pw) * job.out_bin_stride;
      if (first) {  // nothing of the bin lies on the map
        for (int64_t c = 0; c < job.channels; ++c) narrow(A(0), out[c * job.out_channel_stride]);
      } else if (job.out_channel_stride == 1) {
        for (int64_t c = 0; c < job.channels; ++c) narrow(sum[c], out[c]);
      } else {
        for (int64_t c = 0; c < job.channels; ++c) narrow(sum[c], out[c * job.out_channel_stride]);
      }
    }
  }
}

template <typename S>
struct SpreadJob {
  const S* grad;                // [ph, pw, C] of one region: strides below, channels contiguous
  int64_t grad_row_stride, grad_col_stride, channels;
  const AxisTaps<accumulator_t<S>>* rows;
  const AxisTaps<accumulator_t<S>>* cols;
  int64_t pooled_height, pooled_width;
  accumulator_t<S>* scaled;     // [C] scratch
  accumulator_t<S>* image;      // [H, W, C] sums: strides below
  int64_t row_stride, col_stride;
};

// The transpose of pool_body: every bin adds its gradient to its cells.
template <typename S>
FASTNAS_INLINE void spread_body(const SpreadJob<S>& job) {
  using A = accumulator_t<S>;
  const double samples = static_cast<double>(job.rows->samples()) * static_cast<double>(job.cols->samples());
  if (!(samples > 0)) return;
  const A average = static_cast<A>(1 / samples);
  A* __restrict scaled = job.scaled;
  for (int64_t ph = 0; ph < job.pooled_height; ++ph) {
    for (int64_t pw = 0; pw < job.pooled_width; ++pw) {
      const S* __restrict grad = job.grad + ph * job.grad_row_stride + pw * job.grad_col_stride;
      for (int64_t c = 0; c < job.channels; ++c) scaled[c] = widen(grad[c]) * average;
      for (const Tap<A>* y = job.rows->begin(ph); y != job.rows->end(ph); ++y) {
        for (const Tap<A>* x = job.cols->begin(pw); x != job.cols->end(pw); ++x) {
          A* __restrict cell = job.image + y->cell * job.row_stride + x->cell * job.col_stride;
          const A weight = y->weight * x->weight;
          for (int64_t c = 0; c < job.channels; ++c) cell[c] += weight * scaled[c];
        }
      }
    }
  }
}

}  // namespace fastnas
