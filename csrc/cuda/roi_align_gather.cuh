// RoIAlign backward on the GPU, the deterministic way: no atomics, every cell sums its regions in their order. Without torch.
//
// (1) `find_reach`: one thread per region writes its image, level and the cells it can touch (20 bytes). (2) One block owns
// 4 x 8 cells of one image and level and up to 32 packs of channels. It walks the list of regions 256 at a time, keeps in
// order those that reach its cells, and for eight of them at once lets threads compute the weights of its rows and columns
// in their bins. Then each thread adds the bins of the regions to its four cells, in fp32 registers, and stores them once
// in the features' type: no workspace, no zeroing.
// Bytes: every cell is written once; K * C * bins read, from L2 once for each of the tiles that a region covers; each block
// reads the list of 20 * K bytes from L2. A crowd of regions on one spot makes few tiles wait long: that is the price.
#pragma once

#include "roi_align_backward.cuh"

namespace fastnas::cuda {

constexpr int kTileRows = 4, kTileCols = 8;
constexpr int kTileCells = kTileRows * kTileCols;
constexpr int kTileSides = kTileRows + kTileCols;
constexpr int kLanes = 32;                                        // packs of channels per block, at most
constexpr int kCellsPerThread = kTileCells * kLanes / kRoiThreads;
constexpr int kBatch = 8;                                         // regions whose weights are computed at once
constexpr int kListed = 2 * kRoiThreads;

struct RoiReach {
  int map;                       // image * levels + level; -1 reaches nothing
  RoiCells cells;
};

struct TileGrid {
  int64_t end[kMaxLevels];       // blocks of the levels up to and with this one
  int64_t rows[kMaxLevels], cols[kMaxLevels];
  int64_t slices;                // of the channels
  int lanes;                     // packs per slice: a power of two
};

static __global__ void __launch_bounds__(kRoiThreads) find_reach(
    const __grid_constant__ RoiPyramid pyramid, const RoiBoxes boxes, const RoiPooling pooling,
    RoiReach* __restrict__ reach) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kRoiThreads;
  for (int64_t k = static_cast<int64_t>(blockIdx.x) * kRoiThreads + threadIdx.x; k < boxes.count; k += step) {
    const RoiPlace place = find_place(pyramid, boxes, pooling, k);
    const RoiCells cells = find_cells(pyramid, pooling, place);
    const bool reaches = cells.top <= cells.bottom;
    reach[k] = {reaches ? static_cast<int>(place.image * pyramid.levels + place.level) : -1, cells};
  }
}

struct TilePlace {
  int level, map, y, x;          // y, x: the tile's first cell
  int64_t image, slice;
};

__device__ __forceinline__ TilePlace tile_of(const RoiPyramid& pyramid, const TileGrid& tiles, int64_t block) {
  int level = 0;
  while (block >= tiles.end[level]) ++level;
  if (level > 0) block -= tiles.end[level - 1];
  TilePlace place;
  place.level = level;
  place.slice = block % tiles.slices;
  block /= tiles.slices;
  place.x = static_cast<int>(block % tiles.cols[level]) * kTileCols;
  block /= tiles.cols[level];
  place.y = static_cast<int>(block % tiles.rows[level]) * kTileRows;
  place.image = block / tiles.rows[level];
  place.map = static_cast<int>(place.image * pyramid.levels) + level;
  return place;
}

// What the threads of a block share. weights: [batch, 4 * ph + 8 * pw], rows of the tile first.
struct TileShared {
  int region[kListed];
  int warp_hits[kRoiThreads / 32];
  RoiPlace place[kBatch];
  CellBins bins[kBatch][kTileSides];
};

// Appends the regions first .. first + 255 that reach the tile, in order. Returns how many are listed now.
__device__ __forceinline__ int list_regions(
    const RoiReach* __restrict__ reach, int64_t count, int64_t first, const TilePlace& tile, int listed,
    TileShared& shared) {
  const int64_t k = first + threadIdx.x;
  bool hit = false;
  if (k < count) {
    const RoiReach r = reach[k];
    hit = r.map == tile.map && r.cells.top < tile.y + kTileRows && r.cells.bottom >= tile.y &&
        r.cells.left < tile.x + kTileCols && r.cells.right >= tile.x;
  }
  const unsigned hits = __ballot_sync(0xffffffffu, hit);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (lane == 0) shared.warp_hits[warp] = __popc(hits);
  __syncthreads();
  int before = 0, all = 0;
  for (int w = 0; w < kRoiThreads / 32; ++w) {
    before += w < warp ? shared.warp_hits[w] : 0;
    all += shared.warp_hits[w];
  }
  if (hit) shared.region[listed + before + __popc(hits & ((1u << lane) - 1))] = static_cast<int>(k);
  __syncthreads();
  return listed + all;
}

// pyramid: level.data is S [N, H, W, C] contiguous. Dynamic shared memory: batch * (4 * ph + 8 * pw) floats.
template <typename S, int kPack>
__global__ void __launch_bounds__(kRoiThreads, 2) roi_align_gather(
    const __grid_constant__ RoiPyramid pyramid, const RoiBoxes boxes, const RoiPooling pooling, const RoiGradient<S> grad,
    const __grid_constant__ TileGrid tiles, const RoiReach* __restrict__ reach, const int batch) {
  extern __shared__ __align__(16) float weights[];
  __shared__ TileShared shared;
  const int height = static_cast<int>(pooling.height), width = static_cast<int>(pooling.width);
  const int region_weights = kTileRows * height + kTileCols * width;
  const TilePlace tile = tile_of(pyramid, tiles, blockIdx.x);
  const RoiLevel& level = pyramid.level[tile.level];
  const int lane = threadIdx.x % tiles.lanes, group = threadIdx.x / tiles.lanes, groups = kRoiThreads / tiles.lanes;
  const int64_t channel = (tile.slice * tiles.lanes + lane) * kPack;
  const bool inside = channel < pyramid.channels;
  float sum[kCellsPerThread][kPack] = {};

  int listed = 0;
  for (int64_t first = 0; first < boxes.count; first += kRoiThreads) {
    listed = list_regions(reach, boxes.count, first, tile, listed, shared);
    if (listed + kRoiThreads <= kListed && first + kRoiThreads < boxes.count) continue;
    for (int begin = 0; begin < listed; begin += batch) {
      const int regions = smaller(batch, listed - begin);
      if (static_cast<int>(threadIdx.x) < regions) {
        shared.place[threadIdx.x] = find_place(pyramid, boxes, pooling, shared.region[begin + threadIdx.x]);
      }
      __syncthreads();
      for (int i = threadIdx.x; i < regions * kTileSides; i += kRoiThreads) {
        const int r = i / kTileSides, side = i % kTileSides;
        const bool row = side < kTileRows;
        const int j = row ? side : side - kTileRows;
        const RoiPlace& place = shared.place[r];
        float* of_region = weights + r * region_weights;
        shared.bins[r][side] = fill_cell(
            place.axis[row ? 0 : 1], row ? height : width, (row ? tile.y : tile.x) + j, row ? level.height : level.width,
            row ? sample_average(place) : 1.0f,
            row ? of_region + j * height : of_region + kTileRows * height + j * width);
      }
      __syncthreads();
      for (int r = 0; inside && r < regions; ++r) {
        const S* source = grad.data + shared.region[begin + r] * grad.region_stride + channel;
        const float* of_region = weights + r * region_weights;
#pragma unroll
        for (int i = 0; i < kCellsPerThread; ++i) {
          const int cell = group + i * groups, y = cell / kTileCols, x = cell % kTileCols;
          if (cell >= kTileCells) continue;
          const CellBins rows = shared.bins[r][y], cols = shared.bins[r][kTileRows + x];
          if (rows.count == 0) continue;
          gather_bins<kPack>(source, grad.row_stride, grad.col_stride, rows, of_region + y * height, cols,
                             of_region + kTileRows * height + x * width, sum[i]);
        }
      }
      __syncthreads();
    }
    listed = 0;
  }

  S* image = static_cast<S*>(level.data) + tile.image * level.image_stride + channel;
#pragma unroll
  for (int i = 0; i < kCellsPerThread; ++i) {
    const int cell = group + i * groups;
    const int y = tile.y + cell / kTileCols, x = tile.x + cell % kTileCols;
    if (!inside || cell >= kTileCells || y >= level.height || x >= level.width) continue;
    Pack<S, kPack> rounded;
#pragma unroll
    for (int j = 0; j < kPack; ++j) narrow(sum[i][j], rounded.value[j]);
    store_whole<kPack>(image + y * level.row_stride + x * level.col_stride, rounded);
  }
}

// The blocks of the second kernel; 0 when they are more than a grid holds.
inline unsigned tile_blocks(const RoiPyramid& pyramid, int64_t packs, TileGrid& tiles) {
  tiles.lanes = 1;
  while (tiles.lanes < kLanes && tiles.lanes < packs) tiles.lanes *= 2;
  tiles.slices = ceil_div(packs, tiles.lanes);
  int64_t blocks = 0;
  for (int64_t i = 0; i < pyramid.levels; ++i) {
    tiles.rows[i] = ceil_div(pyramid.level[i].height, kTileRows);
    tiles.cols[i] = ceil_div(pyramid.level[i].width, kTileCols);
    blocks += pyramid.images * tiles.rows[i] * tiles.cols[i] * tiles.slices;
    tiles.end[i] = blocks;
  }
  return blocks < (int64_t(1) << 31) ? static_cast<unsigned>(blocks) : 0;
}

template <typename S, int kPack>
cudaError_t launch_gather(
    const RoiPyramid& out, const RoiBoxes& boxes, const RoiPooling& pooling, const RoiGradient<S>& grad, RoiReach* reach,
    cudaStream_t stream) {
  TileGrid tiles{};
  const unsigned blocks = tile_blocks(out, out.channels / kPack, tiles);
  if (blocks == 0) return cudaErrorInvalidConfiguration;
  if (boxes.count > 0) {
    find_reach<<<grid_of(ceil_div(boxes.count, kRoiThreads), 1), kRoiThreads, 0, stream>>>(out, boxes, pooling, reach);
    const cudaError_t launched = cudaGetLastError();
    if (launched != cudaSuccess) return launched;
  }
  const int64_t each = (kTileRows * pooling.height + kTileCols * pooling.width) * static_cast<int64_t>(sizeof(float));
  const int64_t fit = kRoiSharedBytes / each;
  const int batch = static_cast<int>(fit < kBatch ? fit : kBatch);
  roi_align_gather<S, kPack><<<blocks, kRoiThreads, static_cast<size_t>(batch * each), stream>>>(
      out, boxes, pooling, grad, tiles, reach, batch);
  return cudaGetLastError();
}

// Writes every cell of the maps of `out`, channels-last and contiguous. reach: [K] of workspace. C > 0; K < 2^31;
// images * levels < 2^31; ph + pw <= kMostBins.
template <typename S>
cudaError_t roi_align_backward_deterministic(
    const RoiPyramid& out, const RoiBoxes& boxes, const RoiPooling& pooling, const RoiGradient<S>& grad, RoiReach* reach,
    cudaStream_t stream) {
  return packs_fit(grad, out.channels) ? launch_gather<S, kWide<S>>(out, boxes, pooling, grad, reach, stream)
                                       : launch_gather<S, 1>(out, boxes, pooling, grad, reach, stream);
}

}  // namespace fastnas::cuda
