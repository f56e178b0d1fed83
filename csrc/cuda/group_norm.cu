// Binding of group_norm_forward.cuh to torch.
#include "group_norm_forward.cuh"

#include <torch/csrc/stable/library.h>

#include <string>
#include <tuple>

#include "group_norm_binding.h"

namespace fastnas {
namespace {

template <typename S>
cudaError_t launch(const cuda::NormCall<S>& call, int pack, cudaStream_t stream) {
  constexpr int kWide = cuda::kWide<S>;
  if (call.shape.channels_last) {
    return pack == 1 ? cuda::norm_forward<S, true, 1>(call, stream) : cuda::norm_forward<S, true, kWide>(call, stream);
  }
  return pack == 1 ? cuda::norm_forward<S, false, 1>(call, stream) : cuda::norm_forward<S, false, kWide>(call, stream);
}

std::tuple<Tensor, Tensor, Tensor> group_norm_act(
    const Tensor& input, int64_t groups, const std::optional<Tensor>& weight, const std::optional<Tensor>& bias, double eps,
    const std::string& activation_name, const std::optional<Tensor>& residual) {
  const GroupShape shape = group_shape(input, groups);
  const Activation activation = activation_named(activation_name);
  check_eps(eps);
  check_per_channel(weight, "weight", input);
  check_per_channel(bias, "bias", input);
  if (residual) check_like(*residual, "residual", input);
  const torch::stable::accelerator::DeviceGuard guard(input.get_device_index());
  Tensor out = empty_map(input, input.scalar_type(), shape.channels_last);
  Tensor mean = torch::stable::new_empty(input, {shape.images, groups}, ScalarType::Float);
  Tensor rstd = torch::stable::new_empty(input, {shape.images, groups}, ScalarType::Float);
  if (shape.empty()) return {out, torch::stable::zero_(mean), torch::stable::zero_(rstd)};

  const Tensor x = in_layout(input, shape.channels_last);
  std::optional<Tensor> added, scales = weight, offsets = bias;
  if (residual) added = residual_for(*residual, input, shape.channels_last);
  with_storage(input.scalar_type(), "input", [&](auto storage) {
    using S = decltype(storage);
    cuda::NormCall<S> call{};
    call.shape = shape;
    call.activation = activation;
    call.x = read_view<S>(x);
    set_residual(added, call);
    call.out = write_view<S>(out);
    call.weight = channel_values(scales);
    call.bias = channel_values(offsets);
    call.eps = static_cast<float>(eps);
    call.mean = mean.mutable_data_ptr<float>();
    call.rstd = rstd.mutable_data_ptr<float>();
    const int pack = choose_cut(call, 1, cuda::kBatchShared, true);
    const int64_t partial_count = call.cut.resident ? 0 : shape.images * call.cut.slices * 2 * shape.channels;
    Tensor partials = torch::stable::new_empty(input, {partial_count}, ScalarType::Float);
    if (partial_count > 0) call.partials = partials.mutable_data_ptr<float>();
    check_cuda(launch(call, pack, current_stream(input)), "group_norm_act");
  });
  return {out, mean, rstd};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastnas, CUDA, m) { m.impl("group_norm_act", TORCH_BOX(&group_norm_act)); }

}  // namespace fastnas
