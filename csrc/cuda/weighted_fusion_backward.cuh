// Gradients of a BiFPN node on the GPU, without torch: two kernels on the caller's stream, no atomics.
//
// `unfuse_tiles`: a block owns a tile of cells of one plane of the node (8 x 8 cells x 128 bytes of channels; 16 x 32 cells
// where planes are single numbers) and every input cell whose first reader lies in it. (1) For its cells and a rim of one
// (before them for pooled inputs, whose windows overlap; behind them only for 2h + 1 cells over h) it recomputes the sum
// from the inputs, keeps dz = grad * activation'(sum) in shared memory as fp32 with the tap of each pooled maximum as a
// byte, writes the gradients of inputs of the node's size and adds up the dot products <dz, input>. (2) Each cell of the
// other inputs gathers the dz of its readers (four, at most nine) in a fixed order. So nothing but the gradients goes back
// to memory: the floor, and at most 27 % of the reads a second time, mostly from the L2 cache.
// `finish_weights`: one block adds the dot products of the blocks in a fixed order and applies the quotient rule.
// The same shape gives the same grid and so the same bits on every run.
#pragma once

#include "weighted_fusion.cuh"

namespace fastnas::cuda {

constexpr int kUnfuseThreads = 192;  // two blocks fit a multiprocessor at 168 registers, which is what bf16 needs
constexpr int kFinishThreads = 256;
constexpr int64_t kMostUnfuseBlocks = 8192;  // a block takes several tiles beyond that, which bounds `finish_weights`

struct FusionTiles {
  int rows, cols, packs;      // cells of a tile, packs of a cell that a tile takes
  int before, behind;         // rim, in cells
  int per_plane_rows, per_plane_cols, per_cell;  // tiles
  int64_t count;
  int reach;                  // cells of a tile with its rim, at most
  int pooled;                 // inputs with Resample::kDown

  size_t shared(int V) const { return static_cast<size_t>(reach) * packs * V * (sizeof(float) + pooled); }
  int64_t blocks() const { return std::min(count, kMostUnfuseBlocks); }
};

template <typename S>
inline FusionTiles fusion_tiles(const FusionParams<S>& p, int V) {
  FusionTiles t{};
  t.packs = std::min(p.inner / V, V == 1 ? 32 : 8);
  t.rows = p.inner == 1 ? 16 : 8;
  t.cols = p.inner == 1 ? 32 : 8;
  for (int i = 0; i < p.count; ++i) {
    const FusionEdge<S>& edge = p.edges[i];
    if (edge.resample == Resample::kDown) {
      t.before = 1;
      ++t.pooled;
    }
    if (edge.resample == Resample::kUp && (edge.up_rows.shift || edge.up_cols.shift)) t.behind = 1;
  }
  t.per_plane_rows = (p.height + t.rows - 1) / t.rows;
  t.per_plane_cols = (p.width + t.cols - 1) / t.cols;
  t.per_cell = (p.inner / V + t.packs - 1) / t.packs;
  t.count = p.planes * t.per_plane_rows * t.per_plane_cols * t.per_cell;
  t.reach = (t.rows + t.before + t.behind) * (t.cols + t.before + t.behind);
  return t;
}

// One tile as a block sees it: its own cells [top, bottom) x [left, right) and, with the rim, [rim_top, ...).
struct Tile {
  int64_t plane;
  int top, bottom, left, right, rim_top, rim_bottom, rim_left, rim_right, first_pack;

  __device__ Tile(int64_t index, const FusionTiles& t, int height, int width) {
    first_pack = static_cast<int>(index % t.per_cell) * t.packs;
    index /= t.per_cell;
    left = static_cast<int>(index % t.per_plane_cols) * t.cols;
    index /= t.per_plane_cols;
    top = static_cast<int>(index % t.per_plane_rows) * t.rows;
    plane = index / t.per_plane_rows;
    bottom = min(top + t.rows, height);
    right = min(left + t.cols, width);
    rim_top = max(top - t.before, 0);
    rim_left = max(left - t.before, 0);
    rim_bottom = min(bottom + t.behind, height);
    rim_right = min(right + t.behind, width);
  }
  __device__ int rim_cells() const { return (rim_bottom - rim_top) * (rim_right - rim_left); }
  __device__ int slot(int y, int x) const { return (y - rim_top) * (rim_right - rim_left) + x - rim_left; }
};

// dz and places of a tile in shared memory. Packs of eight numbers lie as two halves apart, so that neighbouring lanes
// always touch neighbouring 16 bytes.
template <int V>
struct TileMemory {
  static constexpr int kPart = V < 4 ? V : 4;
  float* dz;          // [slots, V / kPart, packs, kPart]
  uint8_t* places;    // [pooled inputs][slots, packs, V]
  int packs, per_input;

  __device__ void put(int slot, int pack, const float (&value)[V]) const {
#pragma unroll
    for (int h = 0; h < V / kPart; ++h) {
      Pack<float, kPart> part;
#pragma unroll
      for (int v = 0; v < kPart; ++v) part.value[v] = value[h * kPart + v];
      store_pack(dz + ((slot * (V / kPart) + h) * packs + pack) * kPart, part);
    }
  }
  __device__ void get(int slot, int pack, float (&value)[V]) const {
#pragma unroll
    for (int h = 0; h < V / kPart; ++h) {
      const auto part = load_pack<kPart>(dz + ((slot * (V / kPart) + h) * packs + pack) * kPart);
#pragma unroll
      for (int v = 0; v < kPart; ++v) value[h * kPart + v] = part.value[v];
    }
  }
  __device__ void put_places(int pooled, int slot, int pack, const uint8_t (&place)[V]) const {
    Pack<uint8_t, V> bytes;
#pragma unroll
    for (int v = 0; v < V; ++v) bytes.value[v] = place[v];
    store_pack(places + pooled * per_input + (slot * packs + pack) * V, bytes);
  }
  __device__ Pack<uint8_t, V> get_places(int pooled, int slot, int pack) const {
    return load_pack<V>(places + pooled * per_input + (slot * packs + pack) * V);
  }
};

template <int V, typename S>
__device__ __forceinline__ void store_scaled(const float (&sum)[V], float share, S* __restrict__ to) {
  Pack<S, V> result;
#pragma unroll
  for (int v = 0; v < V; ++v) narrow(share * sum[v], result.value[v]);
  store_pack(to, result);
}

// Step 1. Adds to `dots`.
template <int V, typename S>
__device__ __forceinline__ void slopes_of_tile(
    const FusionParams<S>& p, const Shares<float>& shares, const Tile& tile, const TileMemory<V>& memory,
    float (&dots)[kMostInputs]) {
  const int items = tile.rim_cells() * memory.packs, rim_width = tile.rim_right - tile.rim_left;
  for (int item = static_cast<int>(threadIdx.x); item < items; item += kUnfuseThreads) {
    const int slot = item / memory.packs, pack = item - slot * memory.packs;
    const int c = (tile.first_pack + pack) * V;
    if (c >= p.inner) continue;
    const int y = tile.rim_top + slot / rim_width, x = tile.rim_left + slot % rim_width;
    const int64_t at = ((tile.plane * p.height + y) * p.width + x) * p.inner + c;
    const Pack<S, V> grad = load_pack<V>(p.grad + at);
    float values[kMostInputs][V], dz[V];
    uint8_t places[kMostInputs][V];
    gather<true>(p, tile.plane, y, x, c, values, places);
    weighted_sum(values, shares, p.count, dz);
#pragma unroll
    for (int v = 0; v < V; ++v) dz[v] = widen(grad.value[v]) * activation_slope(dz[v], p.activation);
    memory.put(slot, pack, dz);
    const bool own = y >= tile.top && y < tile.bottom && x >= tile.left && x < tile.right;
    int pooled = 0;
#pragma unroll
    for (int i = 0; i < kMostInputs; ++i) {
      if (i >= p.count) continue;
      if (p.edges[i].resample == Resample::kDown) memory.put_places(pooled++, slot, pack, places[i]);
      if (!own) continue;
#pragma unroll
      for (int v = 0; v < V; ++v) dots[i] += dz[v] * values[i][v];
      if (p.edges[i].resample == Resample::kSame) store_scaled(dz, shares.share[i], p.edges[i].gradient + at);
    }
  }
}

// Step 2 for an upsampled input: coarse cells whose first fine cell is in the tile.
template <int V, typename S>
__device__ __forceinline__ void gather_up(
    const FusionParams<S>& p, const FusionEdge<S>& edge, float share, const Tile& tile, const TileMemory<V>& memory) {
  int top = edge.up_rows.source(tile.top), left = edge.up_cols.source(tile.left);
  if (edge.up_rows.first(top) < tile.top) ++top;
  if (edge.up_cols.first(left) < tile.left) ++left;
  const int height = edge.up_rows.source(tile.bottom - 1) + 1 - top, width = edge.up_cols.source(tile.right - 1) + 1 - left;
  const int items = height * width * memory.packs;  // either side may be 0, where a tile only ends a cell
  for (int item = static_cast<int>(threadIdx.x); item < items; item += kUnfuseThreads) {
    const int place = item / memory.packs, pack = item - place * memory.packs;
    const int c = (tile.first_pack + pack) * V;
    if (c >= p.inner) continue;
    const int y = top + place / width, x = left + place % width;
    float sum[V] = {};
    for (int row = edge.up_rows.first(y); row < edge.up_rows.end(y); ++row) {
      for (int col = edge.up_cols.first(x); col < edge.up_cols.end(x); ++col) {
        float dz[V];
        memory.get(tile.slot(row, col), pack, dz);
#pragma unroll
        for (int v = 0; v < V; ++v) sum[v] += dz[v];
      }
    }
    store_scaled(sum, share, edge.gradient + ((tile.plane * edge.height + y) * edge.width + x) * p.inner + c);
  }
}

// Step 2 for a pooled input: its cells belong to the tile of the last window that reads them.
template <int V, typename S>
__device__ __forceinline__ void gather_down(
    const FusionParams<S>& p, const FusionEdge<S>& edge, float share, const Tile& tile, const TileMemory<V>& memory, int pooled) {
  const int top = edge.pool_rows.first_owned(tile.top), left = edge.pool_cols.first_owned(tile.left);
  const int height = edge.pool_rows.end_owned(tile.bottom) - top, width = edge.pool_cols.end_owned(tile.right) - left;
  const int items = height * width * memory.packs;
  for (int item = static_cast<int>(threadIdx.x); item < items; item += kUnfuseThreads) {
    const int place = item / memory.packs, pack = item - place * memory.packs;
    const int c = (tile.first_pack + pack) * V;
    if (c >= p.inner) continue;
    const int y = top + place / width, x = left + place % width;
    const int last_row = edge.pool_rows.last_window(y), row_tap = edge.pool_rows.tap_in_last(y);
    const int last_col = edge.pool_cols.last_window(x), col_tap = edge.pool_cols.tap_in_last(x);
    float sum[V] = {};
#pragma unroll
    for (int i = 0; i < 2; ++i) {  // the window before, which reads the cell as tap 2, then the last one
      const int row = last_row - 1 + i, ky = i ? row_tap : 2;
      if ((i == 0 && row_tap != 0) || row < 0 || row >= edge.pool_rows.windows) continue;
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int col = last_col - 1 + j, kx = j ? col_tap : 2;
        if ((j == 0 && col_tap != 0) || col < 0 || col >= edge.pool_cols.windows) continue;
        const int slot = tile.slot(row, col);
        const Pack<uint8_t, V> taken = memory.get_places(pooled, slot, pack);
        float dz[V];
        memory.get(slot, pack, dz);
#pragma unroll
        for (int v = 0; v < V; ++v) sum[v] += taken.value[v] == 3 * ky + kx ? dz[v] : 0.0f;
      }
    }
    store_scaled(sum, share, edge.gradient + ((tile.plane * edge.height + y) * edge.width + x) * p.inner + c);
  }
}

// dots: [blocks, kMostInputs], or null where nobody wants the gradient of the weights.
template <int V, typename S>
__global__ void __launch_bounds__(kUnfuseThreads, 2) unfuse_tiles(
    const __grid_constant__ FusionParams<S> p, const __grid_constant__ FusionTiles t, float* __restrict__ dots) {
  extern __shared__ __align__(16) unsigned char shared[];
  TileMemory<V> memory;
  memory.packs = t.packs;
  memory.per_input = t.reach * t.packs * V;
  memory.dz = reinterpret_cast<float*>(shared);
  memory.places = shared + sizeof(float) * memory.per_input;

  const Shares<float> shares(p.weights, p.count, p.method, p.eps);
  float sums[kMostInputs] = {};
  for (int64_t index = blockIdx.x; index < t.count; index += gridDim.x) {
    const Tile tile(index, t, p.height, p.width);
    slopes_of_tile(p, shares, tile, memory, sums);
    __syncthreads();
    int pooled = 0;
#pragma unroll
    for (int i = 0; i < kMostInputs; ++i) {
      if (i >= p.count) continue;
      const FusionEdge<S>& edge = p.edges[i];
      if (edge.resample == Resample::kUp) gather_up(p, edge, shares.share[i], tile, memory);
      if (edge.resample == Resample::kDown) gather_down(p, edge, shares.share[i], tile, memory, pooled++);
    }
    __syncthreads();  // the next tile overwrites the memory
  }
  if (!dots) return;

  __shared__ float of_warp[kUnfuseThreads / 32][kMostInputs];
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
#pragma unroll
  for (int i = 0; i < kMostInputs; ++i) {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) sums[i] += __shfl_down_sync(0xffffffffu, sums[i], offset);
    if (lane == 0) of_warp[warp][i] = sums[i];
  }
  __syncthreads();
  if (threadIdx.x < kMostInputs) {
    float sum = 0.0f;
    for (int w = 0; w < kUnfuseThreads / 32; ++w) sum += of_warp[w][threadIdx.x];
    dots[static_cast<int64_t>(blockIdx.x) * kMostInputs + threadIdx.x] = sum;
  }
}

// One block. dots: [blocks, kMostInputs] -> gradients: [count]
static __global__ void __launch_bounds__(kFinishThreads) finish_weights(
    const float* __restrict__ dots, int blocks, const float* __restrict__ weights, int count, Method method, float eps,
    float* __restrict__ gradients) {
  __shared__ double of_thread[kMostInputs][kFinishThreads];
  const int thread = static_cast<int>(threadIdx.x);
  double sums[kMostInputs] = {};
  for (int b = thread; b < blocks; b += kFinishThreads) {
#pragma unroll
    for (int i = 0; i < kMostInputs; ++i) sums[i] += dots[b * kMostInputs + i];
  }
#pragma unroll
  for (int i = 0; i < kMostInputs; ++i) of_thread[i][thread] = sums[i];
  for (int half = kFinishThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (thread < half) {
#pragma unroll
      for (int i = 0; i < kMostInputs; ++i) of_thread[i][thread] += of_thread[i][thread + half];
    }
  }
  if (thread > 0) return;
  float totals[kMostInputs], values[kMostInputs], results[kMostInputs] = {};
#pragma unroll
  for (int i = 0; i < kMostInputs; ++i) {
    totals[i] = static_cast<float>(of_thread[i][0]);
    values[i] = i < count ? weights[i] : 0.0f;
  }
  weight_gradients(values, totals, count, method, eps, results);
#pragma unroll
  for (int i = 0; i < kMostInputs; ++i) {
    if (i < count) gradients[i] = results[i];
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Host side

template <typename S>
inline int unfuse_pack(const FusionParams<S>& p) { return cells_in_packs<kWide<S>>(p) ? kWide<S> : 1; }

// dots: [fusion_tiles(p, unfuse_pack(p)).blocks(), kMostInputs] fp32, null where the weights get no gradient.
template <typename S>
cudaError_t unfuse(const FusionParams<S>& p, float* dots, float* weight_gradients_out, cudaStream_t stream) {
  const int pack = unfuse_pack(p);
  const FusionTiles t = fusion_tiles(p, pack);
  const auto blocks = static_cast<unsigned>(t.blocks());
  if (pack == 1) {
    unfuse_tiles<1, S><<<blocks, kUnfuseThreads, t.shared(1), stream>>>(p, t, dots);
  } else {
    unfuse_tiles<kWide<S>, S><<<blocks, kUnfuseThreads, t.shared(pack), stream>>>(p, t, dots);
  }
  const cudaError_t launched = cudaGetLastError();
  if (launched != cudaSuccess || !dots) return launched;
  finish_weights<<<1, kFinishThreads, 0, stream>>>(
      dots, static_cast<int>(blocks), p.weights, p.count, p.method, p.eps, weight_gradients_out);
  return cudaGetLastError();
}

}  // namespace fastnas::cuda
