// Binding of standardize_weight.cuh to torch: the table of layers, memory and the stream. No host synchronisation.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "../standardize_weight_call.h"
#include "standardize_weight.cuh"
#include "storage.h"

namespace fastnas {
namespace {

using namespace standardize;

// What forward and backward have in common; layers without elements are left out, which `place` tells apart.
struct Table {
  std::vector<cuda::FilterLayer> layers;
  std::vector<size_t> place;  // of each layer among the arguments

  explicit Table(const std::vector<Filters>& filters) {
    for (size_t l = 0; l < filters.size(); ++l) {
      const Filters& shape = filters[l];
      if (shape.size() == 0 || shape.rows == 0) continue;
      check(shape.size() <= INT32_MAX && shape.first_row + shape.rows <= INT32_MAX, item("weights", l),
            ": expected fewer than 2^31 weights per filter and filters in all");
      cuda::FilterLayer layer{};
      layer.weight = shape.weight.const_data_ptr();
      layer.weight_stride = shape.weight.stride(0);
      layer.weight_innermost = shape.inputs_innermost;
      layer.rows = static_cast<int32_t>(shape.rows);
      layer.inputs = static_cast<int32_t>(shape.inputs);
      layer.taps = static_cast<int32_t>(shape.taps);
      layer.first_row = static_cast<int32_t>(shape.first_row);
      layer.scale = static_cast<float>(shape.scale);
      layer.gain = shape.has_gain ? shape.gain.const_data_ptr<float>() : nullptr;
      layers.push_back(layer);
      place.push_back(l);
    }
  }
};

// Whether filters of `size` elements, `stride` apart, can be read or written four at a time.
template <typename S>
bool packs(const void* base, int64_t stride, int64_t size) {
  return size % 4 == 0 && cuda::aligned(static_cast<const S*>(base), stride, 4);
}

std::tuple<std::vector<Tensor>, Tensor> standardize_weights(
    const std::vector<Tensor>& weights, const std::vector<Tensor>& gains, const std::vector<double>& scales,
    const std::vector<bool>& channels_last, double eps, bool unbiased, ScalarType dtype) {
  check_weights(weights, gains, scales);
  check_options(channels_last, weights.size(), eps, dtype);
  with_storage(weights[0].scalar_type(), "weights", [](auto) {});  // no fp64: known before memory is touched
  with_storage(dtype, "dtype", [](auto) {});
  const torch::stable::accelerator::DeviceGuard guard(weights[0].get_device_index());
  const std::vector<Filters> filters = describe_filters(weights, gains, scales, ScalarType::Float);
  Table table(filters);
  std::vector<Tensor> outs = empty_outputs(filters, dtype, channels_last);
  Tensor stats = empty_stats(filters, ScalarType::Float);
  if (table.layers.empty()) return {outs, stats};
  with_storage(weights[0].scalar_type(), "weights", [&](auto s) {
    with_storage(dtype, "dtype", [&](auto t) {
      using S = decltype(s);
      using T = decltype(t);
      for (size_t l = 0; l < table.layers.size(); ++l) {
        cuda::FilterLayer& layer = table.layers[l];
        Tensor& out = outs[table.place[l]];
        const int64_t size = filters[table.place[l]].size();
        layer.out = out.mutable_data_ptr();
        layer.other_innermost = inputs_innermost(out);
        layer.weight_packs = packs<S>(layer.weight, layer.weight_stride, size);
        layer.out_packs = packs<T>(layer.out, size, size);
      }
      check_cuda(cuda::standardize<S, T>(table.layers.data(), static_cast<int64_t>(table.layers.size()), static_cast<float>(eps),
                                         unbiased, stats.mutable_data_ptr<float>(), stats.stride(0), current_stream(stats)),
                 "standardize_weights");
    });
  });
  return {outs, stats};
}

std::tuple<std::vector<Tensor>, std::vector<Tensor>> standardize_weights_backward(
    const std::vector<Tensor>& grads, const std::vector<Tensor>& weights, const std::vector<Tensor>& gains,
    const std::vector<double>& scales, const Tensor& stats, const std::vector<int64_t>& first_rows) {
  check_weights(weights, gains, scales);
  check_grads(grads, weights);
  with_storage(weights[0].scalar_type(), "weights", [](auto) {});
  with_storage(grads[0].scalar_type(), "grads", [](auto) {});
  const torch::stable::accelerator::DeviceGuard guard(weights[0].get_device_index());
  const std::vector<Tensor> dense = with_dense_rows(grads);
  std::vector<Filters> filters = describe_filters(weights, gains, scales, ScalarType::Float);
  place_in_stats(filters, stats, first_rows, ScalarType::Float);
  Table table(filters);
  std::vector<Tensor> weight_grads = empty_weight_grads(filters);
  std::vector<Tensor> gain_grads = empty_gain_grads(filters, ScalarType::Float);
  if (table.layers.empty()) return {weight_grads, like_gains(gain_grads, gains)};
  with_storage(weights[0].scalar_type(), "weights", [&](auto s) {
    with_storage(grads[0].scalar_type(), "grads", [&](auto g) {
      using S = decltype(s);
      using G = decltype(g);
      for (size_t l = 0; l < table.layers.size(); ++l) {
        cuda::FilterLayer& layer = table.layers[l];
        const size_t place = table.place[l];
        const int64_t size = filters[place].size();
        layer.grad = dense[place].const_data_ptr();
        layer.grad_stride = dense[place].stride(0);
        layer.other_innermost = inputs_innermost(dense[place]);
        layer.out = weight_grads[place].mutable_data_ptr();
        layer.gain_grad = layer.gain ? gain_grads[place].mutable_data_ptr<float>() : nullptr;
        layer.weight_packs = packs<S>(layer.weight, layer.weight_stride, size);
        layer.grad_packs = packs<G>(layer.grad, layer.grad_stride, size);
        layer.out_packs = packs<S>(layer.out, size, size);
      }
      check_cuda(cuda::standardize_backward<S, G>(table.layers.data(), static_cast<int64_t>(table.layers.size()),
                                                  stats.const_data_ptr<float>(), stats.stride(0), current_stream(stats)),
                 "standardize_weights_backward");
    });
  });
  return {weight_grads, like_gains(gain_grads, gains)};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastnas, CUDA, m) {
  m.impl("standardize_weights", TORCH_BOX(&standardize_weights));
  m.impl("standardize_weights_backward", TORCH_BOX(&standardize_weights_backward));
}

}  // namespace fastnas
