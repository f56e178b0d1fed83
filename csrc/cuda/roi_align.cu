// Binding of roi_align*.cuh to torch: layouts, memory and the stream. No host synchronisation anywhere, so a box for an image
// that is not there cannot be reported: it pools zeros and gets no gradient.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <type_traits>
#include <vector>

#include "../roi_checks.h"
#include "roi_align.cuh"
#include "roi_align_backward.cuh"
#include "roi_align_gather.cuh"
#include "storage.h"

namespace fastnas {
namespace {

// Levels without memory yet; `place_level` gives each its own.
cuda::RoiPyramid pyramid_of(const std::vector<double>& scales, int64_t images, int64_t channels, double canonical_size,
                            double canonical_level) {
  check(scales.size() <= cuda::kMaxLevels, "features: expected at most ", cuda::kMaxLevels, " levels on the GPU, got ",
        scales.size());
  cuda::RoiPyramid pyramid{};
  pyramid.levels = static_cast<int64_t>(scales.size());
  pyramid.lowest = std::lround(-std::log2(scales.front()));
  pyramid.images = images;
  pyramid.channels = channels;
  pyramid.canonical_size = static_cast<float>(canonical_size);
  pyramid.canonical_level = static_cast<float>(canonical_level);
  for (size_t i = 0; i < scales.size(); ++i) pyramid.level[i].scale = static_cast<float>(scales[i]);
  return pyramid;
}

void place_level(cuda::RoiLevel& level, void* data, int64_t height, int64_t width, int64_t channels) {
  level.data = data;
  level.height = height;
  level.width = width;
  level.col_stride = channels;
  level.row_stride = width * channels;
  level.image_stride = height * width * channels;
}

struct Boxes {
  Tensor rows;  // fp32, contiguous: keeps the memory while it is read
  cuda::RoiBoxes view() const { return {rows.const_data_ptr<float>(), rows.size(0)}; }
};

Boxes boxes_of(const Tensor& boxes) {
  return {torch::stable::contiguous(torch::stable::to(boxes, ScalarType::Float))};
}

Tensor roi_align(const std::vector<Tensor>& features, const Tensor& boxes, int64_t pooled_height, int64_t pooled_width,
                 const std::vector<double>& scales, int64_t sampling_ratio, bool aligned, double canonical_size,
                 double canonical_level) {
  check_pooling(pooled_height, pooled_width, scales);
  check_features(features, boxes, scales);
  const Tensor& like = features[0];
  const int64_t channels = like.size(1);
  const cuda::RoiPooling pooling{pooled_height, pooled_width, sampling_ratio, aligned};
  check(pooled_height < 1 << 15 && pooled_width < 1 << 15 &&
            pooled_height * pooled_width * std::max<int64_t>(channels, 1) < int64_t(1) << 31,
        "output_size: expected fewer than 2^31 elements per box on the GPU, got ", channels, " x ", pooled_height, " x ",
        pooled_width);
  cuda::RoiPyramid pyramid = pyramid_of(scales, like.size(0), channels, canonical_size, canonical_level);

  const torch::stable::accelerator::DeviceGuard guard(like.get_device_index());
  std::vector<Tensor> maps;
  for (const Tensor& feature : features) {
    const Tensor& map = maps.emplace_back(with_inner_channels(feature));
    cuda::RoiLevel& level = pyramid.level[maps.size() - 1];
    level.data = const_cast<void*>(map.const_data_ptr());
    level.image_stride = map.stride(0);
    level.row_stride = map.stride(2);
    level.col_stride = map.stride(3);
    level.height = map.size(2);
    level.width = map.size(3);
  }
  // Written channels-last always: the kernel's lanes are channels. Another layout is made of it afterwards.
  Tensor out = empty_in_layout({boxes.size(0), channels, pooled_height, pooled_width}, like.scalar_type(), like, true);
  const Boxes rows = boxes_of(boxes);
  with_storage(like.scalar_type(), "features", [&](auto storage) {
    using S = decltype(storage);
    if (out.numel() == 0) return;
    check_cuda(cuda::roi_align<S>(pyramid, rows.view(), pooling, static_cast<S*>(out.mutable_data_ptr()),
                                  current_stream(like)),
               "roi_align");
  });
  return is_channels_last(like) ? out : torch::stable::contiguous(out);
}

// Sums with atomics: where the gradients are fp32 in themselves, else in a workspace that is rounded once at the end.
template <typename S>
void backward_fast(const cuda::RoiGradient<S>& grad, const cuda::RoiBoxes& boxes, const cuda::RoiPooling& pooling,
                   cuda::RoiPyramid sums, std::vector<Tensor>& gradients, cudaStream_t stream) {
  constexpr bool in_place = std::is_same_v<S, float>;
  cuda::NarrowJob<S> job{};
  job.levels = sums.levels;
  int64_t elements = 0;
  for (int64_t i = 0; i < sums.levels; ++i) {
    elements += gradients[i].numel();
    job.out[i] = static_cast<S*>(gradients[i].mutable_data_ptr());
    job.end[i] = elements;
  }
  const Tensor workspace = torch::stable::new_empty(gradients[0], {in_place ? 0 : elements}, ScalarType::Float);
  float* base = static_cast<float*>(const_cast<void*>(workspace.const_data_ptr()));
  for (int64_t i = 0; i < sums.levels; ++i) {
    const Tensor& gradient = gradients[i];
    float* data = base + job.end[i] - gradient.numel();
    if constexpr (in_place) data = job.out[i];
    place_level(sums.level[i], data, gradient.size(2), gradient.size(3), sums.channels);
    if (in_place) check_cuda(cudaMemsetAsync(data, 0, gradient.numel() * sizeof(float), stream), "roi_align_backward");
  }
  if (!in_place) check_cuda(cudaMemsetAsync(base, 0, elements * sizeof(float), stream), "roi_align_backward");
  if (boxes.count > 0) check_cuda(cuda::roi_align_backward<S>(sums, boxes, pooling, grad, stream), "roi_align_backward");
  if constexpr (!in_place) {
    job.sums = base;
    check_cuda(cuda::narrow_all<S>(job, sums.channels, stream), "roi_align_backward");
  }
}

template <typename S>
void backward_deterministic(const cuda::RoiGradient<S>& grad, const cuda::RoiBoxes& boxes, const cuda::RoiPooling& pooling,
                            cuda::RoiPyramid out, std::vector<Tensor>& gradients, cudaStream_t stream) {
  check(boxes.count < int64_t(1) << 31, "boxes: expected fewer than 2^31 for the deterministic gradient");
  check(out.images * out.levels < int64_t(1) << 31, "features: too many images for the deterministic gradient");
  for (int64_t i = 0; i < out.levels; ++i) {
    place_level(out.level[i], gradients[i].mutable_data_ptr(), gradients[i].size(2), gradients[i].size(3), out.channels);
  }
  constexpr int64_t kInts = sizeof(cuda::RoiReach) / sizeof(int);
  const Tensor reach = torch::stable::new_empty(gradients[0], {boxes.count * kInts}, ScalarType::Int);
  auto* places = static_cast<cuda::RoiReach*>(const_cast<void*>(reach.const_data_ptr()));
  check_cuda(cuda::roi_align_backward_deterministic<S>(out, boxes, pooling, grad, places, stream), "roi_align_backward");
}

std::vector<Tensor> roi_align_backward(
    const Tensor& grad, const Tensor& boxes, int64_t batch, const std::vector<int64_t>& heights,
    const std::vector<int64_t>& widths, const std::vector<bool>& channels_last, const std::vector<double>& scales,
    int64_t sampling_ratio, bool aligned, double canonical_size, double canonical_level, bool deterministic) {
  check_gradient(grad, boxes, batch, heights, widths, channels_last, scales);
  const int64_t channels = grad.size(1);
  const cuda::RoiPooling pooling{grad.size(2), grad.size(3), sampling_ratio, aligned};
  check(pooling.height + pooling.width <= cuda::kMostBins, "output_size: expected at most ", cuda::kMostBins,
        " for height + width in the gradient on the GPU, got ", pooling.height, " + ", pooling.width);
  check(channels <= 1 << 20, "grad: expected at most 2^20 channels on the GPU, got ", channels);
  const cuda::RoiPyramid pyramid = pyramid_of(scales, batch, channels, canonical_size, canonical_level);

  const torch::stable::accelerator::DeviceGuard guard(grad.get_device_index());
  const Tensor inner = with_inner_channels(grad);
  const Boxes rows = boxes_of(boxes);
  std::vector<Tensor> gradients;
  for (size_t level = 0; level < scales.size(); ++level) {
    gradients.push_back(empty_in_layout({batch, channels, heights[level], widths[level]}, grad.scalar_type(), grad, true));
  }
  with_storage(grad.scalar_type(), "grad", [&](auto storage) {
    using S = decltype(storage);
    if (batch == 0 || channels == 0) return;
    const cuda::RoiGradient<S> source{
        static_cast<const S*>(inner.const_data_ptr()), inner.stride(0), inner.stride(2), inner.stride(3)};
    const cudaStream_t stream = current_stream(grad);
    if (deterministic) {
      backward_deterministic<S>(source, rows.view(), pooling, pyramid, gradients, stream);
    } else {
      backward_fast<S>(source, rows.view(), pooling, pyramid, gradients, stream);
    }
  });
  for (size_t level = 0; level < scales.size(); ++level) {
    if (!channels_last[level]) gradients[level] = torch::stable::contiguous(gradients[level]);
  }
  return gradients;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastnas, CUDA, m) {
  m.impl("roi_align", TORCH_BOX(&roi_align));
  m.impl("roi_align_backward", TORCH_BOX(&roi_align_backward));
}

}  // namespace fastnas
