// What both passes of batch norm on the CPU share: names, refusals, and images that are one image. Loops and plan are GroupNorm's.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "norm_common.h"

namespace fastnas {

inline Activation batch_norm_activation(const std::string& name) {
  if (name == "relu6") return Activation::kRelu6;
  check(name == "none" || name == "relu" || name == "silu", "activation: expected none, relu, relu6 or silu, got ", name);
  return activation_named(name);
}

// Every channel is a group.
inline GroupShape batch_norm_shape(const Tensor& input) {
  check(input.dim() == 4, "input: expected [N, C, H, W], got ", shape_text(input));
  check_floating(input, "input");
  return {input.size(0), input.size(1), input.size(2) * input.size(3), input.size(1), is_channels_last(input)};
}

// Channels-last images that lie one behind another in all maps are one image, so that small ones make no slices of their own.
template <typename S, typename R>
GroupShape fold_images(const GroupShape& shape, Maps<S, R>& maps) {
  const auto folds = [&](const auto& view) {
    return !view.data || shape.pixels == 1 || view.image == shape.pixels * view.pixel;
  };
  const bool all = folds(maps.x) && folds(maps.grad) && folds(maps.third) && folds(maps.out) && folds(maps.residual_grad);
  if (!shape.channels_last || !all) return shape;
  const auto fold = [&](auto& view) { view.pixel = shape.pixels == 1 ? view.image : view.pixel; };
  fold(maps.x), fold(maps.grad), fold(maps.third), fold(maps.out), fold(maps.residual_grad);
  return {1, shape.channels, shape.images * shape.pixels, shape.groups, true};
}

// Two sums per channel for each slice of each image: first(region)[c] and first(region)[channels + c].
class SliceSums {
 public:
  explicit SliceSums(const NormPlan& plan) : plan_(plan), values_(sets() * 2 * channels()) {}

  int64_t sets() const { return plan_.shape().images * plan_.slices(); }
  double* of(const Region& region) { return set(region.image * plan_.slices() + region.slice) + region.channel; }
  double* set(int64_t index) { return values_.data() + index * 2 * channels(); }
  int64_t channels() const { return plan_.shape().channels; }
  double count(int64_t index) const { return static_cast<double>(plan_.slice_pixels(index % plan_.slices())); }

 private:
  const NormPlan& plan_;
  std::vector<double> values_;
};

}  // namespace fastnas
