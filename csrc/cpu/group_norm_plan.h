// How a map [N, C, P] (P pixels) is cut for GroupNorm on the CPU, and the order in which its parts are visited.
//
// A task is one image x a bundle of whole groups, and everything about it is independent of other tasks. It is visited twice
// (sums, then results), in units: channels-last a unit is a slice of pixels, else one channel. A bundle is as many channels as
// fit the core's own cache with all their pixels, so that the second visit finds the data there; the second visit goes
// backwards, which helps where they do not fit. Slices depend on the shape alone, so results do not depend on threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../group_norm.h"
#include "group_norm_kernels.h"

namespace fastnas {

constexpr int64_t kSlabBytes = 512 << 10;      // half of a common L2 cache: x, and as much for what is written
constexpr int64_t kLineBytes = 64;
constexpr int64_t kUnitElements = 64 << 10;    // enough to be worth a thread
constexpr int64_t kMaxSlices = 64;

// Some channels and pixels of one image.
struct Region {
  int64_t image, channel, channels, pixel, pixels, slice;
};

class GroupPlan {
 public:
  // bytes: of all tensors that are read in both visits, per element of x
  GroupPlan(const GroupShape& shape, int64_t bytes) : shape_(shape), bundle_(shape.per_group()) {
    if (!shape.channels_last) return;
    const int64_t fitting = kSlabBytes / (bytes * shape.pixels);
    const int64_t groups = std::clamp<int64_t>(fitting / bundle_, 1, shape.groups);
    bundle_ *= groups;
    if (bundle_ * bytes < kLineBytes * kLeastLines) bundle_ = shape.channels;  // a walk in such small steps costs more
    slice_ = std::max<int64_t>(kUnitElements / bundle_, (shape.pixels + kMaxSlices - 1) / kMaxSlices);
    slice_ = (slice_ + kTileRows - 1) / kTileRows * kTileRows;
    slices_ = (shape.pixels + slice_ - 1) / slice_;
  }

  const GroupShape& shape() const { return shape_; }
  int64_t slices() const { return slices_; }  // of an image
  int64_t slice_pixels(int64_t slice) const {
    return shape_.channels_last ? std::min(slice_, shape_.pixels - slice * slice_) : shape_.pixels;
  }
  int64_t bundles() const { return (shape_.channels + bundle_ - 1) / bundle_; }
  int64_t tasks() const { return shape_.images * bundles(); }
  int64_t units() const { return shape_.channels_last ? slices_ : bundle_; }  // of a task
  int64_t cols() const { return shape_.channels_last ? bundle_ : kLanes; }

  Region region(int64_t task, int64_t unit) const {
    const int64_t image = task / bundles(), channel = task % bundles() * bundle_;
    if (!shape_.channels_last) return {image, channel + unit, 1, 0, shape_.pixels, 0};
    const int64_t channels = std::min(bundle_, shape_.channels - channel);
    return {image, channel, channels, unit * slice_, slice_pixels(unit), unit};
  }
  Region whole(int64_t task) const {
    const int64_t channel = task % bundles() * bundle_;
    return {task / bundles(), channel, std::min(bundle_, shape_.channels - channel), 0, shape_.pixels, 0};
  }

  // sum(region) for all units of a task, settle(whole), result(region) for all units. Results of a task may be left out.
  template <typename Sum, typename Settle, typename Result>
  void run(bool results, const Sum& sum, const Settle& settle, const Result& result) const {
    const int64_t elements = shape_.images * shape_.channels * shape_.pixels;
    const int64_t threads = std::min<int64_t>(torch::stable::get_num_threads(), elements / kUnitElements + 1);
    const int64_t all = tasks();
    if (all >= threads) {
      torch::stable::parallel_for(0, all, std::max<int64_t>(1, all / threads), [&](int64_t first, int64_t last) {
        for (int64_t task = first; task < last; ++task) {
          for (int64_t unit = 0; unit < units(); ++unit) sum(region(task, unit));
          settle(whole(task));
          for (int64_t unit = results ? units() : 0; unit-- > 0;) result(region(task, unit));
        }
      });
      return;
    }
    const auto each_unit = [&](const auto& body) {
      torch::stable::parallel_for(0, all * units(), 1, [&](int64_t first, int64_t last) {
        for (int64_t i = first; i < last; ++i) body(region(i / units(), i % units()));
      });
    };
    each_unit(sum);
    for (int64_t task = 0; task < all; ++task) settle(whole(task));
    if (results) each_unit(result);
  }

 private:
  static constexpr int64_t kLeastLines = 2;
  GroupShape shape_;
  int64_t bundle_, slice_ = 0, slices_ = 1;
};

// Calls body(rows, cols, offset of the first row in elements) for the parts of a region that are rows x columns: one,
// or for a folded plane the full rows of kLanes and the rest. `row_stride` says what separates rows in a map.
template <typename Body>
void each_block(bool channels_last, const Region& region, const Body& body) {
  if (channels_last) return body(region.pixels, region.channels, int64_t(0));
  const int64_t full = region.pixels / kLanes, rest = region.pixels % kLanes;
  if (full > 0) body(full, kLanes, int64_t(0));
  if (rest > 0) body(int64_t(1), rest, full * kLanes);
}
template <typename T>
T* start_of(const MapView<T>& view, const Region& region) {
  return view.data ? view.data + region.image * view.image + region.channel * view.channel + region.pixel * view.pixel
                   : nullptr;
}
template <typename T>
int64_t row_stride(bool channels_last, const MapView<T>& view) {
  return channels_last ? view.pixel : kLanes;
}

}  // namespace fastnas
