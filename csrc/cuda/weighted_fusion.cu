// Binding of weighted_fusion.cuh and weighted_fusion_backward.cuh to torch: arguments, memory and the stream. No host
// synchronisation: the weights stay on the device.
#include <torch/csrc/stable/library.h>

#include <optional>
#include <string>
#include <vector>

#include "../fusion_node.h"
#include "storage.h"
#include "weighted_fusion_backward.cuh"

namespace fastnas {
namespace {

template <typename S>
cuda::FusionParams<S> params_of(const FusionNode& node) {
  cuda::FusionParams<S> p{};
  p.count = node.count();
  p.method = node.method;
  p.activation = node.activation;
  p.eps = static_cast<float>(node.eps);
  p.weights = node.weights ? node.weights->const_data_ptr<float>() : nullptr;
  p.planes = node.planes();
  p.height = static_cast<int>(node.height);
  p.width = static_cast<int>(node.width);
  p.inner = static_cast<int>(node.inner());
  check(node.width * node.inner() < (int64_t(1) << 31), "size: expected rows of fewer than 2^31 numbers on the GPU");
  for (int i = 0; i < node.count(); ++i) {
    const Edge& edge = node.edges[i];
    check(edge.width * node.inner() < (int64_t(1) << 31), "inputs: input ", i, " has rows of 2^31 numbers or more");
    p.edges[i].map = static_cast<const S*>(node.maps[i].const_data_ptr());
    p.edges[i].resample = edge.resample;
    p.edges[i].height = static_cast<int>(edge.height);
    p.edges[i].width = static_cast<int>(edge.width);
    p.edges[i].up_rows = edge.up_rows;
    p.edges[i].up_cols = edge.up_cols;
    p.edges[i].pool_rows = edge.pool_rows;
    p.edges[i].pool_cols = edge.pool_cols;
  }
  return p;
}

Tensor weighted_fusion(const std::vector<Tensor>& inputs, const std::optional<Tensor>& weights,
                       const std::vector<int64_t>& size, const std::string& method, const std::string& activation,
                       const std::string& padding, double eps) {
  check(!inputs.empty() && inputs[0].is_cuda(), "inputs: expected on the GPU like the weights");
  const torch::stable::accelerator::DeviceGuard guard(inputs[0].get_device_index());
  const FusionNode node(inputs, weights, size, method, activation, padding, eps);
  Tensor out = node.empty_map(node.height, node.width);
  with_storage(node.type, "inputs", [&](auto storage) {
    using S = decltype(storage);
    if (node.is_empty()) return;
    cuda::FusionParams<S> p = params_of<S>(node);
    p.out = static_cast<S*>(out.mutable_data_ptr());
    check_cuda(cuda::fuse(p, current_stream(out)), "weighted_fusion");
  });
  return out;
}

std::vector<Tensor> weighted_fusion_backward(
    const Tensor& grad, const std::vector<Tensor>& inputs, const std::optional<Tensor>& weights,
    const std::vector<int64_t>& size, const std::string& method, const std::string& activation, const std::string& padding,
    double eps) {
  check(!inputs.empty() && inputs[0].is_cuda(), "inputs: expected on the GPU like grad");
  const torch::stable::accelerator::DeviceGuard guard(inputs[0].get_device_index());
  const FusionNode node(inputs, weights, size, method, activation, padding, eps);
  const Tensor dense = node.dense_gradient(grad);
  std::vector<Tensor> gradients;
  for (int i = 0; i < node.count(); ++i) gradients.push_back(node.empty_map(node.edges[i].height, node.edges[i].width));
  std::optional<Tensor> of_weights;
  if (node.weights) of_weights = torch::stable::new_empty(*node.weights, {node.count()});

  with_storage(node.type, "grad", [&](auto storage) {
    using S = decltype(storage);
    if (node.is_empty()) {
      if (of_weights) torch::stable::zero_(*of_weights);
      return;
    }
    cuda::FusionParams<S> p = params_of<S>(node);
    p.grad = static_cast<const S*>(dense.const_data_ptr());
    for (int i = 0; i < node.count(); ++i) p.edges[i].gradient = static_cast<S*>(gradients[i].mutable_data_ptr());
    std::optional<Tensor> dots;
    float *partial = nullptr, *result = nullptr;
    if (of_weights) {
      const int64_t blocks = cuda::fusion_tiles(p, cuda::unfuse_pack(p)).blocks();
      dots = torch::stable::new_empty(*node.weights, {blocks, kMostInputs});
      partial = dots->mutable_data_ptr<float>();
      result = of_weights->mutable_data_ptr<float>();
    }
    check_cuda(cuda::unfuse(p, partial, result, current_stream(dense)), "weighted_fusion_backward");
  });
  if (of_weights) gradients.push_back(torch::stable::to(*of_weights, weights->scalar_type()));
  return gradients;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastnas, CUDA, m) {
  m.impl("weighted_fusion", TORCH_BOX(&weighted_fusion));
  m.impl("weighted_fusion_backward", TORCH_BOX(&weighted_fusion_backward));
}

}  // namespace fastnas
