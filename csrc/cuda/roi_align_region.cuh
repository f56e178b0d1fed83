// What the RoIAlign kernels share: the pyramid that is passed by value, and where a region lies on it. Without torch.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

#include "../geometry.h"
#include "vector.cuh"

namespace fastnas::cuda {

constexpr int kMaxLevels = 8;
constexpr int kRoiThreads = 256;

// Arguments of a kernel, by value: no copy to the device, nothing to free, safe in a CUDA graph.
struct RoiLevel {
  void* data;                   // [N, H, W, C]: channels contiguous, the other strides below, in elements
  int64_t image_stride, row_stride, col_stride;
  int64_t height, width;
  float scale;                  // cells per pixel
};
struct RoiPyramid {
  RoiLevel level[kMaxLevels];
  int64_t levels, lowest;       // lowest: log2 of the first level's stride
  int64_t images, channels;
  float canonical_size, canonical_level;
};
struct RoiPooling {
  int64_t height, width, sampling_ratio;
  bool aligned;
};
struct RoiBoxes {
  const float* rows;            // [K, 5] as (image, x1, y1, x2, y2)
  int64_t count;                // K
};

// Where a region lies. One thread of a block finds it and leaves it in shared memory, where it costs no registers.
struct RoiPlace {
  int level;                    // -1: the box is for an image that is not there, so it reads nothing
  int64_t image;
  RoiAxis<float> axis[2];       // y, x
};

__device__ __forceinline__ RoiPlace find_place(
    const RoiPyramid& pyramid, const RoiBoxes& boxes, const RoiPooling& pooling, int64_t region) {
  const float* row = boxes.rows + 5 * region;
  const float image = __ldg(row);
  const Box<float> box{__ldg(row + 1), __ldg(row + 2), __ldg(row + 3), __ldg(row + 4)};
  RoiPlace place{};  // no samples
  place.level = -1;
  // Written so that NaN is refused too. Nothing can be raised here without making the host wait.
  if (!(image >= 0.0f && image < static_cast<float>(pyramid.images))) return place;
  place.image = static_cast<int64_t>(image);
  place.level = pyramid.levels == 1 ? 0
                                    : static_cast<int>(pyramid_level(box, pyramid.canonical_size, pyramid.canonical_level,
                                                                     pyramid.lowest, pyramid.levels));
  const float scale = pyramid.level[place.level].scale;
  place.axis[0] = RoiAxis<float>(box.y1, box.y2, scale, pooling.height, pooling.sampling_ratio, pooling.aligned);
  place.axis[1] = RoiAxis<float>(box.x1, box.x2, scale, pooling.width, pooling.sampling_ratio, pooling.aligned);
  return place;
}

// 1 / samples of a bin; 0 where there are none.
__device__ __forceinline__ float sample_average(const RoiPlace& place) {
  const float samples = static_cast<float>(place.axis[0].grid) * static_cast<float>(place.axis[1].grid);
  return samples > 0.0f ? 1.0f / samples : 0.0f;
}

// The rectangle of cells that holds every cell that a region reads, inclusive; none when top > bottom.
struct RoiCells {
  int top, bottom, left, right;
};

__device__ __forceinline__ RoiCells find_cells(
    const RoiPyramid& pyramid, const RoiPooling& pooling, const RoiPlace& place) {
  int64_t top, bottom, left, right;
  if (place.level < 0) return {0, -1, 0, -1};
  const RoiLevel& level = pyramid.level[place.level];
  if (!cells_read(place.axis[0], pooling.height, level.height, top, bottom) ||
      !cells_read(place.axis[1], pooling.width, level.width, left, right)) {
    return {0, -1, 0, -1};
  }
  return {static_cast<int>(top), static_cast<int>(bottom), static_cast<int>(left), static_cast<int>(right)};
}

// The bins that read one cell along one axis: first to first + count - 1, for samples are monotone.
struct CellBins {
  int first, count;
};

// Weights of one cell in all bins of one axis, times `factor`, to weights[bin]; the other weights are left unwritten.
__device__ __forceinline__ CellBins fill_cell(
    const RoiAxis<float>& axis, int bins, int64_t cell, int64_t size, float factor, float* weights) {
  CellBins found{0, 0};
  for (int bin = 0; bin < bins; ++bin) {
    const float weight = cell_weight(axis, bin, cell, size);
    if (weight == 0.0f) {
      if (found.count > 0) break;
      continue;
    }
    if (found.count == 0) found.first = bin;
    ++found.count;
    weights[bin] = weight * factor;
  }
  return found;
}

// `store_pack` of 16 bytes that stays whole: nvcc may split an ordinary store of computed elements into one store for each.
template <int kPack, typename S>
__device__ __forceinline__ void store_whole(S* __restrict__ to, const Pack<S, kPack>& pack) {
  if constexpr (sizeof(pack) == sizeof(uint4)) {
    uint4 bits;
    memcpy(&bits, &pack, sizeof(bits));
    __stwb(reinterpret_cast<uint4*>(to), bits);
  } else {
    store_pack<kPack>(to, pack);
  }
}

// Blocks of `groups` each, as many as a grid holds; the kernels step through the rest.
inline unsigned grid_of(int64_t items, int64_t groups) {
  const int64_t most = ((int64_t(1) << 31) - 1) / groups;
  return static_cast<unsigned>((items < most ? items : most) * groups);
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Few regions leave multiprocessors idle, so the work of a region is shared by several blocks: enough to fill the device
// a few times over, but none with less than one item per thread.
inline int64_t blocks_per_region(int64_t regions, int64_t items) {
  int device = 0, processors = 1;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  const int64_t wanted = ceil_div(int64_t(8) * processors, regions);
  const int64_t most = ceil_div(items, kRoiThreads);
  return wanted < most ? wanted : most;
}

}  // namespace fastnas::cuda
