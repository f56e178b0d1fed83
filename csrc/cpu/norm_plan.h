// How a map [N, C, P] (P pixels) is cut for GroupNorm and batch norm on the CPU, and the order in which its parts are visited.
// To batch norm every channel is a group, of all images.
//
// A task of GroupNorm is independent of other tasks and is visited twice (sums, then results) in units. Channels-last a task is one image and
// a unit a slice of its pixels: reading whole pixels in order is what memory is fastest at (measured: taking fewer channels at a
// time, so that their pixels stay in the core's own cache, loses 1.3 to 2.5 times). Else a task is one group of an image, which
// often fits that cache, and a unit one channel. The second visit goes backwards: what was read last is still in some cache.
// Slices depend on the shape alone, so results do not depend on the number of threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../group_norm_shape.h"
#include "norm_job.h"

namespace fastnas {

constexpr int64_t kUnitElements = 64 << 10;  // enough to be worth a thread
constexpr int64_t kMaxSlices = 64;

// Some channels and pixels of one image.
struct Region {
  int64_t image, channel, channels, pixel, pixels, slice;
};

class NormPlan {
 public:
  explicit NormPlan(const GroupShape& shape)
      : shape_(shape), bundle_(shape.channels_last ? shape.channels : shape.per_group()) {
    if (!shape.channels_last) return;
    slice_ = std::max<int64_t>(kUnitElements / bundle_, (shape.pixels + kMaxSlices - 1) / kMaxSlices);
    slice_ = (slice_ + kTileRows - 1) / kTileRows * kTileRows;
    slices_ = (shape.pixels + slice_ - 1) / slice_;
  }

  const GroupShape& shape() const { return shape_; }
  int64_t slices() const { return slices_; }  // of an image
  int64_t slice_pixels(int64_t slice) const {
    return shape_.channels_last ? std::min(slice_, shape_.pixels - slice * slice_) : shape_.pixels;
  }
  int64_t tasks() const { return shape_.images * bundles(); }
  int64_t units() const { return shape_.channels_last ? slices_ : bundle_; }  // of a task
  int64_t cols() const { return shape_.channels_last ? bundle_ : kLanes; }

  Region region(int64_t task, int64_t unit) const {
    const Region all = whole(task);
    if (!shape_.channels_last) return {all.image, all.channel + unit, 1, 0, shape_.pixels, 0};
    return {all.image, 0, shape_.channels, unit * slice_, slice_pixels(unit), unit};
  }
  Region whole(int64_t task) const {
    return {task / bundles(), task % bundles() * bundle_, bundle_, 0, shape_.pixels, 0};
  }

  // sum(region, scratch) for all units of a task, settle(whole), result(region, scratch) for all units. Results may be left out.
  // make_scratch() makes the working memory of a thread.
  template <typename MakeScratch, typename Sum, typename Settle, typename Result>
  void run(bool results, const MakeScratch& make_scratch, const Sum& sum, const Settle& settle, const Result& result) const {
    const int64_t elements = shape_.images * shape_.channels * shape_.pixels;
    const int64_t threads = std::min<int64_t>(torch::stable::get_num_threads(), elements / kUnitElements + 1);
    const int64_t all = tasks();
    if (all >= threads) {
      torch::stable::parallel_for(0, all, std::max<int64_t>(1, all / threads), [&](int64_t first, int64_t last) {
        auto scratch = make_scratch();
        for (int64_t task = first; task < last; ++task) {
          for (int64_t unit = 0; unit < units(); ++unit) sum(region(task, unit), scratch);
          settle(whole(task));
          for (int64_t unit = results ? units() : 0; unit-- > 0;) result(region(task, unit), scratch);
        }
      });
      return;
    }
    const auto each_unit = [&](const auto& body) {
      torch::stable::parallel_for(0, all * units(), 1, [&](int64_t first, int64_t last) {
        auto scratch = make_scratch();
        for (int64_t i = first; i < last; ++i) body(region(i / units(), i % units()), scratch);
      });
    };
    each_unit(sum);
    for (int64_t task = 0; task < all; ++task) settle(whole(task));
    if (results) each_unit(result);
  }

  // The same where what is settled belongs to all images: settle(channel, channels). Channels-last the whole map is visited before
  // that, else the planes of one channel.
  template <typename MakeScratch, typename Sum, typename Settle, typename Result>
  void run_over_batch(bool sums, bool results, const MakeScratch& make_scratch, const Sum& sum, const Settle& settle,
                      const Result& result) const {
    if (!shape_.channels_last) {
      const int64_t grain = std::max<int64_t>(1, kUnitElements / (shape_.images * shape_.pixels));
      torch::stable::parallel_for(0, shape_.channels, grain, [&](int64_t first, int64_t last) {
        auto scratch = make_scratch();
        for (int64_t channel = first; channel < last; ++channel) {
          const auto plane = [&](int64_t image) { return region(image * shape_.channels + channel, 0); };
          for (int64_t image = 0; sums && image < shape_.images; ++image) sum(plane(image), scratch);
          settle(channel, 1);
          for (int64_t image = results ? shape_.images : 0; image-- > 0;) result(plane(image), scratch);
        }
      });
      return;
    }
    const int64_t all = tasks() * units();
    const int64_t grain = std::max<int64_t>(1, kUnitElements / (std::min(slice_, shape_.pixels) * shape_.channels));
    const auto each_unit = [&](const auto& body) {
      torch::stable::parallel_for(0, all, grain, [&](int64_t first, int64_t last) {
        auto scratch = make_scratch();
        for (int64_t i = first; i < last; ++i) body(i, scratch);
      });
    };
    if (sums) each_unit([&](int64_t i, auto& scratch) { sum(region(i / units(), i % units()), scratch); });
    settle(0, shape_.channels);
    if (!results) return;
    each_unit([&](int64_t i, auto& scratch) {  // backwards
      const int64_t own = all - 1 - i;
      result(region(own / units(), own % units()), scratch);
    });
  }

 private:
  int64_t bundles() const { return shape_.channels / bundle_; }  // tasks of an image

  GroupShape shape_;
  int64_t bundle_;  // channels of a task
  int64_t slice_ = 0, slices_ = 1;
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
