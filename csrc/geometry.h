// Geometry that the CPU and the CUDA kernels share, written once so that the two devices cannot drift apart.
#pragma once

#include <cmath>
#include <cstdint>

#if defined(__CUDACC__)
#define FASTNAS_HD __host__ __device__ __forceinline__
#else
#define FASTNAS_HD inline __attribute__((always_inline))
#endif

namespace fastnas {

// ---------------------------------------------------------------------------------------------------------------------
// Overlap of boxes (x1, y1, x2, y2)

template <typename T>
struct Box {
  T x1, y1, x2, y2;
};

// With a NaN in `b` both answer `a`, as std::max and std::min do.
template <typename T>
FASTNAS_HD T larger(T a, T b) {
  return a < b ? b : a;
}
template <typename T>
FASTNAS_HD T smaller(T a, T b) {
  return b < a ? b : a;
}

template <typename T>
FASTNAS_HD T area(const Box<T>& box) {
  return (box.x2 - box.x1) * (box.y2 - box.y1);
}

// intersection / union > threshold. The quotient is really divided and rounded, as torchvision does it: 0.3f is above
// 0.3, so "3 of 10" suppresses at 0.3 in fp32 and a product form would not. 0/0 of two empty boxes is NaN: no overlap.
// Sources that include this are compiled without contraction into fused multiply-adds (setup.py), which would round
// the union differently.
template <typename T>
FASTNAS_HD bool overlaps(const Box<T>& a, T area_a, const Box<T>& b, T area_b, T threshold) {
  const T width = larger(T(0), smaller(a.x2, b.x2) - larger(a.x1, b.x1));
  const T height = larger(T(0), smaller(a.y2, b.y2) - larger(a.y1, b.y1));
  const T intersection = width * height;
  return intersection / (area_a + area_b - intersection) > threshold;
}

// The largest T that is not above `threshold`: for a quotient q of type T, q > threshold is the same as q > floor_to<T>.
template <typename T>
inline T floor_to(double threshold) {
  const T nearest = static_cast<T>(threshold);
  return static_cast<double>(nearest) > threshold ? std::nextafter(nearest, -INFINITY) : nearest;
}

// ---------------------------------------------------------------------------------------------------------------------
// RoIAlign (Mask R-CNN, He et al. 2017, section 3): each bin averages grid_y x grid_x bilinear samples; the average is
// separable, so each axis is described on its own.

// A product that is never fused with the sum after it: grids and cells are decided from these numbers, and a device that
// fuses would decide differently.
FASTNAS_HD float rounded_product(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}
FASTNAS_HD double rounded_product(double a, double b) {
#if defined(__CUDA_ARCH__)
  return __dmul_rn(a, b);
#else
  return a * b;
#endif
}

// One axis of one region on one feature map, in cells.
template <typename T>
struct RoiAxis {
  T start;       // where the region begins
  T bin;         // extent of one bin
  int64_t grid;  // samples per bin; 0 for a region without extent

  RoiAxis() = default;
  FASTNAS_HD RoiAxis(T low, T high, T scale, int64_t bins, int64_t sampling_ratio, bool aligned) {
    const T offset = aligned ? T(0.5) : T(0);
    start = rounded_product(low, scale) - offset;
    T extent = rounded_product(high, scale) - offset - start;
    if (!aligned) extent = larger(extent, T(1));  // older convention: nothing is smaller than one cell
    bin = extent / static_cast<T>(bins);
    if (sampling_ratio > 0) {
      grid = sampling_ratio;
    } else {
      const T cells = std::ceil(bin);
      grid = cells >= T(1) ? static_cast<int64_t>(smaller(cells, T(1 << 30))) : 0;  // NaN compares false: no samples
    }
  }

  FASTNAS_HD T sample(int64_t bin_index, int64_t i) const {
    return start + rounded_product(static_cast<T>(bin_index), bin) +
        rounded_product(static_cast<T>(i) + T(0.5), bin) / static_cast<T>(grid);
  }

  // Samples first to last - 1 of a bin are a superset of those between two positions: a region far larger than the map
  // must not cost its own size. Few samples are not worth the division.
  FASTNAS_HD void samples_between(int64_t bin_index, double low, double high, int64_t& first, int64_t& last) const {
    first = 0;
    last = grid;
    if (grid <= 64) return;
    const double step = static_cast<double>(bin) / static_cast<double>(grid);
    const double origin = static_cast<double>(start) + static_cast<double>(bin_index) * static_cast<double>(bin);
    const double a = (low - 1 - origin) / step, b = (high + 1 - origin) / step;
    const double begin = smaller(a, b) - 2, end = larger(a, b) + 2, all = static_cast<double>(grid);
    if (!(begin < end)) last = 0;
    if (last == 0) return;
    first = static_cast<int64_t>(smaller(larger(begin, 0.0), all));
    last = static_cast<int64_t>(smaller(larger(end, 0.0), all));
  }
};

// Two neighbouring cells and their linear weights for one sample; false where the sample lies outside (or is NaN).
template <typename T>
struct Neighbours {
  int64_t low, high;
  T low_weight, high_weight;

  FASTNAS_HD bool locate(T position, int64_t size) {
    if (!(position >= T(-1) && position <= static_cast<T>(size))) return false;
    position = larger(position, T(0));
    low = static_cast<int64_t>(position);
    if (low >= size - 1) {
      low = high = size - 1;
      high_weight = T(0);
    } else {
      high = low + 1;
      high_weight = position - static_cast<T>(low);
    }
    low_weight = T(1) - high_weight;
    return true;
  }
};

// How much one cell weighs in one bin: the sum over the bin's samples, in their order. What a gradient's transpose needs.
template <typename T>
FASTNAS_HD T cell_weight(const RoiAxis<T>& axis, int64_t bin_index, int64_t cell, int64_t size) {
  int64_t first, last;
  axis.samples_between(bin_index, static_cast<double>(cell - 1), static_cast<double>(cell + 1), first, last);
  T weight = T(0);
  for (int64_t i = first; i < last; ++i) {
    Neighbours<T> near;
    if (!near.locate(axis.sample(bin_index, i), size)) continue;
    if (near.low == cell) weight += near.low_weight;
    if (near.high == cell && near.high != near.low) weight += near.high_weight;
  }
  return weight;
}

// Cells low to high hold every cell that a region reads along one axis; false where it reads none. Samples are monotone,
// so the first and the last one tell.
template <typename T>
FASTNAS_HD bool cells_read(const RoiAxis<T>& axis, int64_t bins, int64_t size, int64_t& low, int64_t& high) {
  if (axis.grid == 0) return false;
  const T a = axis.sample(0, 0), b = axis.sample(bins - 1, axis.grid - 1);
  if (!(a >= T(-1) || b >= T(-1)) || !(a <= static_cast<T>(size) || b <= static_cast<T>(size))) return false;
  const T least = smaller(a, b), most = larger(a, b);
  if (!(least <= most)) return false;  // NaN: no sample lies anywhere
  const T end = static_cast<T>(size - 1);
  low = static_cast<int64_t>(smaller(larger(least, T(0)), end));
  high = static_cast<int64_t>(smaller(larger(most + T(1), T(0)), end));
  return true;
}

// Feature Pyramid Networks (Lin et al. 2017), equation 1, with the 1e-6 outside the logarithm as torchvision has it.
// Returns an index into the levels lowest..lowest + count - 1. A box of NaN or negative area goes to the lowest.
template <typename T>
FASTNAS_HD int64_t pyramid_level(
    const Box<T>& box, T canonical_size, T canonical_level, int64_t lowest, int64_t count) {
  const T level = std::floor(canonical_level + std::log2(std::sqrt(area(box)) / canonical_size) + T(1e-6));
  if (!(level > static_cast<T>(lowest))) return 0;
  const T highest = static_cast<T>(lowest + count - 1);
  return static_cast<int64_t>(smaller(level, highest)) - lowest;
}

}  // namespace fastnas
