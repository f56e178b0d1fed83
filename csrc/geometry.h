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

// One axis of one region on one feature map, in cells.
template <typename T>
struct RoiAxis {
  T start;       // where the region begins
  T bin;         // extent of one bin
  int64_t grid;  // samples per bin; 0 for a region without extent

  FASTNAS_HD RoiAxis(T low, T high, T scale, int64_t bins, int64_t sampling_ratio, bool aligned) {
    const T offset = aligned ? T(0.5) : T(0);
    start = low * scale - offset;
    T extent = high * scale - offset - start;
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
    return start + static_cast<T>(bin_index) * bin + (static_cast<T>(i) + T(0.5)) * bin / static_cast<T>(grid);
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
