// RoIAlign over one feature map or a pyramid of them on the CPU, forward and backward, one call for all levels.
//
// Forward: threads share out the regions. Backward: threads share out (image, channels), so no two ever add to the same
// cell, and every cell sums its regions in their order: the result does not depend on the number of threads.
// Features are read channels-last; another layout is converted first and the result goes back to it. Sums are fp32
// (fp64 for fp64 features), boxes are never rounded to the features' type.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <tuple>
#include <vector>

#include "../geometry.h"
#include "../roi_checks.h"
#include "../tensor.h"
#include "memory.h"
#include "roi_kernels.h"
#include "roi_taps.h"
#include "storage.h"
#include "vector.h"

namespace fastnas {
namespace {

constexpr int64_t kMultipliesPerThread = 1 << 20;  // about 100 us: less is not worth waking a thread
constexpr int64_t kBufferBytes = 8 << 20;
constexpr int64_t kBandCells = 16;  // rows of cells that regions taken one after the other share

FASTNAS_CLONES void pool(const PoolJob<float>& job) { pool_body(job); }
FASTNAS_CLONES void pool(const PoolJob<double>& job) { pool_body(job); }
FASTNAS_CLONES void pool(const PoolJob<BFloat16>& job) { pool_body(job); }
FASTNAS_CLONES void pool(const PoolJob<Float16>& job) { pool_body(job); }
FASTNAS_CLONES void spread(const SpreadJob<float>& job) { spread_body(job); }
FASTNAS_CLONES void spread(const SpreadJob<double>& job) { spread_body(job); }
FASTNAS_CLONES void spread(const SpreadJob<BFloat16>& job) { spread_body(job); }
FASTNAS_CLONES void spread(const SpreadJob<Float16>& job) { spread_body(job); }

struct Pooling {
  int64_t height, width, sampling_ratio;
  bool aligned;

  int64_t bins() const { return height * width; }
  // Multiply-adds of one region, to decide how many threads are worth it.
  int64_t work(int64_t channels) const {
    const int64_t samples = sampling_ratio > 0 ? sampling_ratio + 1 : 4;
    return bins() * samples * samples * channels;
  }
};

// The regions of a call: on which image and level each one lies.
template <typename A>
class Regions {
 public:
  Regions(const Tensor& boxes, const std::vector<double>& scales, int64_t images, double canonical_size,
          double canonical_level)
      : scales_(scales), count_(boxes.size(0)) {
    constexpr auto type = std::is_same_v<A, double> ? ScalarType::Double : ScalarType::Float;
    boxes_ = torch::stable::contiguous(torch::stable::to(boxes, type));
    data_ = boxes_.template const_data_ptr<A>();
    const int64_t levels = static_cast<int64_t>(scales.size());
    const int64_t lowest = std::lround(-std::log2(scales.front()));
    image_.resize(count_);
    level_.assign(count_, 0);
    for (int64_t k = 0; k < count_; ++k) {
      const A image = data_[5 * k];
      check(image >= 0 && image < static_cast<A>(images), "boxes: row ", k, " is for image ", image, ", expected 0 to ",
            images - 1);
      image_[k] = static_cast<int64_t>(image);
      if (levels > 1) {
        level_[k] = pyramid_level(box(k), static_cast<A>(canonical_size), static_cast<A>(canonical_level), lowest, levels);
      }
    }
  }

  int64_t count() const { return count_; }
  // Regions that lie close together one after the other, so that the cells they share are still in the cache.
  std::vector<int64_t> nearby() const {
    struct Key {
      int64_t map, band, x, region;
      bool operator<(const Key& other) const {
        return std::tie(map, band, x, region) < std::tie(other.map, other.band, other.x, other.region);
      }
    };
    const auto cell = [](A position) {
      return position > A(0) ? static_cast<int64_t>(smaller(position, A(1 << 30))) : int64_t(0);  // NaN too
    };
    std::vector<Key> keys(count_);
    for (int64_t k = 0; k < count_; ++k) {
      const A scale = static_cast<A>(scales_[level_[k]]);
      const int64_t map = image_[k] * static_cast<int64_t>(scales_.size()) + level_[k];
      keys[k] = {map, cell(box(k).y1 * scale) / kBandCells, cell(box(k).x1 * scale), k};
    }
    std::sort(keys.begin(), keys.end());
    std::vector<int64_t> order;
    for (const Key& key : keys) order.push_back(key.region);
    return order;
  }
  int64_t image(int64_t k) const { return image_[k]; }
  int64_t level(int64_t k) const { return level_[k]; }
  Box<A> box(int64_t k) const {
    const A* row = data_ + 5 * k;
    return {row[1], row[2], row[3], row[4]};
  }
  void axes(int64_t k, const Pooling& pooling, int64_t height, int64_t width, AxisTaps<A>& rows, AxisTaps<A>& cols) const {
    const Box<A> b = box(k);
    const A scale = static_cast<A>(scales_[level_[k]]);
    rows.build({b.y1, b.y2, scale, pooling.height, pooling.sampling_ratio, pooling.aligned}, pooling.height, height);
    cols.build({b.x1, b.x2, scale, pooling.width, pooling.sampling_ratio, pooling.aligned}, pooling.width, width);
  }

 private:
  std::vector<double> scales_;
  int64_t count_;
  Tensor boxes_;
  const A* data_;
  std::vector<int64_t> image_, level_;
};

template <typename S>
void forward(const std::vector<Tensor>& features, const Regions<accumulator_t<S>>& regions, const Pooling& pooling,
             Tensor& out) {
  using A = accumulator_t<S>;
  const int64_t channels = out.size(1);
  const bool channels_last = is_channels_last(out);
  S* result = static_cast<S*>(out.mutable_data_ptr());
  std::vector<const S*> maps;
  for (const Tensor& feature : features) maps.push_back(static_cast<const S*>(feature.const_data_ptr()));

  const std::vector<int64_t> order = regions.nearby();
  const int64_t regions_per_thread = std::max<int64_t>(1, kMultipliesPerThread / std::max<int64_t>(1, pooling.work(channels)));
  torch::stable::parallel_for(0, regions.count(), regions_per_thread, [&](int64_t first, int64_t last) {
    // Two regions at a time: while one is pooled, the first cells of the next are fetched.
    AxisTaps<A> rows[2], cols[2];
    PoolJob<S> jobs[2] = {};
    std::vector<A> sum(channels), zeros(channels);
    const auto prepare = [&](int64_t i) {
      const int64_t slot = i % 2, k = order[i];
      const Tensor& map = features[regions.level(k)];
      regions.axes(k, pooling, map.size(2), map.size(3), rows[slot], cols[slot]);
      PoolJob<S>& job = jobs[slot];
      job.image = maps[regions.level(k)] + regions.image(k) * map.stride(0);
      job.row_stride = map.stride(2);
      job.col_stride = map.stride(3);
      job.channels = channels;
      job.rows = &rows[slot];
      job.cols = &cols[slot];
      job.pooled_height = pooling.height;
      job.pooled_width = pooling.width;
      job.zeros = zeros.data();
      job.sum = sum.data();
      job.out = result + k * channels * pooling.bins();
      job.out_bin_stride = channels_last ? channels : 1;
      job.out_channel_stride = channels_last ? 1 : pooling.bins();
    };
    prepare(first);
    for (int64_t i = first; i < last; ++i) {
      if (i + 1 < last) prepare(i + 1);
      jobs[i % 2].next = i + 1 < last ? &jobs[(i + 1) % 2] : nullptr;
      pool(jobs[i % 2]);
    }
  });
}

Tensor roi_align(const std::vector<Tensor>& features, const Tensor& boxes, int64_t pooled_height, int64_t pooled_width,
                 const std::vector<double>& scales, int64_t sampling_ratio, bool aligned, double canonical_size,
                 double canonical_level) {
  const Pooling pooling{pooled_height, pooled_width, sampling_ratio, aligned};
  check_pooling(pooled_height, pooled_width, scales);
  check_features(features, boxes, scales);
  std::vector<Tensor> maps;
  for (const Tensor& feature : features) maps.push_back(with_inner_channels(feature));
  const Tensor& like = features[0];
  Tensor out = empty_in_layout(
      {boxes.size(0), like.size(1), pooled_height, pooled_width}, like.scalar_type(), like, is_channels_last(like));
  with_storage(like.scalar_type(), "features", [&](auto storage) {
    using S = decltype(storage);
    const Regions<accumulator_t<S>> regions(boxes, scales, like.size(0), canonical_size, canonical_level);
    if (out.numel() > 0) forward<S>(maps, regions, pooling, out);
  });
  return out;
}

// The gradient of one image on one level for a range of channels. Sums are made in place when the storage type can hold
// them, else in a buffer of fp32 that is rounded once at the end.
template <typename S>
class ImageGradient {
  using A = accumulator_t<S>;

 public:
  ImageGradient(S* image, int64_t height, int64_t width, int64_t all_channels, int64_t channels, std::vector<A>& buffer)
      : image_(image), cells_(height * width), all_channels_(all_channels), channels_(channels), width_(width) {
    if constexpr (std::is_same_v<S, A>) {
      sums_ = image;
      stride_ = all_channels;
      for (int64_t i = 0; i < cells_; ++i) std::fill_n(image + i * all_channels, channels, A(0));
    } else {
      buffer.assign(cells_ * channels, A(0));
      sums_ = buffer.data();
      stride_ = channels;
    }
  }
  A* sums() { return sums_; }
  int64_t col_stride() const { return stride_; }
  int64_t row_stride() const { return width_ * stride_; }
  void finish() {
    if constexpr (!std::is_same_v<S, A>) {
      for (int64_t i = 0; i < cells_; ++i) {
        for (int64_t c = 0; c < channels_; ++c) narrow(sums_[i * channels_ + c], image_[i * all_channels_ + c]);
      }
    }
  }

 private:
  S* image_;
  int64_t cells_, all_channels_, channels_, width_, stride_;
  A* sums_;
};

// Few images: split the channels too, in steps of a cache line. Sums in a buffer: small enough for it to stay in the cache
// and to be reused, for fresh memory costs more than the sums.
template <typename S>
int64_t channels_per_task(const std::vector<Tensor>& gradients) {
  const int64_t images = gradients[0].size(0), channels = gradients[0].size(1);
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t splits = (threads + images - 1) / images;
  int64_t block = (channels + splits - 1) / splits;
  if (!std::is_same_v<S, accumulator_t<S>>) {
    int64_t cells = 1;
    for (const Tensor& gradient : gradients) cells = std::max(cells, gradient.size(2) * gradient.size(3));
    block = std::min(block, std::max<int64_t>(32, kBufferBytes / (cells * sizeof(accumulator_t<S>))));
  }
  return std::max<int64_t>(16, (block + 15) / 16 * 16);
}

template <typename S>
void backward(const Tensor& grad, const Regions<accumulator_t<S>>& regions, const Pooling& pooling,
              std::vector<Tensor>& gradients) {
  using A = accumulator_t<S>;
  const int64_t images = gradients[0].size(0), channels = gradients[0].size(1);
  const int64_t levels = static_cast<int64_t>(gradients.size());
  std::vector<std::vector<int64_t>> members(images * levels);  // regions of each (image, level), in order
  for (int64_t k = 0; k < regions.count(); ++k) members[regions.image(k) * levels + regions.level(k)].push_back(k);

  const int64_t block = channels_per_task<S>(gradients);
  const int64_t blocks = (channels + block - 1) / block;

  const S* grads = static_cast<const S*>(grad.const_data_ptr());
  torch::stable::parallel_for(0, images * blocks, 1, [&](int64_t first, int64_t last) {
    AxisTaps<A> rows, cols;
    std::vector<A> buffer;
    for (int64_t task = first; task < last; ++task) {
      const int64_t image = task / blocks, begin = task % blocks * block;
      const int64_t count = std::min(block, channels - begin);
      for (int64_t level = 0; level < levels; ++level) {
        Tensor& out = gradients[level];
        const int64_t height = out.size(2), width = out.size(3);
        S* target = static_cast<S*>(out.mutable_data_ptr()) + image * height * width * channels + begin;
        ImageGradient<S> sums(target, height, width, channels, count, buffer);
        for (const int64_t k : members[image * levels + level]) {
          regions.axes(k, pooling, height, width, rows, cols);
          SpreadJob<S> job{};
          job.grad = grads + k * grad.stride(0) + begin;
          job.grad_row_stride = grad.stride(2);
          job.grad_col_stride = grad.stride(3);
          job.channels = count;
          job.rows = &rows;
          job.cols = &cols;
          job.pooled_height = pooling.height;
          job.pooled_width = pooling.width;
          job.image = sums.sums();
          job.row_stride = sums.row_stride();
          job.col_stride = sums.col_stride();
          spread(job);
        }
        sums.finish();
      }
    }
  });
}

std::vector<Tensor> roi_align_backward(
    const Tensor& grad, const Tensor& boxes, int64_t batch, const std::vector<int64_t>& heights,
    const std::vector<int64_t>& widths, const std::vector<bool>& channels_last, const std::vector<double>& scales,
    int64_t sampling_ratio, bool aligned, double canonical_size, double canonical_level, bool /*deterministic: always*/) {
  check_gradient(grad, boxes, batch, heights, widths, channels_last, scales);
  const size_t levels = scales.size();
  const Pooling pooling{grad.size(2), grad.size(3), sampling_ratio, aligned};

  const Tensor inner = with_inner_channels(grad);
  std::vector<Tensor> gradients;
  for (size_t level = 0; level < levels; ++level) {
    gradients.push_back(
        empty_in_layout({batch, grad.size(1), heights[level], widths[level]}, grad.scalar_type(), grad, true));
    ask_for_large_pages(gradients.back());
  }
  with_storage(grad.scalar_type(), "grad", [&](auto storage) {
    using S = decltype(storage);
    const Regions<accumulator_t<S>> regions(boxes, scales, batch, canonical_size, canonical_level);
    if (batch > 0 && grad.size(1) > 0) backward<S>(inner, regions, pooling, gradients);
  });
  for (size_t level = 0; level < levels; ++level) {
    if (!channels_last[level]) gradients[level] = torch::stable::contiguous(gradients[level]);
  }
  return gradients;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastnas, CPU, m) {
  m.impl("roi_align", TORCH_BOX(&roi_align));
  m.impl("roi_align_backward", TORCH_BOX(&roi_align_backward));
}

}  // namespace fastnas
