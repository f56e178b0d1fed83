// A BiFPN node as both devices see it: the arguments of a call, checked before any memory is touched, and its maps laid out
// alike. The node's type and layout are those of the first input that has the node's size (of the first input where none
// has); fastnas/ops/weighted_fusion.py mirrors this for tracing.
#pragma once

#include <algorithm>
#include <array>
#include <optional>
#include <string>
#include <vector>

#include "fusion.h"
#include "tensor.h"

namespace fastnas {

// Dense maps in one of the two layouts; a tensor that is so already is taken as it is, without a call of torch.
inline Tensor dense_in_layout(const Tensor& tensor, bool channels_last) {
  const std::array<int, 4> order = channels_last ? std::array{1, 3, 2, 0} : std::array{3, 2, 1, 0};
  int64_t stride = 1;
  bool dense = true;
  for (const int d : order) {
    dense = dense && (tensor.size(d) == 1 || tensor.stride(d) == stride);
    stride *= tensor.size(d);
  }
  if (dense || stride == 0) return tensor;
  return torch::stable::contiguous(tensor, channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

// One input's way to the node's size.
struct Edge {
  Resample resample = Resample::kSame;
  int64_t height = 0, width = 0;  // of the input
  UpAxis up_rows, up_cols;
  PoolAxis pool_rows, pool_cols;
};

struct FusionNode {
  std::vector<Tensor> maps;  // dense, all in the node's layout
  std::optional<Tensor> weights;  // [count], fp32 or fp64
  std::array<Edge, kMostInputs> edges;
  Method method;
  Activation activation;
  double eps;
  ScalarType type;
  bool channels_last;
  int64_t images, channels, height, width;

  int count() const { return static_cast<int>(maps.size()); }
  // A kernel walks images of rows of cells of `inner` contiguous numbers: the channels of a cell, or, where the layout is
  // [N, C, H, W], one number of one of N * C planes.
  int64_t inner() const { return channels_last ? channels : 1; }
  int64_t planes() const { return channels_last ? images : images * channels; }
  bool is_empty() const { return images * channels * height * width == 0; }

  FusionNode(const std::vector<Tensor>& inputs, const std::optional<Tensor>& given_weights,
             const std::vector<int64_t>& size, const std::string& method_name, const std::string& activation_name,
             const std::string& padding, double eps_)
      : method(parse<Method>("method", method_name, {"fast", "softmax", "sum"})),
        activation(parse<Activation>("activation", activation_name, {"none", "relu", "silu"})),
        eps(eps_) {
    const bool symmetric = parse<int>("padding", padding, {"same", "symmetric"}) == 1;
    check(inputs.size() == 2 || inputs.size() == 3, "inputs: expected two or three maps, got ", inputs.size());
    check(size.size() == 2 && size[0] > 0 && size[1] > 0 && size[0] < (1 << 29) && size[1] < (1 << 29),
          "size: expected (height, width), both positive");
    check(eps >= 0, "eps: expected a number that is not negative, got ", eps);
    height = size[0];
    width = size[1];
    for (size_t i = 0; i < inputs.size(); ++i) check_input(inputs[i], inputs[0], i);
    const Tensor& like = first_of_node_size(inputs);
    type = like.scalar_type();
    channels_last = is_channels_last(like);
    images = like.size(0);
    channels = like.size(1);
    for (size_t i = 0; i < inputs.size(); ++i) edges[i] = edge(inputs[i], i, symmetric);
    if (method != Method::kSum) check_weights(given_weights, inputs);

    for (const Tensor& input : inputs) maps.push_back(dense_in_layout(input, channels_last));
    if (method != Method::kSum) {
      const auto wide = type == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
      weights = torch::stable::contiguous(torch::stable::to(*given_weights, wide));
    }
  }

  // The incoming gradient in the node's type and layout.
  Tensor dense_gradient(const Tensor& grad) const {
    check(grad.dim() == 4 && grad.size(0) == images && grad.size(1) == channels && grad.size(2) == height &&
              grad.size(3) == width,
          "grad: expected [", images, ", ", channels, ", ", height, ", ", width, "], got ", shape_text(grad));
    check(same_device(grad, maps[0]), "grad: expected on the device of the inputs");
    check(grad.scalar_type() == type, "grad: expected ", type_name(type), " like the node, got ",
          type_name(grad.scalar_type()));
    return dense_in_layout(grad, channels_last);
  }

  Tensor empty_map(int64_t map_height, int64_t map_width) const {
    return empty_in_layout({images, channels, map_height, map_width}, type, maps[0], channels_last);
  }

 private:
  template <typename Choice>
  static Choice parse(const char* argument, const std::string& name, std::initializer_list<const char*> names) {
    int index = 0;
    std::string accepted;
    for (const char* known : names) {
      if (name == known) return static_cast<Choice>(index);
      accepted += (index++ ? ", " : "") + std::string(known);
    }
    check(false, argument, ": expected one of ", accepted, ", got ", name);
    return {};
  }

  static void check_input(const Tensor& input, const Tensor& first, size_t i) {
    check(input.dim() == 4, "inputs: expected [N, C, h, w], input ", i, " has ", input.dim(), " dimensions");
    check_floating(input, "inputs");
    check(same_device(input, first), "inputs: input ", i, " is on another device than the first");
    check(input.scalar_type() == first.scalar_type(), "inputs: input ", i, " is ", type_name(input.scalar_type()),
          ", the first is ", type_name(first.scalar_type()));
    check(input.size(0) == first.size(0) && input.size(1) == first.size(1), "inputs: input ", i, " is ",
          shape_text(input), ", which has another batch or other channels than the first, ", shape_text(first));
    check(input.size(2) > 0 && input.size(3) > 0, "inputs: input ", i, " is ", shape_text(input), ", a map without cells");
  }

  const Tensor& first_of_node_size(const std::vector<Tensor>& inputs) const {
    for (const Tensor& input : inputs) {
      if (input.size(2) == height && input.size(3) == width) return input;
    }
    return inputs[0];
  }

  Edge edge(const Tensor& input, size_t i, bool symmetric) const {
    Edge edge;
    const int64_t h = edge.height = input.size(2), w = edge.width = input.size(3);
    const auto one_level_up = [](int64_t coarse, int64_t fine) { return fine >= 2 * coarse - 1 && fine <= 2 * coarse + 1; };
    if (h == height && w == width) {
      edge.resample = Resample::kSame;
    } else if ((h + 1) / 2 == height && (w + 1) / 2 == width) {
      edge.resample = Resample::kDown;
      edge.pool_rows = PoolAxis(h, symmetric);
      edge.pool_cols = PoolAxis(w, symmetric);
    } else {
      check(one_level_up(h, height) && one_level_up(w, width), "inputs: input ", i, " is ", h, " x ", w,
            ", which is not the node's size ", height, " x ", width,
            " nor one level from it: resize it to half, the same or double the node's size first");
      edge.resample = Resample::kUp;
      edge.up_rows = UpAxis(h, height);
      edge.up_cols = UpAxis(w, width);
    }
    return edge;
  }

  static void check_weights(const std::optional<Tensor>& weights, const std::vector<Tensor>& inputs) {
    check(weights.has_value(), "weights: expected [", inputs.size(), "], one for each input; only method sum needs none");
    check_floating(*weights, "weights");
    check(weights->dim() == 1 && weights->size(0) == static_cast<int64_t>(inputs.size()), "weights: expected [",
          inputs.size(), "], one for each input, got ", shape_text(*weights));
    check(same_device(*weights, inputs[0]), "weights: expected on the device of the inputs");
  }
};

}  // namespace fastnas
