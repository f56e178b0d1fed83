// The tile that one block owns in every GroupNorm kernel - some channels x some pixels of one image - and how its threads walk
// over it and sum it per channel. Free of torch.
//
// Threads move packs: kPack elements that lie side by side (16 bytes, or one element where sizes or addresses do not allow it).
// Channels-last: a pack is kPack channels of a pixel; each thread keeps its channels and strides over pixels, so that sums per
// channel stay in its registers. Else: a pack is kPack pixels of a channel; a warp owns a unit of 32 * kBatch packs of one
// channel. kBatch independent loads are in flight before the first is used. All sums have a fixed order: no atomics.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "../group_norm_shape.h"
#include "vector.cuh"

namespace fastnas::cuda {

constexpr int kNormThreads = 256;
constexpr int kNormWarps = kNormThreads / 32;

// How all maps of a call are cut into tiles: bundles of channels x slices of pixels.
struct NormCut {
  int bundle;         // channels of a tile, at most
  int slice_pixels;   // pixels of a tile, at most
  int slices;         // of an image
  int bundles;        // of an image
  bool resident;      // a tile's data stays in shared memory and the slices of a bundle are one cluster
  int64_t blocks;
  size_t shared_bytes;
  int shared_limit;   // of a block on this device
};

struct NormTile {
  int64_t image, pixel;
  int channel, channels, pixels, slice;
};

__device__ __forceinline__ int smaller_int(int64_t a, int64_t b) { return static_cast<int>(a < b ? a : b); }

__device__ __forceinline__ NormTile norm_tile(const GroupShape& shape, const NormCut& cut) {
  const int64_t block = blockIdx.x;  // slices innermost: the blocks of a cluster are neighbours
  const int slice = static_cast<int>(block % cut.slices);
  const int64_t bundle = block / cut.slices % cut.bundles;
  NormTile tile;
  tile.image = block / cut.slices / cut.bundles;
  tile.slice = slice;
  tile.channel = static_cast<int>(bundle) * cut.bundle;
  tile.channels = smaller_int(cut.bundle, shape.channels - tile.channel);
  tile.pixel = static_cast<int64_t>(slice) * cut.slice_pixels;
  tile.pixels = smaller_int(cut.slice_pixels, shape.pixels - tile.pixel);
  return tile;
}

template <typename T>
__device__ __forceinline__ T* tile_address(const MapView<T>& view, const NormTile& tile, int channel, int pixel) {
  return view.data + tile.image * view.image + (tile.channel + channel) * view.channel + (tile.pixel + pixel) * view.pixel;
}

// Where a pack lies in the tile; its element e is of channel + e (channels-last) or of pixel + e.
struct Place {
  int channel, pixel;
};
template <bool kLast>
__device__ __forceinline__ int channel_of(const Place& place, int e) {
  return kLast ? place.channel + e : place.channel;
}
// Index of the pack's first element in the tile's copy in shared memory.
template <bool kLast>
__device__ __forceinline__ int slot(const NormTile& tile, const NormCut& cut, const Place& place) {
  return kLast ? place.pixel * tile.channels + place.channel : place.channel * cut.slice_pixels + place.pixel;
}

// Packs of one channel's pixels (or of one pixel's channels), and units of 32 * kBatch packs of the former.
template <bool kLast, int kPack>
__device__ __forceinline__ int packs_across(const NormTile& tile) {
  return (kLast ? tile.channels : tile.pixels) / kPack;
}
template <int kBatch>
__host__ __device__ __forceinline__ int units_of(int packs) {
  return (packs + 32 * kBatch - 1) / (32 * kBatch);
}

// use(place, fetch(place)) for kBatch packs that start at `first` and are `step` apart, as far as they are before `end`.
template <int kBatch, typename At, typename Fetch, typename Use>
__device__ __forceinline__ void batch(int first, int step, int end, At at, Fetch fetch, Use use) {
  decltype(fetch(at(first))) fetched[kBatch];
#pragma unroll
  for (int b = 0; b < kBatch; ++b) {
    if (first + b * step < end) fetched[b] = fetch(at(first + b * step));
  }
#pragma unroll
  for (int b = 0; b < kBatch; ++b) {
    if (first + b * step < end) use(at(first + b * step), fetched[b]);
  }
}

// use(place, fetch(place)) for every pack of the tile.
template <bool kLast, int kPack, int kBatch, typename Fetch, typename Use>
__device__ __forceinline__ void walk(const NormTile& tile, Fetch fetch, Use use) {
  const int across = packs_across<kLast, kPack>(tile);
  if (kLast) {
    const int step = static_cast<int>(blockDim.x) / across;
    const int column = static_cast<int>(threadIdx.x) % across * kPack;
    const int row = static_cast<int>(threadIdx.x) / across;
    if (row >= step) return;
    for (int first = row; first < tile.pixels; first += step * kBatch) {
      batch<kBatch>(first, step, tile.pixels, [=](int pixel) { return Place{column, pixel}; }, fetch, use);
    }
  } else {
    const int units = units_of<kBatch>(across);
    for (int u = threadIdx.x / 32; u < tile.channels * units; u += blockDim.x / 32) {
      const int channel = u / units, first = u % units * 32 * kBatch + threadIdx.x % 32;
      batch<kBatch>(first, 32, across, [=](int pack) { return Place{channel, pack * kPack}; }, fetch, use);
    }
  }
}

__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
  return value;
}

// Rows of partial sums that channels-last threads leave in scratch memory: one per warp where the columns of a warp repeat
// within it, else one per row of threads.
__host__ __device__ __forceinline__ bool folds_in_warp(int across) { return across <= 32 && (across & (across - 1)) == 0; }
__host__ __device__ __forceinline__ int scratch_rows(int across, int threads) {
  return folds_in_warp(across) ? threads / 32 : threads / across;
}

// totals[v * stride + c] = sum over the tile's pixels of what use(place, fetched, sums) adds to sums[v][e]. Every thread of the
// block must call it; totals can be read afterwards. scratch: kValues * (scratch_rows * channels, or units of the tile).
template <bool kLast, int kPack, int kBatch, int kValues, typename Fetch, typename Use>
__device__ __forceinline__ void channel_sums(
    const NormTile& tile, Fetch fetch, Use use, float* scratch, float* totals, int stride) {
  const int across = packs_across<kLast, kPack>(tile);
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  float sums[kValues][kPack];
  if (kLast) {
#pragma unroll
    for (int v = 0; v < kValues; ++v) {
#pragma unroll
      for (int e = 0; e < kPack; ++e) sums[v][e] = 0.0f;
    }
    walk<kLast, kPack, kBatch>(tile, fetch, [&](const Place& place, const auto& fetched) { use(place, fetched, sums); });
    const int rows = scratch_rows(across, threads);
    int row = thread / across;
    bool writes = row < rows;
    if (folds_in_warp(across)) {
#pragma unroll
      for (int offset = 16; offset > 0; offset /= 2) {
        if (offset < across) break;
#pragma unroll
        for (int v = 0; v < kValues; ++v) {
#pragma unroll
          for (int e = 0; e < kPack; ++e) sums[v][e] += __shfl_xor_sync(0xffffffffu, sums[v][e], offset);
        }
      }
      row = thread / 32;
      writes = thread % 32 < across;
    }
    if (writes) {
#pragma unroll
      for (int v = 0; v < kValues; ++v) {
#pragma unroll
        for (int e = 0; e < kPack; ++e) {
          scratch[(v * rows + row) * tile.channels + thread % across * kPack + e] = sums[v][e];
        }
      }
    }
    __syncthreads();
    for (int i = thread; i < kValues * tile.channels; i += threads) {
      const int v = i / tile.channels, c = i % tile.channels;
      float total = 0.0f;
      for (int r = 0; r < rows; ++r) total += scratch[(v * rows + r) * tile.channels + c];
      totals[v * stride + c] = total;
    }
  } else {
    const int units = units_of<kBatch>(across), all = tile.channels * units;
    for (int u = thread / 32; u < all; u += threads / 32) {
#pragma unroll
      for (int v = 0; v < kValues; ++v) {
#pragma unroll
        for (int e = 0; e < kPack; ++e) sums[v][e] = 0.0f;
      }
      const int channel = u / units, first = u % units * 32 * kBatch + thread % 32;
      batch<kBatch>(first, 32, across, [=](int pack) { return Place{channel, pack * kPack}; }, fetch,
                    [&](const Place& place, const auto& fetched) { use(place, fetched, sums); });
#pragma unroll
      for (int v = 0; v < kValues; ++v) {
        float total = 0.0f;
#pragma unroll
        for (int e = 0; e < kPack; ++e) total += sums[v][e];
        total = warp_sum(total);
        if (thread % 32 == 0) scratch[v * all + u] = total;
      }
    }
    __syncthreads();
    for (int i = thread; i < kValues * tile.channels; i += threads) {
      const int v = i / tile.channels, c = i % tile.channels;
      float total = 0.0f;
      for (int u = 0; u < units; ++u) total += scratch[v * all + c * units + u];
      totals[v * stride + c] = total;
    }
  }
  __syncthreads();
}

}  // namespace fastnas::cuda
