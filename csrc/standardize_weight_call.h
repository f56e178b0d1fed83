// The arguments of standardize_weights, checked and described, the same for both devices.
#pragma once

#include "tensor.h"

namespace fastnas::standardize {

// The weights of one convolution, [rows, inputs, kh, kw] with taps = kh * kw; every row is dense in memory.
struct Filters {
  Tensor weight;
  Tensor gain;  // [rows] in the type of the statistics; the weight itself where there is none
  bool has_gain;
  double scale;
  int64_t rows, inputs, taps;
  int64_t first_row;     // in the statistics
  bool inputs_innermost;  // the order of a row is (y, x, i), else (i, y, x); false where both are the same

  int64_t size() const { return inputs * taps; }  // K
};

inline std::string item(const char* list, size_t index) { return std::string(list) + "[" + std::to_string(index) + "]"; }

// Rows that are dense in either order stay where they are; others are copied.
inline Tensor with_dense_rows(const Tensor& tensor) {
  const int64_t inputs = tensor.size(1), height = tensor.size(2), width = tensor.size(3);
  const auto steps = [&](int64_t dim, int64_t step) { return tensor.size(dim) == 1 || tensor.stride(dim) == step; };
  const bool by_input = steps(3, 1) && steps(2, width) && steps(1, height * width);
  const bool by_tap = steps(1, 1) && steps(3, inputs) && steps(2, inputs * width);
  if (by_input || by_tap || tensor.numel() == 0) return tensor;
  return torch::stable::contiguous(
      tensor, is_channels_last(tensor) ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

inline bool inputs_innermost(const Tensor& tensor) {
  return is_channels_last(tensor) && tensor.size(2) * tensor.size(3) > 1;
}

inline void check_weights(
    const std::vector<Tensor>& weights, const std::vector<Tensor>& gains, const std::vector<double>& scales) {
  check(!weights.empty(), "weights: expected at least one");
  check(gains.empty() || gains.size() == weights.size(), "gains: expected none or one for each of ", weights.size(),
        " weights, got ", gains.size());
  check(scales.size() == weights.size(), "scales: expected one for each of ", weights.size(), " weights, got ", scales.size());
  for (size_t l = 0; l < weights.size(); ++l) {
    const Tensor& weight = weights[l];
    const std::string name = item("weights", l);
    check(weight.dim() == 4, name, ": expected [O, I, kh, kw], got ", shape_text(weight));
    check_floating(weight, name.c_str());
    check(weight.scalar_type() == weights[0].scalar_type() && same_device(weight, weights[0]), name,
          ": expected the type and device of weights[0], ", type_name(weights[0].scalar_type()), ", got ",
          type_name(weight.scalar_type()), same_device(weight, weights[0]) ? "" : " on another device");
    if (gains.empty()) continue;
    const Tensor& gain = gains[l];
    check(gain.numel() == weight.size(0) && is_floating(gain.scalar_type()) && same_device(gain, weight), item("gains", l),
          ": expected ", weight.size(0), " floating numbers on the device of the weight, got ", type_name(gain.scalar_type()), " ",
          shape_text(gain));
  }
}

// After check_weights. May copy weights and convert gains.
inline std::vector<Filters> describe_filters(
    const std::vector<Tensor>& weights, const std::vector<Tensor>& gains, const std::vector<double>& scales,
    ScalarType stats_type) {
  std::vector<Filters> filters;
  filters.reserve(weights.size());
  int64_t first_row = 0;
  for (size_t l = 0; l < weights.size(); ++l) {
    const Tensor weight = with_dense_rows(weights[l]);
    const Tensor gain =
        gains.empty() ? weight : torch::stable::contiguous(torch::stable::to(gains[l], stats_type));
    filters.push_back({weight, gain, !gains.empty(), scales[l], weight.size(0), weight.size(1),
                       weight.size(2) * weight.size(3), first_row, inputs_innermost(weight)});
    first_row += weight.size(0);
  }
  return filters;
}

// fp64 where a side of the computation is, else fp32.
inline ScalarType stats_type(ScalarType a, ScalarType b) {
  return a == ScalarType::Double || b == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline void check_options(const std::vector<bool>& channels_last, size_t weights, double eps, ScalarType dtype) {
  check(channels_last.size() == weights, "channels_last: expected one for each of ", weights, " weights, got ",
        channels_last.size());
  check(eps >= 0, "eps: expected 0 or more, got ", eps);
  check(is_floating(dtype), "dtype: expected fp32, fp64, fp16 or bf16, got ", type_name(dtype));
}

inline std::vector<Tensor> empty_outputs(
    const std::vector<Filters>& filters, ScalarType type, const std::vector<bool>& channels_last) {
  std::vector<Tensor> results;
  results.reserve(filters.size());
  for (size_t l = 0; l < filters.size(); ++l) {
    const Tensor& weight = filters[l].weight;
    results.push_back(empty_in_layout(
        {weight.size(0), weight.size(1), weight.size(2), weight.size(3)}, type, weight, channels_last[l]));
  }
  return results;
}

// [3, rows of all layers]: mean, rstd, pull. Filters without weights are not visited, so theirs are set here.
inline Tensor empty_stats(const std::vector<Filters>& filters, ScalarType type) {
  bool some_empty = false;
  for (const Filters& layer : filters) some_empty |= layer.size() == 0;
  const std::vector<int64_t> sizes{3, filters.back().first_row + filters.back().rows};
  return some_empty ? torch::stable::new_zeros(filters[0].weight, sizes, type)
                    : torch::stable::new_empty(filters[0].weight, sizes, type);
}

inline std::vector<Tensor> empty_weight_grads(const std::vector<Filters>& filters) {
  std::vector<bool> channels_last;
  for (const Filters& layer : filters) channels_last.push_back(is_channels_last(layer.weight));
  return empty_outputs(filters, filters[0].weight.scalar_type(), channels_last);
}

inline std::vector<Tensor> empty_gain_grads(const std::vector<Filters>& filters, ScalarType type) {
  std::vector<Tensor> results;
  for (const Filters& layer : filters) {
    if (!layer.has_gain) continue;
    results.push_back(layer.size() == 0 ? torch::stable::new_zeros(layer.gain, {layer.rows}, type)
                                        : torch::stable::new_empty(layer.gain, {layer.rows}, type));
  }
  return results;
}

// The gradients of the gains, in the type and shape of each.
inline std::vector<Tensor> like_gains(const std::vector<Tensor>& gain_grads, const std::vector<Tensor>& gains) {
  std::vector<Tensor> results;
  for (size_t l = 0; l < gains.size(); ++l) {
    std::vector<int64_t> sizes;
    for (int64_t d = 0; d < gains[l].dim(); ++d) sizes.push_back(gains[l].size(d));
    results.push_back(torch::stable::view(torch::stable::to(gain_grads[l], gains[l].scalar_type()), sizes));
  }
  return results;
}

inline void check_grads(const std::vector<Tensor>& grads, const std::vector<Tensor>& weights) {
  check(grads.size() == weights.size(), "grads: expected one for each of ", weights.size(), " weights, got ", grads.size());
  for (size_t l = 0; l < grads.size(); ++l) {
    const std::string name = item("grads", l);
    check_floating(grads[l], name.c_str());
    bool same = grads[l].dim() == weights[l].dim();
    for (int64_t d = 0; same && d < weights[l].dim(); ++d) same = grads[l].size(d) == weights[l].size(d);
    check(same, name, ": expected the shape of its weight ", shape_text(weights[l]), ", got ", shape_text(grads[l]));
    check(grads[l].scalar_type() == grads[0].scalar_type() && same_device(grads[l], weights[l]), name,
          ": expected the type of grads[0] and the device of the weight");
  }
}

inline std::vector<Tensor> with_dense_rows(const std::vector<Tensor>& tensors) {
  std::vector<Tensor> dense;
  dense.reserve(tensors.size());
  for (const Tensor& tensor : tensors) dense.push_back(with_dense_rows(tensor));
  return dense;
}

// The statistics of the forward pass; layer l begins at first_rows[l].
inline void place_in_stats(
    std::vector<Filters>& filters, const Tensor& stats, const std::vector<int64_t>& first_rows, ScalarType type) {
  // [3, rows of all layers]: mean, rstd, pull (csrc/standardize_weight.h)
  check(stats.dim() == 2 && stats.size(0) == 3 && stats.scalar_type() == type && stats.stride(1) == 1 &&
            same_device(stats, filters[0].weight),
        "stats: expected [3, rows] in ", type_name(type), " as the forward pass gave it");
  check(first_rows.size() == filters.size(), "first_rows: expected one for each of ", filters.size(), " weights");
  for (size_t l = 0; l < filters.size(); ++l) {
    check(first_rows[l] >= 0 && first_rows[l] + filters[l].rows <= stats.size(1), item("first_rows", l),
          ": expected a row of stats with ", filters[l].rows, " from it on, got ", first_rows[l]);
    filters[l].first_row = first_rows[l];
  }
}

}  // namespace fastnas::standardize
