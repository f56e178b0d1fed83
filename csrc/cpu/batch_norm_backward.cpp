// The backward pass of act(BatchNorm(x) * weight + bias + residual) on the CPU.
//
// The input of the activation is computed again from x (and the residual), or its sign is read off the result. With
// dz = grad * act'(z), n numbers in a channel and x^ = (x - mean) * rstd:
//   dbias_c = sum dz      dweight_c = sum dz * x^      dresidual = dz
//   dx = rstd * weight_c * (dz - sum dz / n - x^ * sum(dz * x^) / n)      frozen statistics: dx = rstd * weight_c * dz
// so all maps are read twice, once where nothing needs the sums. All sums have a fixed order.
#include <torch/csrc/stable/library.h>

#include <string>
#include <tuple>

#include "batch_norm_common.h"

namespace fastnas {
namespace {

template <typename S, typename R>
void backward(const GroupShape& shape, const Maps<S, R>& maps, bool frozen, const std::vector<accumulator_t<S>>& weight,
              std::vector<accumulator_t<S>> bias, const accumulator_t<S>* means, const accumulator_t<S>* rstds,
              WantedGradients wanted, accumulator_t<S>* weight_grad, accumulator_t<S>* bias_grad) {
  using A = accumulator_t<S>;
  const NormPlan plan(shape);
  const bool needs_sums = wanted.weight || wanted.bias || (wanted.input && !frozen);
  ChannelParameters<A> parameters(1, shape.channels, true);
  parameters.offset = std::move(bias);
  for (int64_t c = 0; c < shape.channels; ++c) {
    parameters.mean[c] = means[c];
    parameters.scale[c] = rstds[c] * weight[c];
  }
  SliceSums sums(plan);

  const auto sum = [&](const Region& region, Scratch<A>& scratch) {
    region_gradient_sums(plan, maps, region, scratch, sums.of(region));
  };

  const auto settle = [&](int64_t channel, int64_t channels) {
    if (!needs_sums) return;
    double* along = sums.set(0);
    double* plain = along + shape.channels;
    for (int64_t index = 1; index < sums.sets(); ++index) {
      const double* own = sums.set(index);
      for (int64_t c = channel; c < channel + channels; ++c) {
        along[c] += own[c];
        plain[c] += own[shape.channels + c];
      }
    }
    const double count = static_cast<double>(shape.images * shape.pixels);
    for (int64_t c = channel; c < channel + channels; ++c) {
      const double rstd = rstds[c], scale = rstd * weight[c];
      if (!frozen) {
        parameters.lift[c] = static_cast<A>(scale * plain[c] / count);
        parameters.slope[c] = static_cast<A>(scale * rstd * rstd * along[c] / count);
      }
      if (weight_grad) weight_grad[c] = static_cast<A>(along[c] * rstd);
      if (bias_grad) bias_grad[c] = static_cast<A>(plain[c]);
    }
  };

  const auto result = [&](const Region& region, Scratch<A>& scratch) {
    region_results(plan, maps, region, scratch, [](const NormJob<S, R>& job) { norm_gradients(job); });
  };

  const auto make_scratch = [&] { return Scratch<A>(plan, parameters); };
  plan.run_over_batch(needs_sums, wanted.input || wanted.residual, make_scratch, sum, settle, result);
}

// How the third map is read.
Third check_backward(const Tensor& grad, const Tensor& input, const Tensor& mean, const Tensor& rstd,
                     const std::optional<Tensor>& weight, const std::optional<Tensor>& bias, Activation activation,
                     const std::optional<Tensor>& third, const std::vector<bool>& wanted) {
  check_like(grad, "grad", input);
  check_per_channel(mean, "mean", input);
  check_per_channel(rstd, "rstd", input);
  check(mean.scalar_type() == sum_type(input), "mean: expected ", type_name(sum_type(input)));
  check(rstd.scalar_type() == sum_type(input), "rstd: expected ", type_name(sum_type(input)));
  check_per_channel(weight, "weight", input);
  check_per_channel(bias, "bias", input);
  check(wanted.size() == 4, "wanted: expected four answers (input, weight, bias, residual), got ", wanted.size());
  check(!wanted[1] || weight, "wanted: there is no weight to have a gradient");
  check(!wanted[2] || bias, "wanted: there is no bias to have a gradient");
  check(!wanted[3] || third, "wanted: the residual's gradient is computed behind an activation only, from the third map");
  if (!third) return Third::kNone;
  check_like(*third, "third", input);
  check(activation != Activation::kNone, "third: expected none without an activation");
  if (activation == Activation::kSilu) return Third::kResidual;
  check(third->scalar_type() == input.scalar_type(), "third: expected the result, in the type of input");
  return Third::kResult;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> batch_norm_act_backward(
    const Tensor& grad, const Tensor& input, const Tensor& mean, const Tensor& rstd, const std::optional<Tensor>& weight,
    const std::optional<Tensor>& bias, bool frozen, const std::string& activation_name, const std::optional<Tensor>& third,
    const std::vector<bool>& wanted_grads) {
  const GroupShape shape = batch_norm_shape(input);
  const Activation activation = batch_norm_activation(activation_name);
  const Third kind = check_backward(grad, input, mean, rstd, weight, bias, activation, third, wanted_grads);
  const WantedGradients wanted{wanted_grads[0], wanted_grads[1], wanted_grads[2], wanted_grads[3]};
  std::optional<Tensor> read;
  if (third) read = residual_for(*third, input, shape.channels_last);
  GroupGradients results(shape, input, read, wanted);
  if (shape.empty()) return results.in_types_of(input, weight, bias, third);

  const Tensor x = in_layout(input, shape.channels_last);
  const Tensor g = in_layout(as_type(grad, input.scalar_type()), shape.channels_last);
  const Tensor saved_mean = as_contiguous(mean), saved_rstd = as_contiguous(rstd);
  with_storages(x, read, [&](auto storage, auto third_storage) {
    using S = decltype(storage);
    using R = decltype(third_storage);
    using A = accumulator_t<S>;
    Maps<S, R> maps;
    maps.activation = activation;
    maps.third_kind = kind;
    maps.x = read_view<S>(x);
    maps.grad = read_view<S>(g);
    if (read) maps.third = read_view<R>(*read);
    if (wanted.input) maps.out = write_view<S>(results.input);
    if (wanted.residual) maps.residual_grad = write_view<R>(results.residual);
    const GroupShape folded = fold_images(shape, maps);
    backward<S, R>(folded, maps, frozen, per_channel<A>(weight, shape.channels, A(1)),
                   per_channel<A>(bias, shape.channels, A(0)), static_cast<const A*>(saved_mean.const_data_ptr()),
                   static_cast<const A*>(saved_rstd.const_data_ptr()), wanted,
                   wanted.weight ? static_cast<A*>(results.weight.mutable_data_ptr()) : nullptr,
                   wanted.bias ? static_cast<A*>(results.bias.mutable_data_ptr()) : nullptr);
  });
  return results.in_types_of(input, weight, bias, third);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastnas, CPU, m) { m.impl("batch_norm_act_backward", TORCH_BOX(&batch_norm_act_backward)); }

}  // namespace fastnas
