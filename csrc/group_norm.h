// What the CPU and the CUDA side of GroupNorm agree on: shapes, layouts, names of activations, refusals.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "group_norm_shape.h"
#include "tensor.h"

namespace fastnas {

inline Activation activation_named(const std::string& name) {
  if (name == "relu") return Activation::kRelu;
  if (name == "silu") return Activation::kSilu;
  check(name == "none", "activation: expected none, relu or silu, got ", name);
  return Activation::kNone;
}

inline void check_eps(double eps) { check(eps >= 0, "eps: expected a number that is not negative, got ", eps); }

inline GroupShape group_shape(const Tensor& input, int64_t groups) {
  check(input.dim() == 4, "input: expected [N, C, H, W], got ", shape_text(input));
  check_floating(input, "input");
  check(groups > 0 && input.size(1) % groups == 0, "groups: expected a positive divisor of the ", input.size(1),
        " channels, got ", groups);
  return {input.size(0), input.size(1), input.size(2) * input.size(3), groups, is_channels_last(input)};
}

inline void check_like(const Tensor& map, const char* name, const Tensor& input) {
  bool same = map.dim() == input.dim();
  for (int64_t d = 0; same && d < input.dim(); ++d) same = map.size(d) == input.size(d);
  check(same, name, ": expected ", shape_text(input), " like input, got ", shape_text(map));
  check_floating(map, name);
  check(same_device(map, input), name, ": expected on the device of input");
}

inline void check_per_channel(const std::optional<Tensor>& values, const char* name, const Tensor& input) {
  if (!values) return;
  check(values->dim() == 1 && values->size(0) == input.size(1), name, ": expected [", input.size(1), "], got ",
        shape_text(*values));
  check_floating(*values, name);
  check(same_device(*values, input), name, ": expected on the device of input");
}

inline int64_t pixel_stride(const Tensor& map) {
  return map.size(3) > 1 ? map.stride(3) : map.size(2) > 1 ? map.stride(2) : 1;
}

// The map itself where its channels (channels-last) or its pixels lie side by side, else a copy of which that is true.
inline Tensor in_layout(const Tensor& map, bool channels_last) {
  const bool one_run = map.size(2) <= 1 || map.size(3) <= 1 || map.stride(2) == map.size(3) * map.stride(3);
  const bool inner = channels_last ? map.stride(1) == 1 : pixel_stride(map) == 1;
  if (one_run && inner) return map;
  return torch::stable::contiguous(map, channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

template <typename T>
MapView<const T> read_view(const Tensor& map) {
  return {static_cast<const T*>(map.const_data_ptr()), map.stride(0), map.stride(1), pixel_stride(map)};
}
template <typename T>
MapView<T> write_view(Tensor& map) {
  return {static_cast<T*>(map.mutable_data_ptr()), map.stride(0), map.stride(1), pixel_stride(map)};
}

inline Tensor empty_map(const Tensor& like, ScalarType type, bool channels_last) {
  return empty_in_layout({like.size(0), like.size(1), like.size(2), like.size(3)}, type, like, channels_last);
}

// What maps of this type are summed in, and means are saved in.
inline ScalarType sum_type(const Tensor& map) {
  return map.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// Residuals are added in the type of the map or in the type of its sums; any other is converted to the latter.
inline Tensor residual_for(const Tensor& residual, const Tensor& input, bool channels_last) {
  const ScalarType sums = sum_type(input);
  const bool as_is = residual.scalar_type() == input.scalar_type() || residual.scalar_type() == sums;
  return in_layout(as_is ? residual : as_type(residual, sums), channels_last);
}

// ---------------------------------------------------------------------------------------------------------------------
// The backward pass

struct WantedGradients {
  bool input, weight, bias, residual;
  bool sums() const { return input || weight || bias; }
};

inline WantedGradients check_backward(
    const GroupShape& shape, const Tensor& grad, const Tensor& input, const Tensor& mean, const Tensor& rstd,
    const std::optional<Tensor>& weight, const std::optional<Tensor>& bias, const std::optional<Tensor>& residual,
    Activation activation, const std::vector<bool>& wanted) {
  check_like(grad, "grad", input);
  check_per_channel(weight, "weight", input);
  check_per_channel(bias, "bias", input);
  if (residual) check_like(*residual, "residual", input);
  const ScalarType sums = sum_type(input);
  const auto saved = [&](const Tensor& values, const char* name) {
    check(values.dim() == 2 && values.size(0) == shape.images && values.size(1) == shape.groups &&
              values.scalar_type() == sums && same_device(values, input),
          name, ": expected [", shape.images, ", ", shape.groups, "] of ", type_name(sums), " on the device of input");
  };
  saved(mean, "mean");
  saved(rstd, "rstd");
  check(wanted.size() == 4, "wanted: expected four answers (input, weight, bias, residual), got ", wanted.size());
  check(!wanted[1] || weight, "wanted: there is no weight to have a gradient");
  check(!wanted[2] || bias, "wanted: there is no bias to have a gradient");
  check(!wanted[3] || (residual && activation != Activation::kNone),
        "wanted: the residual's gradient is computed behind an activation only (without one it is grad itself)");
  return {wanted[0], wanted[1], wanted[2], wanted[3]};
}

// The four results in the types that kernels write; those that are not wanted have no elements.
struct GroupGradients {
  Tensor input, weight, bias, residual;

  GroupGradients(const GroupShape& shape, const Tensor& x, const std::optional<Tensor>& residual_read,
                 WantedGradients wanted) {
    const ScalarType sums = sum_type(x);
    const auto per_channel = [&](bool is_wanted) {  // zeros: right for maps without pixels
      return torch::stable::new_zeros(x, {is_wanted ? shape.channels : 0}, sums);
    };
    const auto map = [&](bool is_wanted, ScalarType type) {
      return is_wanted ? empty_map(x, type, shape.channels_last) : torch::stable::new_empty(x, {0}, type);
    };
    input = map(wanted.input, x.scalar_type());
    weight = per_channel(wanted.weight);
    bias = per_channel(wanted.bias);
    residual = map(wanted.residual, residual_read ? residual_read->scalar_type() : x.scalar_type());
  }

  // In the types of what they are the gradients of.
  std::tuple<Tensor, Tensor, Tensor, Tensor> in_types_of(
      const Tensor& x, const std::optional<Tensor>& weight_read, const std::optional<Tensor>& bias_read,
      const std::optional<Tensor>& residual_read) const {
    const auto as = [&](const Tensor& result, const std::optional<Tensor>& like) {
      return as_type(result, like ? like->scalar_type() : x.scalar_type());
    };
    return {input, as(weight, weight_read), as(bias, bias_read), as(residual, residual_read)};
  }
};

}  // namespace fastnas
