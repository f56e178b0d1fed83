// Greedy non-maximum suppression on the GPU, alone and per class, without torch: two kernels on the caller's stream.
//
// Boxes come sorted by score. (1) `overlap_masks`: one block owns 64 rows x 64 columns; each of its 64 threads compares its
// row with the columns, held in shared memory, and writes one 64-bit word (bit c: column c is struck out if this row is
// kept). Only words right of the diagonal are computed; a class is compared before any coordinate. (2) `select`: one block
// walks the rows in order with the struck-out bits in shared memory; within 64 rows the decisions hang on one word per
// row, after which all threads OR the words of the kept rows into the rest. It writes kept[row].
// Bytes: N * 20 read, N^2 / 8 written and at most read once more; the walk, not the traffic, bounds small N.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "../geometry.h"

namespace fastnas::cuda {

constexpr int kTile = 64;            // rows and columns of a block: one bit per column of a 64-bit word
constexpr int kSelectThreads = 256;

struct NmsShape {
  int64_t boxes;  // N
  int64_t words;  // 64-bit words per row of the mask: ceil(N / 64)
};

inline NmsShape nms_shape(int64_t boxes) { return {boxes, (boxes + kTile - 1) / kTile}; }

template <typename T>
__device__ __forceinline__ Box<T> load_box(const T* __restrict__ boxes, int64_t index) {
  const T* box = boxes + 4 * index;
  return {box[0], box[1], box[2], box[3]};
}

// boxes: [N, 4], order: [N] indices by descending score, classes: [N] or null, masks: [N, words]
template <typename T>
__global__ void __launch_bounds__(kTile) overlap_masks(
    const T* __restrict__ boxes, const int64_t* __restrict__ order, const int64_t* __restrict__ classes, NmsShape shape,
    T threshold, uint64_t* __restrict__ masks) {
  // The grid is one-dimensional over all tiles, because a y dimension ends at 65535.
  const int64_t row_tile = static_cast<int64_t>(blockIdx.x) / shape.words;
  const int64_t col_tile = static_cast<int64_t>(blockIdx.x) % shape.words;
  if (col_tile < row_tile) return;

  __shared__ Box<T> columns[kTile];
  __shared__ T areas[kTile];
  __shared__ int64_t column_classes[kTile];
  const int64_t first_column = col_tile * kTile;
  const int column_count = static_cast<int>(smaller<int64_t>(kTile, shape.boxes - first_column));
  const int lane = static_cast<int>(threadIdx.x);
  if (lane < column_count) {
    const int64_t index = order[first_column + lane];
    columns[lane] = load_box(boxes, index);
    areas[lane] = area(columns[lane]);
    column_classes[lane] = classes ? classes[index] : 0;
  }
  __syncthreads();

  const int64_t row = row_tile * kTile + lane;
  if (row >= shape.boxes) return;
  const int64_t index = order[row];
  const Box<T> box = load_box(boxes, index);
  const T box_area = area(box);
  const int64_t box_class = classes ? classes[index] : 0;
  uint64_t word = 0;
  for (int c = row_tile == col_tile ? lane + 1 : 0; c < column_count; ++c) {
    if (column_classes[c] == box_class && overlaps(box, box_area, columns[c], areas[c], threshold)) {
      word |= uint64_t(1) << c;
    }
  }
  masks[row * shape.words + col_tile] = word;
}

// masks: [N, words] (words left of the diagonal are not read), kept: [N] by rank. Dynamic shared memory: words * 8 bytes,
// or none with `spill` [words] in global memory when that is too much.
static __global__ void __launch_bounds__(kSelectThreads) select(
    const uint64_t* __restrict__ masks, NmsShape shape, uint64_t* __restrict__ spill, bool* __restrict__ kept) {
  extern __shared__ uint64_t shared_dead[];
  uint64_t* dead = spill ? spill : shared_dead;
  __shared__ uint64_t alive_rows;
  for (int64_t w = threadIdx.x; w < shape.words; w += blockDim.x) dead[w] = 0;
  __syncthreads();

  for (int64_t tile = 0; tile < shape.words; ++tile) {
    const int64_t first = tile * kTile;
    const int rows = static_cast<int>(smaller<int64_t>(kTile, shape.boxes - first));
    if (threadIdx.x == 0) {
      uint64_t struck = dead[tile], alive = 0;
      for (int r = 0; r < rows; ++r) {
        if (struck >> r & 1) continue;
        alive |= uint64_t(1) << r;
        struck |= masks[(first + r) * shape.words + tile];
      }
      alive_rows = alive;
    }
    __syncthreads();
    const uint64_t alive = alive_rows;
    if (static_cast<int>(threadIdx.x) < rows) kept[first + threadIdx.x] = alive >> threadIdx.x & 1;
    for (int64_t w = tile + 1 + threadIdx.x; w < shape.words; w += blockDim.x) {
      uint64_t struck = dead[w];
      for (uint64_t left = alive; left != 0; left &= left - 1) {
        struck |= masks[(first + __ffsll(static_cast<long long>(left)) - 1) * shape.words + w];
      }
      dead[w] = struck;
    }
    __syncthreads();
  }
}

// spill: [words], used only when the struck-out bits do not fit into 48 KB of shared memory (N > 393216).
template <typename T>
cudaError_t suppress(
    const T* boxes, const int64_t* order, const int64_t* classes, NmsShape shape, T threshold, uint64_t* masks,
    uint64_t* spill, bool* kept, cudaStream_t stream) {
  overlap_masks<T><<<static_cast<unsigned>(shape.words * shape.words), kTile, 0, stream>>>(
      boxes, order, classes, shape, threshold, masks);
  const cudaError_t launched = cudaGetLastError();
  if (launched != cudaSuccess) return launched;
  const size_t shared = static_cast<size_t>(shape.words) * sizeof(uint64_t);
  const bool fits = shared <= 48 * 1024 - sizeof(uint64_t);
  select<<<1, kSelectThreads, fits ? shared : 0, stream>>>(masks, shape, fits ? nullptr : spill, kept);
  return cudaGetLastError();
}

}  // namespace fastnas::cuda
