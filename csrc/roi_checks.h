// What both devices refuse in a call of RoIAlign, with the same words, before any memory is touched.
#pragma once

#include <cstdint>
#include <vector>

#include "tensor.h"

namespace fastnas {

inline void check_pooling(int64_t height, int64_t width, const std::vector<double>& scales) {
  check(height > 0 && width > 0, "output_size: expected positive sizes, got ", height, " x ", width);
  check(!scales.empty(), "features: expected at least one level");
  for (const double scale : scales) check(scale > 0, "scales: expected positive numbers, got ", scale);
}

inline void check_boxes(const Tensor& boxes) {
  check(boxes.dim() == 2 && boxes.size(1) == 5, "boxes: expected [K, 5] as (image, x1, y1, x2, y2), got ",
        shape_text(boxes));
  check_floating(boxes, "boxes");
}

inline void check_features(const std::vector<Tensor>& features, const Tensor& boxes, const std::vector<double>& scales) {
  check(features.size() == scales.size(), "features: expected ", scales.size(), " levels, one for each stride, got ",
        features.size());
  check_boxes(boxes);
  for (const Tensor& feature : features) {
    check(feature.dim() == 4, "features: expected [N, C, H, W], got ", feature.dim(), " dimensions");
    check_floating(feature, "features");
    check(same_device(feature, features[0]) && feature.scalar_type() == features[0].scalar_type() &&
              feature.size(0) == features[0].size(0) && feature.size(1) == features[0].size(1),
          "features: every level needs the same device, type, batch and channels");
    check(feature.size(2) > 0 && feature.size(3) > 0, "features: expected maps that are not empty, got ",
          shape_text(feature));
  }
  check(same_device(boxes, features[0]), "boxes: expected on the device of the features");
}

inline void check_gradient(const Tensor& grad, const Tensor& boxes, int64_t batch, const std::vector<int64_t>& heights,
                           const std::vector<int64_t>& widths, const std::vector<bool>& channels_last,
                           const std::vector<double>& scales) {
  check_boxes(boxes);
  check(grad.dim() == 4 && grad.size(0) == boxes.size(0), "grad: expected [K, C, ph, pw], one for each of ",
        boxes.size(0), " boxes, got ", shape_text(grad));
  check_floating(grad, "grad");
  check_pooling(grad.size(2), grad.size(3), scales);
  check(same_device(boxes, grad), "boxes: expected on the device of grad");
  check(batch >= 0, "batch: expected 0 or more, got ", batch);
  const size_t levels = scales.size();
  check(heights.size() == levels && widths.size() == levels && channels_last.size() == levels,
        "heights, widths, channels_last: expected ", levels, " numbers each, one for each scale");
  for (size_t i = 0; i < levels; ++i) {
    check(heights[i] > 0 && widths[i] > 0, "heights, widths: expected positive sizes, got ", heights[i], " x ", widths[i]);
  }
}

}  // namespace fastnas
