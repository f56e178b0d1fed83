// The arguments of depthwise_conv2d, checked and described.
#pragma once

#include <optional>
#include <vector>

#include "../tensor.h"

namespace fastnas::depthwise {

struct Convolution {
  int64_t images, channels, height, width;  // of the input
  int64_t out_height, out_width;
  int64_t kernel_height, kernel_width, stride_y, stride_x;
  int64_t top, left;  // padding

  int64_t taps() const { return kernel_height * kernel_width; }
  bool empty() const { return images == 0 || channels == 0; }
};

inline void check_channels(const Tensor& values, const char* name, const Tensor& input) {
  check(values.dim() == 1 && values.size(0) == input.size(1), name, ": expected [", input.size(1), "], got ",
        shape_text(values));
  check_floating(values, name);
  check(same_device(values, input), name, ": expected on the device of input");
}

inline Convolution describe(
    const Tensor& input, const Tensor& weight, const std::vector<int64_t>& stride, const std::vector<int64_t>& padding) {
  check(input.dim() == 4, "input: expected [N, C, H, W], got ", shape_text(input));
  check_floating(input, "input");
  check(weight.dim() == 4 && weight.size(0) == input.size(1) && weight.size(1) == 1 && weight.size(2) > 0 && weight.size(3) > 0,
        "weight: expected [", input.size(1), ", 1, kh, kw], got ", shape_text(weight));
  check_floating(weight, "weight");
  check(same_device(weight, input), "weight: expected on the device of input");
  check(stride.size() == 2 && stride[0] > 0 && stride[1] > 0, "stride: expected two positive numbers");
  bool fits = padding.size() == 4;
  for (int64_t border : padding) fits = fits && border >= 0 && border < int64_t(1) << 31;
  check(fits, "padding: expected four numbers (top, bottom, left, right), none of them negative");
  Convolution conv{input.size(0), input.size(1), input.size(2), input.size(3), 0, 0, weight.size(2), weight.size(3),
                   stride[0],     stride[1],     padding[0],    padding[2]};
  const int64_t height = conv.height + padding[0] + padding[1], width = conv.width + padding[2] + padding[3];
  check(conv.height > 0 && conv.width > 0 && height >= conv.kernel_height && width >= conv.kernel_width,
        "input: expected a map that with its padding is at least as large as the kernel ", conv.kernel_height, " x ",
        conv.kernel_width, ", got ", conv.height, " x ", conv.width);
  conv.out_height = (height - conv.kernel_height) / conv.stride_y + 1;
  conv.out_width = (width - conv.kernel_width) / conv.stride_x + 1;
  return conv;
}

inline void check_gradient(const Tensor& grad, const Tensor& input, const Convolution& conv) {
  check(grad.dim() == 4 && grad.size(0) == conv.images && grad.size(1) == conv.channels && grad.size(2) == conv.out_height &&
            grad.size(3) == conv.out_width,
        "grad: expected [", conv.images, ", ", conv.channels, ", ", conv.out_height, ", ", conv.out_width, "], got ",
        shape_text(grad));
  check_floating(grad, "grad");
  check(same_device(grad, input), "grad: expected on the device of input");
}

}  // namespace fastnas::depthwise
