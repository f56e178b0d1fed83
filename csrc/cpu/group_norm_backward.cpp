// The backward pass of act(GroupNorm(x) * weight + bias + residual) on the CPU.
//
// The input of the activation is computed again from x (and the residual), never saved. With dz = grad * act'(z), n numbers in
// a group and x^ = (x - mean) * rstd:
//   dbias_c = sum dz      dweight_c = sum dz * x^      dresidual = dz
//   dx = rstd * (weight_c * dz - sum_group(weight * dz) / n - x^ * sum_group(weight * dz * x^) / n)
// so x, grad and the residual are read twice, the second time from the cache where they fit. All sums have a fixed order.
#include <torch/csrc/stable/library.h>

#include <string>
#include <tuple>
#include <type_traits>

#include "memory.h"
#include "norm_common.h"

namespace fastnas {
namespace {

template <typename S, typename R>
void backward(const GroupShape& shape, const Maps<S, R>& maps, const std::vector<accumulator_t<S>>& weight,
              std::vector<accumulator_t<S>> bias, const accumulator_t<S>* means, const accumulator_t<S>* rstds,
              WantedGradients wanted, accumulator_t<S>* weight_grad, accumulator_t<S>* bias_grad) {
  using A = accumulator_t<S>;
  const NormPlan plan(shape);
  const int64_t channels = shape.channels, per_group = shape.per_group();
  ChannelParameters<A> parameters(shape.images, shape.channels, true);
  parameters.offset = std::move(bias);
  for (int64_t i = 0; i < shape.images * channels; ++i) {
    parameters.mean[i] = means[i / per_group];
    parameters.scale[i] = rstds[i / per_group] * weight[i % channels];
  }
  std::vector<double> channel_sums(shape.images * plan.slices() * 2 * channels);
  const auto sums_of = [&](const Region& region) {
    return channel_sums.data() + (region.image * plan.slices() + region.slice) * 2 * channels + region.channel;
  };

  const auto sum = [&](const Region& region, Scratch<A>& scratch) {
    if (wanted.sums()) region_gradient_sums(plan, maps, region, scratch, sums_of(region));
  };

  // Sums of the slices go to the first one's place.
  const auto settle = [&](const Region& whole) {
    if (!wanted.sums()) return;
    double* own = sums_of({whole.image, 0, 0, 0, 0, 0});
    for (int64_t slice = 1; slice < plan.slices(); ++slice) {
      const double* other = sums_of({whole.image, 0, 0, 0, 0, slice});
      for (int64_t c = whole.channel; c < whole.channel + whole.channels; ++c) {
        own[c] += other[c];
        own[channels + c] += other[channels + c];
      }
    }
    const double count = static_cast<double>(per_group * shape.pixels);
    for (int64_t channel = whole.channel; channel < whole.channel + whole.channels; channel += per_group) {
      const double rstd = rstds[(whole.image * channels + channel) / per_group];
      double along = 0, plain = 0;
      for (int64_t c = channel; c < channel + per_group; ++c) {
        along += weight[c] * own[c];
        plain += weight[c] * own[channels + c];
      }
      for (int64_t c = channel; c < channel + per_group; ++c) {
        parameters.lift[whole.image * channels + c] = static_cast<A>(rstd * plain / count);
        parameters.slope[whole.image * channels + c] = static_cast<A>(rstd * rstd * rstd * along / count);
      }
    }
  };

  const auto result = [&](const Region& region, Scratch<A>& scratch) {
    region_results(plan, maps, region, scratch, [](const NormJob<S, R>& job) { norm_gradients(job); });
  };

  const auto make_scratch = [&] { return Scratch<A>(plan, parameters); };
  plan.run(wanted.input || wanted.residual, make_scratch, sum, settle, result);

  for (int64_t c = 0; c < channels; ++c) {
    double along = 0, plain = 0;
    for (int64_t image = 0; image < shape.images; ++image) {
      const double* own = sums_of({image, c, 0, 0, 0, 0});
      along += own[0] * rstds[(image * channels + c) / per_group];
      plain += own[channels];
    }
    if (weight_grad) weight_grad[c] = static_cast<A>(along);
    if (bias_grad) bias_grad[c] = static_cast<A>(plain);
  }
}

std::tuple<Tensor, Tensor, Tensor, Tensor> group_norm_act_backward(
    const Tensor& grad, const Tensor& input, const Tensor& mean, const Tensor& rstd, int64_t groups,
    const std::optional<Tensor>& weight, const std::optional<Tensor>& bias, const std::string& activation_name,
    const std::optional<Tensor>& residual, const std::vector<bool>& wanted_grads) {
  const GroupShape shape = group_shape(input, groups);
  const Activation activation = activation_named(activation_name);
  const WantedGradients wanted = check_backward(shape, grad, input, mean, rstd, weight, bias, residual, activation, wanted_grads);
  std::optional<Tensor> added;
  if (residual) added = residual_for(*residual, input, shape.channels_last);
  GroupGradients results(shape, input, added, wanted);
  ask_for_large_pages(results.input);
  ask_for_large_pages(results.residual);
  if (shape.empty()) return results.in_types_of(input, weight, bias, residual);

  const Tensor x = in_layout(input, shape.channels_last);
  const Tensor g = in_layout(as_type(grad, input.scalar_type()), shape.channels_last);
  const Tensor saved_mean = as_contiguous(mean), saved_rstd = as_contiguous(rstd);
  with_storages(x, added, [&](auto storage, auto residual_storage) {
    using S = decltype(storage);
    using R = decltype(residual_storage);
    using A = accumulator_t<S>;
    Maps<S, R> maps;
    maps.activation = activation;
    maps.x = read_view<S>(x);
    maps.grad = read_view<S>(g);
    if (added) {
      maps.third = read_view<R>(*added);
      maps.third_kind = Third::kResidual;
    }
    if (wanted.input) maps.out = write_view<S>(results.input);
    if (wanted.residual) maps.residual_grad = write_view<R>(results.residual);
    backward<S, R>(shape, maps, per_channel<A>(weight, shape.channels, A(1)), per_channel<A>(bias, shape.channels, A(0)),
                   static_cast<const A*>(saved_mean.const_data_ptr()),
                   static_cast<const A*>(saved_rstd.const_data_ptr()), wanted,
                   wanted.weight ? static_cast<A*>(results.weight.mutable_data_ptr()) : nullptr,
                   wanted.bias ? static_cast<A*>(results.bias.mutable_data_ptr()) : nullptr);
  });
  return results.in_types_of(input, weight, bias, residual);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastnas, CPU, m) { m.impl("group_norm_act_backward", TORCH_BOX(&group_norm_act_backward)); }

}  // namespace fastnas
