// The two inner loops of RoIAlign on the CPU: channels are innermost and contiguous, so a bin is one vectorised pass over the
// channels for every 4 x 4 of its cells. Instantiated per storage type and instruction set in roi_align.cpp.
//
// Loads bound them: 9 to 16 cells of C channels per bin, from L2 where regions overlap, else from memory. So the running sum
// stays in registers for a whole bin, and while one bin is summed the cells of the next are fetched ahead.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "roi_taps.h"
#include "vector.h"

namespace fastnas {

constexpr int64_t kTile = 4;  // cells per axis and pass: with 2 samples per axis a bin reads at most these

template <typename S>
struct PoolJob {
  const S* image;               // [H, W, C] of the region's image: strides below, channels contiguous
  int64_t row_stride, col_stride, channels;
  const AxisTaps<accumulator_t<S>>* rows;
  const AxisTaps<accumulator_t<S>>* cols;
  int64_t pooled_height, pooled_width;
  const accumulator_t<S>* zeros;  // [C]
  accumulator_t<S>* sum;          // [C] scratch
  S* out;                       // [ph, pw, C]: strides below
  int64_t out_bin_stride, out_channel_stride;
  const PoolJob* next;          // the region after this one, whose first cells are fetched ahead, or null
};

// Up to 4 x 4 cells of one bin: where its rows and columns begin, and the weights of both.
template <typename S>
struct Tile {
  using A = accumulator_t<S>;
  const S* row[kTile];
  int64_t col[kTile];
  A row_weight[kTile], col_weight[kTile];
  int64_t rows, cols;
};

template <int kCols, typename S, typename A>
FASTNAS_INLINE A row_sum(const S* row, int64_t x0, int64_t x1, int64_t x2, int64_t x3, A w0, A w1, A w2, A w3) {
  A sum = w0 * widen(row[x0]);
  if (kCols > 1) sum += w1 * widen(row[x1]);
  if (kCols > 2) sum += w2 * widen(row[x2]);
  if (kCols > 3) sum += w3 * widen(row[x3]);
  return sum;
}

// to[c] = from[c] + sum over the tile, for channels begin to end. Separable: 8 weights instead of 16 stay in registers,
// and 4 + 4 registers address 16 cells.
template <int kRows, int kCols, typename S, typename A>
FASTNAS_INLINE void gather_tile(const Tile<S>& tile, int64_t begin, int64_t end, const A* from, A* to) {
  const S *r0 = tile.row[0], *r1 = tile.row[1], *r2 = tile.row[2], *r3 = tile.row[3];
  const int64_t x0 = tile.col[0], x1 = tile.col[1], x2 = tile.col[2], x3 = tile.col[3];
  const A v0 = tile.row_weight[0], v1 = tile.row_weight[1], v2 = tile.row_weight[2], v3 = tile.row_weight[3];
  const A w0 = tile.col_weight[0], w1 = tile.col_weight[1], w2 = tile.col_weight[2], w3 = tile.col_weight[3];
#pragma GCC ivdep
  for (int64_t c = begin; c < end; ++c) {
    A sum = from[c] + v0 * row_sum<kCols>(r0, x0 + c, x1 + c, x2 + c, x3 + c, w0, w1, w2, w3);
    if (kRows > 1) sum += v1 * row_sum<kCols>(r1, x0 + c, x1 + c, x2 + c, x3 + c, w0, w1, w2, w3);
    if (kRows > 2) sum += v2 * row_sum<kCols>(r2, x0 + c, x1 + c, x2 + c, x3 + c, w0, w1, w2, w3);
    if (kRows > 3) sum += v3 * row_sum<kCols>(r3, x0 + c, x1 + c, x2 + c, x3 + c, w0, w1, w2, w3);
    to[c] = sum;
  }
}

template <int kRows, typename S, typename A>
FASTNAS_INLINE void gather_rows(const Tile<S>& tile, int64_t begin, int64_t end, const A* from, A* to) {
  switch (tile.cols) {
    case 1: return gather_tile<kRows, 1>(tile, begin, end, from, to);
    case 2: return gather_tile<kRows, 2>(tile, begin, end, from, to);
    case 3: return gather_tile<kRows, 3>(tile, begin, end, from, to);
    case 4: return gather_tile<kRows, 4>(tile, begin, end, from, to);
  }
}

template <typename S, typename A>
FASTNAS_INLINE void gather(const Tile<S>& tile, int64_t begin, int64_t end, const A* from, A* to) {
  switch (tile.rows) {
    case 1: return gather_rows<1>(tile, begin, end, from, to);
    case 2: return gather_rows<2>(tile, begin, end, from, to);
    case 3: return gather_rows<3>(tile, begin, end, from, to);
    case 4: return gather_rows<4>(tile, begin, end, from, to);
  }
}

// The tile of a bin that begins at taps y and x.
template <typename S>
FASTNAS_INLINE Tile<S> tile_at(const PoolJob<S>& job, const Tap<accumulator_t<S>>* y, const Tap<accumulator_t<S>>* y_end,
                               const Tap<accumulator_t<S>>* x, const Tap<accumulator_t<S>>* x_end,
                               accumulator_t<S> average) {
  Tile<S> tile;
  tile.rows = std::min<int64_t>(kTile, y_end - y);
  tile.cols = std::min<int64_t>(kTile, x_end - x);
  for (int64_t i = 0; i < tile.rows; ++i) {
    tile.row[i] = job.image + y[i].cell * job.row_stride;
    tile.row_weight[i] = y[i].weight * average;
  }
  for (int64_t i = 0; i < tile.cols; ++i) {
    tile.col[i] = x[i].cell * job.col_stride;
    tile.col_weight[i] = x[i].weight;
  }
  return tile;
}

// The cells of a bin's first tile, to be fetched ahead: a region is scattered runs of memory that no hardware foresees.
template <bool kWrite, typename E>
struct Ahead {
  const E* row[kTile];
  int64_t col[kTile];
  int64_t rows = 0, cols = 0;

  template <typename Job>
  FASTNAS_INLINE void aim(const Job& job, int64_t bin) {
    const int64_t ph = bin / job.pooled_width, pw = bin % job.pooled_width;
    const auto *y = job.rows->begin(ph), *x = job.cols->begin(pw);
    rows = std::min<int64_t>(kTile, job.rows->end(ph) - y);
    cols = std::min<int64_t>(kTile, job.cols->end(pw) - x);
    for (int64_t i = 0; i < rows; ++i) row[i] = job.image + y[i].cell * job.row_stride;
    for (int64_t i = 0; i < cols; ++i) col[i] = x[i].cell * job.col_stride;
  }
  FASTNAS_INLINE void fetch(int64_t begin, int64_t end) const {
    constexpr int64_t kLine = 64 / sizeof(E);
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < cols; ++j) {
        for (int64_t c = begin; c < end; c += kLine) __builtin_prefetch(row[i] + col[j] + c, kWrite);
      }
    }
  }
};

template <typename S>
FASTNAS_INLINE void pool_body(const PoolJob<S>& job) {
  using A = accumulator_t<S>;
  constexpr int64_t kBlock = 512 / sizeof(A);
  const double samples = static_cast<double>(job.rows->samples()) * static_cast<double>(job.cols->samples());
  const A average = samples > 0 ? static_cast<A>(1 / samples) : A(0);
  const int64_t bins = job.pooled_height * job.pooled_width;
  const bool direct = std::is_same_v<S, A> && job.out_channel_stride == 1;
  Ahead<false, S> ahead;
  for (int64_t bin = 0; bin < bins; ++bin) {
    const int64_t ph = bin / job.pooled_width, pw = bin % job.pooled_width;
    const auto *y = job.rows->begin(ph), *y_end = job.rows->end(ph);
    const auto *x_begin = job.cols->begin(pw), *x_end = job.cols->end(pw);
    S* out = job.out + bin * job.out_bin_stride;
    A* sum = direct ? reinterpret_cast<A*>(out) : job.sum;
    if (bin + 1 < bins) {
      ahead.aim(job, bin + 1);
    } else if (job.next) {
      ahead.aim(*job.next, 0);
    } else {
      ahead.rows = 0;
    }
    const A* from = job.zeros;
    if (y == y_end || x_begin == x_end) std::fill_n(sum, job.channels, A(0));  // nothing of the bin lies on the map
    for (; y < y_end; y += kTile) {
      for (const auto* x = x_begin; x < x_end; x += kTile) {
        const Tile<S> tile = tile_at(job, y, y_end, x, x_end, average);
        for (int64_t c = 0; c < job.channels; c += kBlock) {
          const int64_t end = std::min(job.channels, c + kBlock);
          ahead.fetch(c, end);
          gather(tile, c, end, from, sum);
        }
        ahead.rows = 0;
        from = sum;
      }
    }
    if (!direct) {
      if (job.out_channel_stride == 1) {
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
  accumulator_t<S>* image;      // [H, W, C] sums: strides below
  int64_t row_stride, col_stride;
};

// row[col[i] + c] += weight[i] * grad[c] for `kCols` different cells
template <int kCols, typename S, typename A>
FASTNAS_INLINE void spread_cells(const S* grad, int64_t begin, int64_t end, A* row, const int64_t* col, const A* weight) {
  A *const to0 = row + col[0], *const to1 = row + col[kCols > 1 ? 1 : 0];
  A *const to2 = row + col[kCols > 2 ? 2 : 0], *const to3 = row + col[kCols > 3 ? 3 : 0];
  const A w0 = weight[0], w1 = weight[1], w2 = weight[2], w3 = weight[3];
#pragma GCC ivdep
  for (int64_t c = begin; c < end; ++c) {
    const A value = widen(grad[c]);
    to0[c] += w0 * value;
    if (kCols > 1) to1[c] += w1 * value;
    if (kCols > 2) to2[c] += w2 * value;
    if (kCols > 3) to3[c] += w3 * value;
  }
}

template <typename S, typename A>
FASTNAS_INLINE void spread_row(const S* grad, int64_t begin, int64_t end, A* row, const int64_t* col, const A* weight,
                               int64_t cols) {
  switch (cols) {
    case 1: return spread_cells<1>(grad, begin, end, row, col, weight);
    case 2: return spread_cells<2>(grad, begin, end, row, col, weight);
    case 3: return spread_cells<3>(grad, begin, end, row, col, weight);
    case 4: return spread_cells<4>(grad, begin, end, row, col, weight);
  }
}

// The transpose of pool_body: every bin adds its gradient to its cells.
template <typename S>
FASTNAS_INLINE void spread_body(const SpreadJob<S>& job) {
  using A = accumulator_t<S>;
  constexpr int64_t kBlock = 512 / sizeof(A);
  const double samples = static_cast<double>(job.rows->samples()) * static_cast<double>(job.cols->samples());
  if (!(samples > 0)) return;
  const A average = static_cast<A>(1 / samples);
  const int64_t bins = job.pooled_height * job.pooled_width;
  Ahead<true, A> ahead;
  for (int64_t bin = 0; bin < bins; ++bin) {
    const int64_t ph = bin / job.pooled_width, pw = bin % job.pooled_width;
    const auto *y_begin = job.rows->begin(ph), *y_end = job.rows->end(ph);
    const auto *x = job.cols->begin(pw), *x_end = job.cols->end(pw);
    const S* grad = job.grad + ph * job.grad_row_stride + pw * job.grad_col_stride;
    ahead.rows = 0;
    if (bin + 1 < bins) ahead.aim(job, bin + 1);
    for (; x < x_end; x += kTile) {
      int64_t col[kTile] = {};
      const int64_t cols = std::min<int64_t>(kTile, x_end - x);
      for (int64_t i = 0; i < cols; ++i) col[i] = x[i].cell * job.col_stride;
      for (int64_t c = 0; c < job.channels; c += kBlock) {
        const int64_t end = std::min(job.channels, c + kBlock);
        ahead.fetch(c, end);
        for (const auto* y = y_begin; y < y_end; ++y) {
          A weight[kTile] = {};
          for (int64_t i = 0; i < cols; ++i) weight[i] = y->weight * average * x[i].weight;
          spread_row(grad, c, end, job.image + y->cell * job.row_stride, col, weight, cols);
        }
      }
      ahead.rows = 0;
    }
  }
}

}  // namespace fastnas
