// Bringing rows of one image of a map to the node's size on the CPU, and gradients back the same way.
//
// An image is rows of cells of `inner` contiguous numbers: the channels of a cell where they are innermost (loops run over
// them), or a single number of a plane (loops run along the row, in pairs of cells). Rows of the node are dense: row r of a
// band lies at r * width * inner.
#pragma once

#include <cstdint>
#include <limits>

#include "../fusion.h"
#include "vector.h"

namespace fastnas {

// Two neighbours in memory as one number where they have 16 bits: loops that part them or bring them together need no shuffles.
template <typename S, typename A>
FASTNAS_INLINE void load_pair(const S* from, A& first, A& second) {
  if constexpr (sizeof(S) == 2) {
    uint32_t both;
    std::memcpy(&both, from, sizeof(both));
    first = widen(S{static_cast<uint16_t>(both)});
    second = widen(S{static_cast<uint16_t>(both >> 16)});
  } else {
    first = from[0];
    second = from[1];
  }
}
template <typename S, typename A>
FASTNAS_INLINE void store_pair(A first, A second, S* to) {
  if constexpr (sizeof(S) == 2) {
    S low, high;
    narrow(first, low);
    narrow(second, high);
    const uint32_t both = low.bits | static_cast<uint32_t>(high.bits) << 16;
    std::memcpy(to, &both, sizeof(both));
  } else {
    to[0] = first;
    to[1] = second;
  }
}

// Nearest-neighbour: fine row `y` from its coarse row.
template <typename S>
FASTNAS_INLINE void up_row(const S* __restrict coarse, const UpAxis& cols, int64_t inner, S* __restrict fine) {
  if (inner == 1) {
    int32_t x = 0;
    for (; x < cols.shift; ++x) fine[x] = coarse[0];
    const int32_t pairs = (cols.fine - cols.shift) / 2;
    S* __restrict shifted = fine + cols.shift;
    for (int32_t c = 0; c < pairs; ++c) {
      shifted[2 * c] = coarse[c];
      shifted[2 * c + 1] = coarse[c];
    }
    for (x = cols.shift + 2 * pairs; x < cols.fine; ++x) fine[x] = coarse[cols.source(x)];
    return;
  }
  for (int32_t x = 0; x < cols.fine; ++x) {
    const S* __restrict from = coarse + cols.source(x) * inner;
    S* __restrict to = fine + x * inner;
    for (int64_t c = 0; c < inner; ++c) to[c] = from[c];
  }
}

// The nine cells of a window, with the numbers (row tap * 3 + column tap) under which its places are kept. A tap outside
// the map stands for the nearest one inside, under that one's number.
template <typename S>
struct Window {
  const S* cell[9];
  int32_t number[9];

  Window() = default;
  FASTNAS_INLINE Window(const S* image, const PoolAxis& rows, const PoolAxis& cols, int32_t y, int32_t x, int64_t inner) {
    for (int32_t ky = 0; ky < 3; ++ky) {
      const int32_t row = rows.cell(y, ky);
      for (int32_t kx = 0; kx < 3; ++kx) {
        const int32_t col = cols.cell(x, kx);
        cell[3 * ky + kx] = image + (static_cast<int64_t>(row) * cols.size + col) * inner;
        number[3 * ky + kx] = (row - rows.start(y)) * 3 + col - cols.start(x);
      }
    }
  }
};

// Maximum of nine, and (kPlaces) the number of the tap that has it.
template <bool kPlaces, typename T, typename S>
FASTNAS_INLINE void pool_cells(const Window<T>& window, int64_t count, S* __restrict out, int32_t* __restrict places) {
  using A = accumulator_t<S>;
  const T* __restrict t0 = window.cell[0];
  const T* __restrict t1 = window.cell[1];
  const T* __restrict t2 = window.cell[2];
  const T* __restrict t3 = window.cell[3];
  const T* __restrict t4 = window.cell[4];
  const T* __restrict t5 = window.cell[5];
  const T* __restrict t6 = window.cell[6];
  const T* __restrict t7 = window.cell[7];
  const T* __restrict t8 = window.cell[8];
  if constexpr (!kPlaces) {
    // A comparison and a choice are one instruction for the maximum; NaN, which it would lose, is looked for in pairs.
    for (int64_t i = 0; i < count; ++i) {
      const A v0 = widen(t0[i]), v1 = widen(t1[i]), v2 = widen(t2[i]), v3 = widen(t3[i]), v4 = widen(t4[i]),
              v5 = widen(t5[i]), v6 = widen(t6[i]), v7 = widen(t7[i]), v8 = widen(t8[i]);
      const A m01 = v0 > v1 ? v0 : v1, m23 = v2 > v3 ? v2 : v3, m45 = v4 > v5 ? v4 : v5, m67 = v6 > v7 ? v6 : v7;
      const A m03 = m01 > m23 ? m01 : m23, m47 = m45 > m67 ? m45 : m67;
      const A m07 = m03 > m47 ? m03 : m47, most = m07 > v8 ? m07 : v8;
      const bool nan = __builtin_isunordered(v0, v1) | __builtin_isunordered(v2, v3) | __builtin_isunordered(v4, v5) |
          __builtin_isunordered(v6, v7) | (v8 != v8);
      narrow(nan ? std::numeric_limits<A>::quiet_NaN() : most, out[i]);
    }
    return;
  }
  const int32_t n0 = window.number[0], n1 = window.number[1], n2 = window.number[2], n3 = window.number[3],
                n4 = window.number[4], n5 = window.number[5], n6 = window.number[6], n7 = window.number[7],
                n8 = window.number[8];
  for (int64_t i = 0; i < count; ++i) {
    A best = widen(t0[i]);
    int32_t place = n0;
    const auto tap = [&](A value, int32_t number) {
      const bool taken = replaces(value, best);
      best = taken ? value : best;
      if (kPlaces) place = taken ? number : place;
    };
    tap(widen(t1[i]), n1);
    tap(widen(t2[i]), n2);
    tap(widen(t3[i]), n3);
    tap(widen(t4[i]), n4);
    tap(widen(t5[i]), n5);
    tap(widen(t6[i]), n6);
    tap(widen(t7[i]), n7);
    tap(widen(t8[i]), n8);
    narrow(best, out[i]);
    if (kPlaces) places[i] = place;
  }
}

// Row `y` of windows of a plane. The three rows of cells that it reads are first widened and parted into even and odd columns,
// so that each of the nine taps is contiguous (measured: strided loads were 5 to 8 times slower). lines: see pool_lines.
template <bool kPlaces, typename S>
FASTNAS_INLINE void down_plane_row(
    const S* image, const PoolAxis& rows, const PoolAxis& cols, int32_t y, accumulator_t<S>* lines, S* out, int32_t* places) {
  using A = accumulator_t<S>;
  const int32_t windows = cols.windows, pairs = cols.size / 2, line = windows + 1;
  Window<A> window;
  for (int32_t ky = 0; ky < 3; ++ky) {
    const int32_t row = rows.cell(y, ky);
    const S* __restrict cells = image + static_cast<int64_t>(row) * cols.size;
    A* __restrict even = lines + 2 * ky * line;
    A* __restrict odd = even + line + 1;  // with a place before and the even columns with one behind, for taps off the map
    FASTNAS_INDEPENDENT
    for (int32_t x = 0; x < pairs; ++x) load_pair(cells + 2 * x, even[x], odd[x]);
    if (pairs < windows) even[pairs] = odd[pairs] = widen(cells[2 * pairs]);
    even[windows] = odd[windows - 1];
    odd[-1] = even[0];
    const A* const taps[4] = {odd - 1, even, odd, even + 1};
    for (int32_t kx = 0; kx < 3; ++kx) {
      window.cell[3 * ky + kx] = taps[cols.pad ? kx : kx + 1];
      window.number[3 * ky + kx] = (row - rows.start(y)) * 3 + kx;
    }
  }
  pool_cells<kPlaces>(window, windows, out, places);
  if (!kPlaces) return;
  // Above a tap off the map has its own number, not that of the cell it repeats.
  const auto again = [&](int32_t x) { pool_cells<true>(Window<S>(image, rows, cols, y, x, 1), 1, out + x, places + x); };
  if (cols.pad) again(0);
  if (cols.start(windows - 1) + 3 > cols.size) again(windows - 1);
}
constexpr int64_t pool_lines(int64_t windows) { return 6 * (windows + 1) + 1; }  // numbers

// 3x3 / stride 2 max-pool: row `y` of windows.
template <bool kPlaces, typename S>
FASTNAS_INLINE void down_row(
    const S* image, const PoolAxis& rows, const PoolAxis& cols, int32_t y, int64_t inner, accumulator_t<S>* lines, S* out,
    int32_t* places) {
  if (inner == 1) return down_plane_row<kPlaces>(image, rows, cols, y, lines, out, places);
  for (int32_t x = 0; x < cols.windows; ++x) {
    const Window<S> window(image, rows, cols, y, x, inner);
    pool_cells<kPlaces>(window, inner, out + x * inner, kPlaces ? places + x * inner : nullptr);
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Gradients back to the input. `dz`: gradient of the sum, rows of the node from `row_origin` on.

// Coarse row `y`: every cell sums its fine cells (four, at most nine) in their order.
template <typename S>
FASTNAS_INLINE void up_row_gradient(
    const accumulator_t<S>* dz, int32_t row_origin, const UpAxis& rows, const UpAxis& cols, int32_t y, int32_t coarse_cols,
    int64_t inner, accumulator_t<S> share, S* __restrict gradient) {
  using A = accumulator_t<S>;
  const int64_t row = static_cast<int64_t>(cols.fine) * inner;
  const int32_t top = rows.first(y) - row_origin, bottom = rows.end(y) - row_origin;
  const auto one = [&](int32_t x) {
    const int32_t left = cols.first(x), right = cols.end(x);
    S* __restrict to = gradient + x * inner;
    if (bottom - top == 2 && right - left == 2) {
      const A* __restrict a = dz + top * row + left * inner;
      const A* __restrict b = a + inner;
      const A* __restrict c = a + row;
      const A* __restrict d = c + inner;
      for (int64_t i = 0; i < inner; ++i) narrow(share * (((a[i] + b[i]) + c[i]) + d[i]), to[i]);
      return;
    }
    for (int64_t i = 0; i < inner; ++i) {
      A sum = A(0);
      for (int32_t r = top; r < bottom; ++r) {
        for (int32_t c = left; c < right; ++c) sum += dz[r * row + c * inner + i];
      }
      narrow(share * sum, to[i]);
    }
  };
  if (inner > 1 || bottom - top != 2 || coarse_cols < 3) {
    for (int32_t x = 0; x < coarse_cols; ++x) one(x);
    return;
  }
  one(0);
  const A* __restrict upper = dz + top * row + cols.shift;
  const A* __restrict lower = upper + row;
  for (int32_t x = 1; x < coarse_cols - 1; ++x) {
    narrow(share * (((upper[2 * x] + upper[2 * x + 1]) + lower[2 * x]) + lower[2 * x + 1]), gradient[x]);
  }
  one(coarse_cols - 1);
}

// One axis of the windows that read a cell, in their order: the window's index and the cell's tap in it.
struct Readers {
  int32_t count, window[2], tap[2];

  FASTNAS_INLINE Readers(const PoolAxis& axis, int32_t cell) : count(0), window{0, 0}, tap{0, 0} {
    const int32_t last = axis.last_window(cell), tap_in_last = axis.tap_in_last(cell);
    if (tap_in_last == 0 && last > 0) {
      window[count] = last - 1;
      tap[count++] = 2;
    }
    if (last < axis.windows) {
      window[count] = last;
      tap[count++] = tap_in_last;
    }
  }
};

// Input row `y`: every cell sums the windows (four at most) that found their maximum in it, in their order.
// places: the taps that have the maxima, laid out like dz.
template <typename S>
FASTNAS_INLINE void down_row_gradient(
    const accumulator_t<S>* dz, const int32_t* places, int32_t row_origin, const PoolAxis& rows, const PoolAxis& cols, int32_t y,
    int64_t inner, accumulator_t<S> share, S* __restrict gradient) {
  using A = accumulator_t<S>;
  const int64_t row = static_cast<int64_t>(cols.windows) * inner;
  const Readers above(rows, y);
  // A row that one row of windows reads: the second is the first again, under a number that no place has.
  const int32_t second = above.count > 1 ? 1 : 0;
  const int64_t r0 = (above.window[0] - row_origin) * row, r1 = (above.window[second] - row_origin) * row;
  const int32_t k0 = 3 * above.tap[0], k1 = above.count > 1 ? 3 * above.tap[1] : 100;
  const auto one = [&](int32_t x) {
    const Readers beside(cols, x);
    S* __restrict to = gradient + x * inner;
    const int64_t c0 = beside.window[0] * inner;
    const int32_t t0 = beside.tap[0];
    const A* __restrict a = dz + r0 + c0;
    const A* __restrict b = dz + r1 + c0;
    const int32_t* __restrict pa = places + r0 + c0;
    const int32_t* __restrict pb = places + r1 + c0;
    if (beside.count == 1) {
      for (int64_t i = 0; i < inner; ++i) {
        const A sum = (pa[i] == k0 + t0 ? a[i] : A(0)) + (pb[i] == k1 + t0 ? b[i] : A(0));
        narrow(share * sum, to[i]);
      }
      return;
    }
    const int32_t t1 = beside.tap[1];
    const A* __restrict a1 = a + inner;
    const A* __restrict b1 = b + inner;
    const int32_t* __restrict pa1 = pa + inner;
    const int32_t* __restrict pb1 = pb + inner;
    for (int64_t i = 0; i < inner; ++i) {
      A sum = (pa[i] == k0 + t0 ? a[i] : A(0)) + (pa1[i] == k0 + t1 ? a1[i] : A(0));
      sum += (pb[i] == k1 + t0 ? b[i] : A(0)) + (pb1[i] == k1 + t1 ? b1[i] : A(0));
      narrow(share * sum, to[i]);
    }
  };
  if (inner > 1) {
    for (int32_t x = 0; x < cols.size; ++x) one(x);
    return;
  }
  // Pairs of cells at two windows' starts: the first belongs to both, the second to the later one. Without padding the first
  // window has such a pair too: what lies before it in `places`, the end of the row above, never names a tap beyond its row.
  const int32_t first = cols.pad, full = (cols.size + cols.pad) / 2;
  for (int32_t x = 0; x < first; ++x) one(x);
  const A* __restrict a = dz + r0;
  const A* __restrict b = dz + r1;
  const int32_t* __restrict pa = places + r0;
  const int32_t* __restrict pb = places + r1;
  S* __restrict to = gradient - cols.pad;
  FASTNAS_INDEPENDENT
  for (int32_t w = first; w < full; ++w) {
    A both = (pa[w - 1] == k0 + 2 ? a[w - 1] : A(0)) + (pa[w] == k0 ? a[w] : A(0));
    both += (pb[w - 1] == k1 + 2 ? b[w - 1] : A(0)) + (pb[w] == k1 ? b[w] : A(0));
    const A later = (pa[w] == k0 + 1 ? a[w] : A(0)) + (pb[w] == k1 + 1 ? b[w] : A(0));
    store_pair(share * both, share * later, to + 2 * w);
  }
  for (int32_t x = 2 * full - cols.pad; x < cols.size; ++x) one(x);
}

}  // namespace fastnas
