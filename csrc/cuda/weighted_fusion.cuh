// Weighted fusion of a BiFPN node on the GPU, forward, without torch: one kernel on the caller's stream. Formulas and cells:
// csrc/fusion.h. The backward kernels are in weighted_fusion_backward.cuh.
//
// Maps are planes of rows of cells of `inner` contiguous numbers: [N, H, W, C] with inner = C, or [N * C, H, W] with
// inner = 1. Lanes lie along a row, so across the channels where they are innermost and across the columns where not.
//
// `fuse_cells`: one thread owns one pack (16 bytes, or one number where sizes or addresses are odd) of one output cell; the
// loads of all inputs that need no pooling are issued before the first is used. `fuse_rows`: the same for planes whose rows
// divide into packs: one thread owns a pack of columns, reads half a pack of an upsampled input and three times two packs
// and one number of a pooled one. Bytes: every input once (the nine reads of a pooled cell meet in the L1 cache), the
// result once: the floor. Nothing is shared between threads, so there is nothing to synchronise and no limit but bandwidth.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "../fusion.h"
#include "vector.cuh"

namespace fastnas::cuda {

template <typename S>
struct FusionEdge {
  const S* map;    // [planes, height, width, inner]
  S* gradient;     // the same, backward only
  Resample resample;
  int height, width;
  UpAxis up_rows, up_cols;
  PoolAxis pool_rows, pool_cols;
};

template <typename S>
struct FusionParams {
  FusionEdge<S> edges[kMostInputs];
  int count;
  Method method;
  Activation activation;
  float eps;
  const float* weights;  // [count], null for Method::kSum
  int64_t planes;
  int height, width, inner;
  S* out;                // [planes, height, width, inner], forward
  const S* grad;         // the same, backward
};

__device__ __forceinline__ float activate(float z, Activation activation) {
  if (activation == Activation::kRelu) return z < 0.0f ? 0.0f : z;  // NaN stays
  if (activation == Activation::kSilu) return z / (1.0f + __expf(-z));
  return z;
}

__device__ __forceinline__ float activation_slope(float z, Activation activation) {
  if (activation == Activation::kRelu) return z <= 0.0f ? 0.0f : 1.0f;
  if (activation == Activation::kSilu) {
    const float sigmoid = 1.0f / (1.0f + __expf(-z));
    return sigmoid * (1.0f + z * (1.0f - sigmoid));
  }
  return 1.0f;
}

template <typename S>
__device__ __forceinline__ const S* cell(const FusionEdge<S>& edge, int inner, int64_t plane, int row, int col) {
  return edge.map + ((plane * edge.height + row) * edge.width + col) * inner;
}

// Maximum of nine packs, and (kPlaces) the number row tap * 3 + column tap of the one that has it.
template <bool kPlaces, int V, typename S>
__device__ __forceinline__ void pool_cell(
    const FusionEdge<S>& edge, int inner, int64_t plane, int y, int x, int c, float (&best)[V], uint8_t (&place)[V]) {
#pragma unroll
  for (int ky = 0; ky < 3; ++ky) {
    const int row = edge.pool_rows.cell(y, ky);
    Pack<S, V> taps[3];
    int number[3];
#pragma unroll
    for (int kx = 0; kx < 3; ++kx) {
      const int col = edge.pool_cols.cell(x, kx);
      taps[kx] = load_pack<V>(cell(edge, inner, plane, row, col) + c);
      number[kx] = (row - edge.pool_rows.start(y)) * 3 + col - edge.pool_cols.start(x);
    }
#pragma unroll
    for (int kx = 0; kx < 3; ++kx) {
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const float value = widen(taps[kx].value[v]);
        const bool taken = (ky == 0 && kx == 0) || replaces(value, best[v]);
        best[v] = taken ? value : best[v];
        if (kPlaces) place[v] = taken ? static_cast<uint8_t>(number[kx]) : place[v];
      }
    }
  }
}

// The inputs at cell (y, x), numbers c to c + V - 1, and the places of the maxima.
template <bool kPlaces, int V, typename S>
__device__ __forceinline__ void gather(
    const FusionParams<S>& p, int64_t plane, int y, int x, int c, float (&values)[kMostInputs][V],
    uint8_t (&places)[kMostInputs][V]) {
  Pack<S, V> direct[kMostInputs];
#pragma unroll
  for (int i = 0; i < kMostInputs; ++i) {
    if (i >= p.count || p.edges[i].resample == Resample::kDown) continue;
    const FusionEdge<S>& edge = p.edges[i];
    const bool up = edge.resample == Resample::kUp;
    const int row = up ? edge.up_rows.source(y) : y, col = up ? edge.up_cols.source(x) : x;
    direct[i] = load_pack<V>(cell(edge, p.inner, plane, row, col) + c);
  }
#pragma unroll
  for (int i = 0; i < kMostInputs; ++i) {
    if (i >= p.count) continue;
    if (p.edges[i].resample == Resample::kDown) {
      pool_cell<kPlaces>(p.edges[i], p.inner, plane, y, x, c, values[i], places[i]);
    } else {
#pragma unroll
      for (int v = 0; v < V; ++v) values[i][v] = widen(direct[i].value[v]);
    }
  }
}

template <int V>
__device__ __forceinline__ void weighted_sum(
    const float (&values)[kMostInputs][V], const Shares<float>& shares, int count, float (&sum)[V]) {
#pragma unroll
  for (int v = 0; v < V; ++v) {
    sum[v] = values[0][v] * shares.share[0] + values[1][v] * shares.share[1];
    if (count == 3) sum[v] += values[2][v] * shares.share[2];
  }
}

template <int V, typename S>
__device__ __forceinline__ void store_activated(const float (&sum)[V], Activation activation, S* __restrict__ to) {
  Pack<S, V> result;
#pragma unroll
  for (int v = 0; v < V; ++v) narrow(activate(sum[v], activation), result.value[v]);
  store_pack(to, result);
}

// Block: (x: packs of a row, y: rows). Grid: (x: rows, y: the rest of the packs of a row).
constexpr int kFuseThreads = 256;

template <int V, typename S>
__global__ void __launch_bounds__(kFuseThreads) fuse_cells(const __grid_constant__ FusionParams<S> p) {
  const int packs = p.inner / V;
  const int item = static_cast<int>(blockIdx.y * blockDim.x + threadIdx.x);
  const int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  if (item >= p.width * packs || row >= p.planes * p.height) return;
  const int x = item / packs, c = (item - x * packs) * V;
  const int64_t plane = row / p.height;
  const int y = static_cast<int>(row - plane * p.height);

  const Shares<float> shares(p.weights, p.count, p.method, p.eps);
  float values[kMostInputs][V], sum[V];
  uint8_t places[kMostInputs][V];
  gather<false>(p, plane, y, x, c, values, places);
  weighted_sum(values, shares, p.count, sum);
  store_activated(sum, p.activation, p.out + (row * p.width + x) * p.inner + c);
}

// Maxima of V neighbouring windows of one plane; the input's row is twice as long as the node's. kPad: cells before the map.
template <int kPad, int V, typename S>
__device__ __forceinline__ void pool_columns(const FusionEdge<S>& edge, int64_t plane, int y, int x, float (&best)[V]) {
#pragma unroll
  for (int ky = 0; ky < 3; ++ky) {
    const S* from = cell(edge, 1, plane, edge.pool_rows.cell(y, ky), 2 * x);
    const Pack<S, V> left = load_pack<V>(from), right = load_pack<V>(from + V);
    // One cell more is needed: before the packs, or behind them; outside the map its neighbour stands for it.
    const bool inside = kPad ? x > 0 : 2 * (x + V) < edge.width;
    const float more = widen(from[kPad ? (inside ? -1 : 0) : (inside ? 2 * V : 2 * V - 1)]);
#pragma unroll
    for (int v = 0; v < V; ++v) {
#pragma unroll
      for (int kx = 0; kx < 3; ++kx) {
        const int at = 2 * v + kx - kPad;
        float value = more;
        if (at >= 0 && at < V) value = widen(left.value[at < 0 || at >= V ? 0 : at]);
        if (at >= V && at < 2 * V) value = widen(right.value[at < V || at >= 2 * V ? 0 : at - V]);
        best[v] = (ky == 0 && kx == 0) || replaces(value, best[v]) ? value : best[v];
      }
    }
  }
}

template <int V, typename S>
__global__ void __launch_bounds__(kFuseThreads) fuse_rows(const __grid_constant__ FusionParams<S> p) {
  const int x = static_cast<int>(blockIdx.y * blockDim.x + threadIdx.x) * V;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  if (x >= p.width || row >= p.planes * p.height) return;
  const int64_t plane = row / p.height;
  const int y = static_cast<int>(row - plane * p.height);

  const Shares<float> shares(p.weights, p.count, p.method, p.eps);
  Pack<S, V> same[kMostInputs];
  Pack<S, V / 2> coarse[kMostInputs];
#pragma unroll
  for (int i = 0; i < kMostInputs; ++i) {
    if (i >= p.count) continue;
    const FusionEdge<S>& edge = p.edges[i];
    if (edge.resample == Resample::kSame) same[i] = load_pack<V>(cell(edge, 1, plane, y, x));
    if (edge.resample == Resample::kUp) coarse[i] = load_pack<V / 2>(cell(edge, 1, plane, edge.up_rows.source(y), x / 2));
  }
  float values[kMostInputs][V], sum[V];
#pragma unroll
  for (int i = 0; i < kMostInputs; ++i) {
    if (i >= p.count) continue;
    const FusionEdge<S>& edge = p.edges[i];
    if (edge.resample == Resample::kDown) {
      if (edge.pool_cols.pad) {
        pool_columns<1>(edge, plane, y, x, values[i]);
      } else {
        pool_columns<0>(edge, plane, y, x, values[i]);
      }
    } else {
      const bool up = edge.resample == Resample::kUp;
#pragma unroll
      for (int v = 0; v < V; ++v) values[i][v] = widen(up ? coarse[i].value[v / 2] : same[i].value[v]);
    }
  }
  weighted_sum(values, shares, p.count, sum);
  store_activated(sum, p.activation, p.out + row * p.width + x);
}

// ---------------------------------------------------------------------------------------------------------------------
// Host side

// Whether every map, and its gradient, may be read in packs of V numbers of a cell.
template <int V, typename S>
inline bool cells_in_packs(const FusionParams<S>& p) {
  bool fits = aligned(p.out, p.inner, V) && aligned(p.grad, p.inner, V);
  for (int i = 0; i < p.count; ++i) {
    fits = fits && aligned(p.edges[i].map, p.inner, V) && aligned(p.edges[i].gradient, p.inner, V);
  }
  return fits;
}

// Whether rows of all maps of single numbers divide into packs, exactly two to one between levels.
template <int V, typename S>
inline bool rows_in_packs(const FusionParams<S>& p) {
  bool fits = p.inner == 1 && aligned(p.out, p.width, V);
  for (int i = 0; i < p.count; ++i) {
    const FusionEdge<S>& edge = p.edges[i];
    const int width = edge.resample == Resample::kUp ? 2 * edge.width
                    : edge.resample == Resample::kDown ? edge.width / 2 + edge.width % 2 * V
                                                       : edge.width;
    fits = fits && width == p.width && aligned(edge.map, 0, V);
  }
  return fits;
}

template <typename Kernel, typename S>
cudaError_t launch_rows(Kernel kernel, const FusionParams<S>& p, int items, cudaStream_t stream) {
  int along = 32;
  while (along < items && along < kFuseThreads) along *= 2;
  const int down = kFuseThreads / along;
  const int64_t rows = (p.planes * p.height + down - 1) / down;
  const int64_t segments = (static_cast<int64_t>(items) + along - 1) / along;
  if (rows > INT32_MAX || segments > 65535) return cudaErrorInvalidConfiguration;
  kernel<<<dim3(static_cast<unsigned>(rows), static_cast<unsigned>(segments)), dim3(along, down), 0, stream>>>(p);
  return cudaGetLastError();
}

template <typename S>
cudaError_t fuse(const FusionParams<S>& p, cudaStream_t stream) {
  constexpr int V = kWide<S>;
  if (rows_in_packs<V>(p)) return launch_rows(fuse_rows<V, S>, p, p.width / V, stream);
  if (cells_in_packs<V>(p)) return launch_rows(fuse_cells<V, S>, p, p.width * (p.inner / V), stream);
  return launch_rows(fuse_cells<1, S>, p, p.width * p.inner, stream);
}

}  // namespace fastnas::cuda
