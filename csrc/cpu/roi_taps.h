// The cells that the bins of one region read along one axis, merged so that a cell is touched once per bin.
//
// Two samples half a cell apart share cells: with 2 x 2 samples a bin of one cell reads 3 x 3 cells instead of 16.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "../geometry.h"

namespace fastnas {

template <typename T>
struct Tap {
  int64_t cell;
  T weight;
};

template <typename T>
class AxisTaps {
 public:
  void build(const RoiAxis<T>& axis, int64_t bins, int64_t size) {
    taps_.clear();
    starts_.assign(1, 0);
    for (int64_t bin = 0; bin < bins; ++bin) {
      const auto [first, last] = inside(axis, bin, size);
      for (int64_t i = first; i < last; ++i) {
        Neighbours<T> near;
        if (!near.locate(axis.sample(bin, i), size)) continue;
        add(near.low, near.low_weight);
        if (near.high != near.low) add(near.high, near.high_weight);
      }
      starts_.push_back(taps_.size());
    }
    samples_ = axis.grid;
  }

  const Tap<T>* begin(int64_t bin) const { return taps_.data() + starts_[bin]; }
  const Tap<T>* end(int64_t bin) const { return taps_.data() + starts_[bin + 1]; }
  int64_t samples() const { return samples_; }

 private:
  // A superset of the samples that lie on the map: a region far larger than the map must not cost its own size.
  static std::pair<int64_t, int64_t> inside(const RoiAxis<T>& axis, int64_t bin, int64_t size) {
    if (axis.grid <= size + 64) return {0, axis.grid};
    const double step = static_cast<double>(axis.bin) / static_cast<double>(axis.grid);
    const double origin = axis.start + static_cast<double>(bin) * axis.bin;
    const double a = (-2 - origin) / step, b = (static_cast<double>(size) + 1 - origin) / step;
    const double low = std::min(a, b) - 2, high = std::max(a, b) + 2;
    if (!(low < high)) return {0, 0};
    const double grid = static_cast<double>(axis.grid);
    return {static_cast<int64_t>(std::clamp(low, 0.0, grid)), static_cast<int64_t>(std::clamp(high, 0.0, grid))};
  }

  void add(int64_t cell, T weight) {
    // Samples of a bin are in order, so a cell seen before is one of the last two.
    for (size_t back = 1; back <= 2 && taps_.size() >= starts_.back() + back; ++back) {
      Tap<T>& seen = taps_[taps_.size() - back];
      if (seen.cell == cell) {
        seen.weight += weight;
        return;
      }
    }
    taps_.push_back({cell, weight});
  }

  std::vector<Tap<T>> taps_;
  std::vector<size_t> starts_;
  int64_t samples_ = 0;
};

}  // namespace fastnas
