// The cells that the bins of one region read along one axis, merged so that a cell is touched once per bin.
//
// Two samples half a cell apart share cells: with 2 x 2 samples a bin of one cell reads 3 x 3 cells instead of 16.
#pragma once

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
      int64_t first, last;
      axis.samples_between(bin, -1, static_cast<double>(size), first, last);
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
