// RoIAlign backward on the GPU, the fast way: regions add to the maps with fp32 atomics, without torch.
//
// One block owns one region (few regions: several blocks share one) and works on its cells, not on its bins: the transpose
// of the separable average. For a window of at most 32 x 32 cells, threads compute the weight of every cell row and column
// in the bins that read it and leave them in shared memory; then one thread owns a 16-byte pack of channels of one cell,
// sums the one to four bins that read the cell and adds the sum once. A region of 14 cells a side makes 225 additions per
// channel so, where a bin that adds to its cells would make 441. From sm_90 on, four channels travel in one addition.
// Bytes: K * C * bins read (the reuse comes from L1), 4 * C bytes read and written in L2 per touched cell of a region.
// Sums are fp32: in the result itself, or in a workspace that `narrow_sums` rounds once for 16-bit features.
#pragma once

#include "roi_align_region.cuh"

namespace fastnas::cuda {

constexpr int kWindow = 32;             // cells per axis
constexpr int kRoiSharedBytes = 40 << 10;
constexpr int64_t kMostBins = 1024;     // ph + pw: then at least ten cells fit into shared memory

template <typename S>
struct RoiGradient {
  const S* data;                        // [K, ph, pw, C]: channels contiguous, the other strides in elements
  int64_t region_stride, row_stride, col_stride;
};

template <typename S>
inline bool packs_fit(const RoiGradient<S>& grad, int64_t channels) {
  constexpr int kPack = kWide<S>;
  return channels % kPack == 0 && grad.region_stride % kPack == 0 && grad.row_stride % kPack == 0 &&
      aligned(grad.data, grad.col_stride, kPack);
}

template <int kPack>
__device__ __forceinline__ void add_to(float* to, const float (&sum)[kPack]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  constexpr bool kVectors = kPack % 4 == 0;
#else
  constexpr bool kVectors = false;
#endif
  if constexpr (kVectors) {
#pragma unroll
    for (int j = 0; j < kPack; j += 4) {
      // atomicAdd(float4*) by its PTX: the value before the addition is not wanted, so nothing need come back.
      asm volatile("red.relaxed.gpu.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to + j)),
                   "f"(sum[j]), "f"(sum[j + 1]), "f"(sum[j + 2]), "f"(sum[j + 3])
                   : "memory");
    }
  } else {
#pragma unroll
    for (int j = 0; j < kPack; ++j) atomicAdd(to + j, sum[j]);
  }
}

// The gradient of one cell from the bins that read it.
template <int kPack, typename S>
__device__ __forceinline__ void gather_bins(
    const S* grad, int64_t row_stride, int64_t col_stride, CellBins rows, const float* row_weights, CellBins cols,
    const float* col_weights, float (&sum)[kPack]) {
  for (int ph = rows.first; ph < rows.first + rows.count; ++ph) {
    const S* row = grad + ph * row_stride;
    const float row_weight = row_weights[ph];
#pragma unroll 2
    for (int pw = cols.first; pw < cols.first + cols.count; ++pw) {
      const Pack<S, kPack> pack = load_pack<kPack>(row + pw * col_stride);
      const float weight = row_weight * col_weights[pw];
#pragma unroll
      for (int j = 0; j < kPack; ++j) sum[j] += weight * widen(pack.value[j]);
    }
  }
}

// pyramid: level.data is fp32 [N, H, W, C], zeroed. window: cells per axis. Dynamic shared memory: window_bytes.
template <typename S, int kPack>
__global__ void __launch_bounds__(kRoiThreads, 3) roi_align_scatter(
    const __grid_constant__ RoiPyramid pyramid, const RoiBoxes boxes, const RoiPooling pooling, const RoiGradient<S> grad,
    const int blocks_each, const int window) {
  extern __shared__ __align__(16) float weights[];  // [window, ph], then [window, pw]
  __shared__ RoiPlace place;
  __shared__ RoiCells cells;
  __shared__ CellBins bins[2 * kWindow];            // of the window's rows, then of its columns
  const int height = static_cast<int>(pooling.height), width = static_cast<int>(pooling.width);
  float* col_weights = weights + window * height;
  const unsigned packs = static_cast<unsigned>(pyramid.channels / kPack);
  const unsigned part = blockIdx.x % blocks_each;

  for (int64_t region = blockIdx.x / blocks_each; region < boxes.count; region += gridDim.x / blocks_each) {
    __syncthreads();  // what is shared of the region before is still read
    if (threadIdx.x == 0) {
      place = find_place(pyramid, boxes, pooling, region);
      cells = find_cells(pyramid, pooling, place);
    }
    __syncthreads();
    const RoiLevel& level = pyramid.level[larger(place.level, 0)];
    const S* source = grad.data + region * grad.region_stride;
    float* image = static_cast<float*>(level.data) + place.image * level.image_stride;

    for (int y0 = cells.top; y0 <= cells.bottom; y0 += window) {
      for (int x0 = cells.left; x0 <= cells.right; x0 += window) {
        const int rows = smaller(window, cells.bottom - y0 + 1), cols = smaller(window, cells.right - x0 + 1);
        __syncthreads();  // the weights of the window before are still read
        for (int i = threadIdx.x; i < rows + cols; i += blockDim.x) {
          const bool row = i < rows;
          const int j = row ? i : i - rows;
          bins[row ? j : kWindow + j] = fill_cell(
              place.axis[row ? 0 : 1], row ? height : width, (row ? y0 : x0) + j, row ? level.height : level.width,
              row ? sample_average(place) : 1.0f, row ? weights + j * height : col_weights + j * width);
        }
        __syncthreads();
        const unsigned items = static_cast<unsigned>(rows * cols) * packs;
        for (unsigned item = part * kRoiThreads + threadIdx.x; item < items; item += blocks_each * kRoiThreads) {
          const unsigned cell = item / packs, y = cell / cols, x = cell - y * cols;
          const unsigned channel = (item - cell * packs) * kPack;
          const CellBins of_row = bins[y], of_col = bins[kWindow + x];
          if (of_row.count == 0 || of_col.count == 0) continue;
          float sum[kPack] = {};
          gather_bins<kPack>(source + channel, grad.row_stride, grad.col_stride, of_row, weights + y * height, of_col,
                             col_weights + x * width, sum);
          add_to(image + static_cast<int64_t>(y0 + y) * level.row_stride + static_cast<int64_t>(x0 + x) * level.col_stride + channel,
                 sum);
        }
      }
    }
  }
}

inline int window_of(const RoiPooling& pooling) {
  const int64_t fit = kRoiSharedBytes / static_cast<int64_t>(sizeof(float)) / (pooling.height + pooling.width);
  return static_cast<int>(fit < kWindow ? fit : kWindow);
}

template <typename S, int kPack>
cudaError_t launch_scatter(
    const RoiPyramid& sums, const RoiBoxes& boxes, const RoiPooling& pooling, const RoiGradient<S>& grad,
    cudaStream_t stream) {
  const int64_t each = blocks_per_region(boxes.count, sums.channels / kPack * pooling.height * pooling.width);
  const int window = window_of(pooling);
  const size_t shared = static_cast<size_t>(window) * (pooling.height + pooling.width) * sizeof(float);
  roi_align_scatter<S, kPack><<<grid_of(boxes.count, each), kRoiThreads, shared, stream>>>(
      sums, boxes, pooling, grad, static_cast<int>(each), window);
  return cudaGetLastError();
}

// Adds to the zeroed fp32 maps of `sums`, channels-last and contiguous. K, C > 0; ph + pw <= kMostBins; C < 2^21.
template <typename S>
cudaError_t roi_align_backward(
    const RoiPyramid& sums, const RoiBoxes& boxes, const RoiPooling& pooling, const RoiGradient<S>& grad,
    cudaStream_t stream) {
  return packs_fit(grad, sums.channels) ? launch_scatter<S, kWide<S>>(sums, boxes, pooling, grad, stream)
                                        : launch_scatter<S, 1>(sums, boxes, pooling, grad, stream);
}

// ---------------------------------------------------------------------------------------------------------------------
// Rounding of the fp32 sums, all levels in one launch: 4 + 2 bytes per element, the floor of this pass.

template <typename S>
struct NarrowJob {
  const float* sums;            // all levels, one after the other, each beginning at a multiple of the pack
  S* out[kMaxLevels];
  int64_t end[kMaxLevels];      // where each level ends in `sums`
  int64_t levels;
};

template <typename S, int kPack>
__global__ void __launch_bounds__(kRoiThreads) narrow_sums(const __grid_constant__ NarrowJob<S> job) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kRoiThreads * kPack;
  int64_t at = (static_cast<int64_t>(blockIdx.x) * kRoiThreads + threadIdx.x) * kPack;
  for (int level = 0; at < job.end[job.levels - 1]; at += step) {
    while (at >= job.end[level]) ++level;
    Pack<S, kPack> rounded;
    if constexpr (kPack % 4 == 0) {
#pragma unroll
      for (int j = 0; j < kPack; j += 4) {
        const float4 four = *reinterpret_cast<const float4*>(job.sums + at + j);
        narrow(four.x, rounded.value[j]);
        narrow(four.y, rounded.value[j + 1]);
        narrow(four.z, rounded.value[j + 2]);
        narrow(four.w, rounded.value[j + 3]);
      }
    } else {
      for (int j = 0; j < kPack; ++j) narrow(job.sums[at + j], rounded.value[j]);
    }
    store_whole<kPack>(job.out[level] + at - (level > 0 ? job.end[level - 1] : 0), rounded);
  }
}

// channels: of the maps; the packs are full where it is a multiple of their size, for the maps are torch's own memory.
template <typename S>
cudaError_t narrow_all(const NarrowJob<S>& job, int64_t channels, cudaStream_t stream) {
  constexpr int kPack = kWide<S>;
  const int64_t elements = job.end[job.levels - 1];
  const auto blocks = [&](int64_t pack) { return grid_of(ceil_div(elements, kRoiThreads * pack), 1); };
  if (channels % kPack == 0) {
    narrow_sums<S, kPack><<<blocks(kPack), kRoiThreads, 0, stream>>>(job);
  } else {
    narrow_sums<S, 1><<<blocks(1), kRoiThreads, 0, stream>>>(job);
  }
  return cudaGetLastError();
}

}  // namespace fastnas::cuda
