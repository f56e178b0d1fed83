// Binding of group_norm_backward.cuh to torch.
#include "group_norm_backward.cuh"

#include <torch/csrc/stable/library.h>

#include <string>
#include <tuple>
#include <vector>

#include "group_norm_binding.h"

namespace fastnas {
namespace {

template <typename S>
cudaError_t launch(const cuda::NormCall<S>& call, int pack, float* weight_grad, float* bias_grad, cudaStream_t stream) {
  constexpr int kWide = cuda::kWide<S>;
  if (call.shape.channels_last) {
    return pack == 1 ? cuda::norm_backward<S, true, 1>(call, weight_grad, bias_grad, stream)
                     : cuda::norm_backward<S, true, kWide>(call, weight_grad, bias_grad, stream);
  }
  return pack == 1 ? cuda::norm_backward<S, false, 1>(call, weight_grad, bias_grad, stream)
                   : cuda::norm_backward<S, false, kWide>(call, weight_grad, bias_grad, stream);
}

void set_residual_grad(Tensor& grad, cuda::NormCall<float>& call) { call.residual_grad = write_view<float>(grad); }
template <typename S>
void set_residual_grad(Tensor& grad, cuda::NormCall<S>& call) {
  if (grad.scalar_type() == ScalarType::Float) {
    call.wide_residual_grad = write_view<float>(grad);
  } else {
    call.residual_grad = write_view<S>(grad);
  }
}

std::tuple<Tensor, Tensor, Tensor, Tensor> group_norm_act_backward(
    const Tensor& grad, const Tensor& input, const Tensor& mean, const Tensor& rstd, int64_t groups,
    const std::optional<Tensor>& weight, const std::optional<Tensor>& bias, const std::string& activation_name,
    const std::optional<Tensor>& residual, const std::vector<bool>& wanted_grads) {
  const GroupShape shape = group_shape(input, groups);
  const Activation activation = activation_named(activation_name);
  const WantedGradients wanted = check_backward(shape, grad, input, mean, rstd, weight, bias, residual, activation, wanted_grads);
  const torch::stable::accelerator::DeviceGuard guard(input.get_device_index());
  std::optional<Tensor> added, scales = weight, offsets = bias;
  if (residual) added = residual_for(*residual, input, shape.channels_last);
  GroupGradients results(shape, input, added, wanted);
  if (shape.empty()) return results.in_types_of(input, weight, bias, residual);

  const Tensor x = in_layout(input, shape.channels_last);
  const Tensor g = in_layout(torch::stable::to(grad, input.scalar_type()), shape.channels_last);
  Tensor saved_mean = torch::stable::contiguous(mean), saved_rstd = torch::stable::contiguous(rstd);
  with_storage(input.scalar_type(), "input", [&](auto storage) {
    using S = decltype(storage);
    cuda::NormCall<S> call{};
    call.shape = shape;
    call.activation = activation;
    call.x = read_view<S>(x);
    call.grad = read_view<S>(g);
    if (activation != Activation::kNone) set_residual(added, call);  // else dz does not depend on it
    if (wanted.input) call.out = write_view<S>(results.input);
    if (wanted.residual) set_residual_grad(results.residual, call);
    call.weight = channel_values(scales);
    call.bias = channel_values(offsets);
    call.mean = saved_mean.mutable_data_ptr<float>();
    call.rstd = saved_rstd.mutable_data_ptr<float>();
    const int pack = choose_cut(call, 2, cuda::kBatchBackward, wanted.input);

    const int64_t partial_count = wanted.sums() ? shape.images * call.cut.slices * 2 * shape.channels : 0;
    const int64_t group_count = wanted.input && !call.cut.resident ? shape.images * groups : 0;
    Tensor work = torch::stable::new_empty(input, {partial_count + 2 * group_count}, ScalarType::Float);
    float* memory = work.mutable_data_ptr<float>();
    if (partial_count > 0) call.partials = memory;
    if (group_count > 0) {
      call.lift = memory + partial_count;
      call.slope = call.lift + group_count;
    }
    float* weight_grad = wanted.weight ? results.weight.mutable_data_ptr<float>() : nullptr;
    float* bias_grad = wanted.bias ? results.bias.mutable_data_ptr<float>() : nullptr;
    check_cuda(launch(call, pack, weight_grad, bias_grad, current_stream(input)), "group_norm_act_backward");
  });
  return results.in_types_of(input, weight, bias, residual);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastnas, CUDA, m) { m.impl("group_norm_act_backward", TORCH_BOX(&group_norm_act_backward)); }

}  // namespace fastnas
