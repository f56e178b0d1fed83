// RoIAlign forward on the GPU over a pyramid of feature maps, in one launch, without torch.
//
// One block owns one region (few regions: several blocks share one). Its first threads build, per axis and bin, the list of
// cells with their weights - samples of a bin that share a cell are merged, so a bin of 2 x 2 samples reads 9 to 16 cells -
// and leave it in shared memory: geometry is computed once per bin, not once per channel. Then one thread owns a 16-byte
// pack of channels of one bin: the lanes of a warp read consecutive channels of the same cell, so every load is full and
// coalesced, up to eight in flight, and sums are fp32 in registers.
// Bytes: each touched feature is meant to come from memory once and each output is written once, K * C * bins; the cells
// that neighbouring bins share come from L1 (same block), which the 9 to 16 loads per output are bound by.
// A region with more cells per bin than the list holds (adaptive sampling of a large region) samples cell by cell instead.
#pragma once

#include "roi_align_region.cuh"

namespace fastnas::cuda {

constexpr int kTaps = 8;  // cells per bin and axis: enough for 4 samples, or for about 6 adaptive ones

struct RoiTap {
  int64_t offset;  // of the cell's row or column, in elements
  float weight;
};

inline size_t tap_bytes(const RoiPooling& pooling) {
  return static_cast<size_t>(pooling.height + pooling.width) * (kTaps * sizeof(RoiTap) + sizeof(int));
}

// The cells that one bin reads along one axis, each once. Returns how many, or -1 when they are more than kTaps.
__device__ __forceinline__ int list_taps(
    const RoiAxis<float>& axis, int64_t bin, int64_t size, int64_t stride, float factor, RoiTap* taps) {
  int64_t first, last;
  axis.samples_between(bin, -1.0, static_cast<double>(size), first, last);
  int count = 0;
  int64_t cells[2] = {-1, -1};  // the last two listed, latest first: samples are monotone, so no others can come again
  for (int64_t i = first; i < last; ++i) {
    Neighbours<float> near;
    if (!near.locate(axis.sample(bin, i), size)) continue;
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      const int64_t cell = side == 0 ? near.low : near.high;
      const float weight = (side == 0 ? near.low_weight : near.high_weight) * factor;
      if (side == 1 && near.high == near.low) continue;
      if (cell == cells[0]) {
        taps[count - 1].weight += weight;
      } else if (cell == cells[1]) {
        taps[count - 2].weight += weight;
      } else {
        if (count == kTaps) return -1;
        taps[count++] = {cell * stride, weight};
        cells[1] = cells[0];
        cells[0] = cell;
      }
    }
  }
  return count;
}

template <int kCells, int kPack, typename S>
__device__ __forceinline__ void add_cells(const S* row, const RoiTap* taps, float row_weight, float (&sum)[kPack]) {
  Pack<S, kPack> cells[kCells];
#pragma unroll
  for (int i = 0; i < kCells; ++i) cells[i] = load_pack<kPack>(row + taps[i].offset);
#pragma unroll
  for (int i = 0; i < kCells; ++i) {
    const float weight = row_weight * taps[i].weight;
#pragma unroll
    for (int j = 0; j < kPack; ++j) sum[j] += weight * widen(cells[i].value[j]);
  }
}

template <int kCells, int kPack, typename S>
__device__ __forceinline__ void add_rows(
    const S* base, const RoiTap* rows, int row_count, const RoiTap* cols, float (&sum)[kPack]) {
#pragma unroll 2
  for (int y = 0; y < row_count; ++y) add_cells<kCells>(base + rows[y].offset, cols, rows[y].weight, sum);
}

template <int kPack, typename S>
__device__ __forceinline__ void add_bin(
    const S* base, const RoiTap* rows, int row_count, const RoiTap* cols, int col_count, float (&sum)[kPack]) {
  for (int x = 0; x < col_count; x += 4) {
    switch (col_count - x) {
      case 1: add_rows<1>(base, rows, row_count, cols + x, sum); break;
      case 2: add_rows<2>(base, rows, row_count, cols + x, sum); break;
      case 3: add_rows<3>(base, rows, row_count, cols + x, sum); break;
      default: add_rows<4>(base, rows, row_count, cols + x, sum);
    }
  }
}

// For bins whose cells do not fit into the list: one sample after the other.
template <int kPack, typename S>
__device__ __forceinline__ void add_samples(
    const S* base, const RoiLevel& level, const RoiPlace& place, int64_t ph, int64_t pw, float (&sum)[kPack]) {
  int64_t y_first, y_last, x_first, x_last;
  place.axis[0].samples_between(ph, -1.0, static_cast<double>(level.height), y_first, y_last);
  place.axis[1].samples_between(pw, -1.0, static_cast<double>(level.width), x_first, x_last);
  const float average = sample_average(place);
  for (int64_t i = y_first; i < y_last; ++i) {
    Neighbours<float> y;
    if (!y.locate(place.axis[0].sample(ph, i), level.height)) continue;
    const S* low = base + y.low * level.row_stride;
    const S* high = base + y.high * level.row_stride;
    for (int64_t j = x_first; j < x_last; ++j) {
      Neighbours<float> x;
      if (!x.locate(place.axis[1].sample(pw, j), level.width)) continue;
      const RoiTap cols[2] = {{x.low * level.col_stride, x.low_weight}, {x.high * level.col_stride, x.high_weight}};
      add_cells<2>(low, cols, y.low_weight * average, sum);
      add_cells<2>(high, cols, y.high_weight * average, sum);
    }
  }
}

// boxes: [K, 5], out: [K, ph, pw, C]. Dynamic shared memory: tap_bytes, or none with listed = false.
// kOverflow: a bin may have more cells than the list holds. Without it the hot kernel keeps fewer registers.
template <typename S, int kPack, bool kOverflow>
__global__ void __launch_bounds__(kRoiThreads, kOverflow ? 2 : 4) roi_align_forward(
    const __grid_constant__ RoiPyramid pyramid, const RoiBoxes boxes, const RoiPooling pooling, const int blocks_each,
    const bool listed, S* __restrict__ out) {
  __shared__ RoiPlace place;
  extern __shared__ __align__(16) unsigned char shared[];
  RoiTap* taps = reinterpret_cast<RoiTap*>(shared);  // [ph + pw, kTaps]: rows, then columns
  const int height = static_cast<int>(pooling.height), width = static_cast<int>(pooling.width);
  int* counts = reinterpret_cast<int*>(taps + (height + width) * kTaps);  // [ph + pw]
  const unsigned packs = static_cast<unsigned>(pyramid.channels / kPack);
  const unsigned items = packs * static_cast<unsigned>(height * width);
  const unsigned part = blockIdx.x % blocks_each;

  for (int64_t region = blockIdx.x / blocks_each; region < boxes.count; region += gridDim.x / blocks_each) {
    __syncthreads();  // what is shared of the region before is still read
    if (threadIdx.x == 0) place = find_place(pyramid, boxes, pooling, region);
    __syncthreads();
    const RoiLevel& level = pyramid.level[larger(place.level, 0)];
    if (!kOverflow || listed) {
      for (int bin = threadIdx.x; bin < height + width; bin += blockDim.x) {
        const bool row = bin < height;
        counts[bin] = list_taps(
            place.axis[row ? 0 : 1], row ? bin : bin - height, row ? level.height : level.width,
            row ? level.row_stride : level.col_stride, row ? sample_average(place) : 1.0f, taps + bin * kTaps);
      }
      __syncthreads();
    }
    const S* image = static_cast<const S*>(level.data) + place.image * level.image_stride;
    S* result = out + region * static_cast<int64_t>(items) * kPack;
    for (unsigned item = part * kRoiThreads + threadIdx.x; item < items; item += blocks_each * kRoiThreads) {
      const unsigned bin = item / packs, ph = bin / width, pw = bin - ph * width;
      const S* base = image + (item - bin * packs) * kPack;
      const int rows = kOverflow && !listed ? -1 : counts[ph], cols = kOverflow && !listed ? -1 : counts[height + pw];
      float sum[kPack] = {};
      if (!kOverflow || (rows >= 0 && cols >= 0)) {
        add_bin<kPack>(base, taps + ph * kTaps, rows, taps + (height + pw) * kTaps, cols, sum);
      } else {
        add_samples<kPack>(base, level, place, ph, pw, sum);
      }
      Pack<S, kPack> rounded;
#pragma unroll
      for (int j = 0; j < kPack; ++j) narrow(sum[j], rounded.value[j]);
      store_whole<kPack>(result + static_cast<int64_t>(item) * kPack, rounded);
    }
  }
}

// 16-byte accesses where every address allows them.
template <typename S>
inline bool packs_fit(const RoiPyramid& pyramid) {
  constexpr int kPack = kWide<S>;
  bool fit = pyramid.channels % kPack == 0;
  for (int64_t i = 0; i < pyramid.levels; ++i) {
    const RoiLevel& level = pyramid.level[i];
    fit = fit && level.image_stride % kPack == 0 && level.row_stride % kPack == 0 &&
        aligned(static_cast<const S*>(level.data), level.col_stride, kPack);
  }
  return fit;
}

template <typename S, int kPack>
cudaError_t launch_forward(
    const RoiPyramid& pyramid, const RoiBoxes& boxes, const RoiPooling& pooling, S* out, cudaStream_t stream) {
  const int64_t items = pyramid.channels / kPack * pooling.height * pooling.width;
  const int64_t each = blocks_per_region(boxes.count, items);
  const size_t shared = tap_bytes(pooling);
  const bool listed = shared <= 48 * 1024;
  const bool overflow = !listed || pooling.sampling_ratio <= 0 || 2 * pooling.sampling_ratio > kTaps;
  const auto kernel = overflow ? roi_align_forward<S, kPack, true> : roi_align_forward<S, kPack, false>;
  kernel<<<grid_of(boxes.count, each), kRoiThreads, listed ? shared : 0, stream>>>(
      pyramid, boxes, pooling, static_cast<int>(each), listed, out);
  return cudaGetLastError();
}

// out: [K, ph, pw, C]; K, C > 0 and C * ph * pw < 2^31.
template <typename S>
cudaError_t roi_align(
    const RoiPyramid& pyramid, const RoiBoxes& boxes, const RoiPooling& pooling, S* out, cudaStream_t stream) {
  const bool wide = packs_fit<S>(pyramid) && aligned(static_cast<const S*>(out), 0, kWide<S>);
  return wide ? launch_forward<S, kWide<S>>(pyramid, boxes, pooling, out, stream)
              : launch_forward<S, 1>(pyramid, boxes, pooling, out, stream);
}

}  // namespace fastnas::cuda
