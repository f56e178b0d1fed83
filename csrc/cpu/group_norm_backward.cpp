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

#include "group_norm_common.h"
#include "memory.h"

namespace fastnas {
namespace {

template <typename S, typename R>
FASTNAS_INLINE void gradient_sums_body(const NormJob<S, R>& job) {
  switch (job.activation) {  // without an activation dz does not depend on the residual
    case Activation::kNone: return gradient_sum_rows<Activation::kNone, false>(job);
    case Activation::kRelu:
      return job.residual ? gradient_sum_rows<Activation::kRelu, true>(job)
                          : gradient_sum_rows<Activation::kRelu, false>(job);
    case Activation::kSilu:
      return job.residual ? gradient_sum_rows<Activation::kSilu, true>(job)
                          : gradient_sum_rows<Activation::kSilu, false>(job);
  }
}

template <Activation kAct, typename S, typename R>
FASTNAS_INLINE void gradients_with(const NormJob<S, R>& job) {
  if (!job.residual) return gradient_rows<kAct, false, true, false>(job);
  if (!job.residual_grad) return gradient_rows<kAct, true, true, false>(job);
  return job.out ? gradient_rows<kAct, true, true, true>(job) : gradient_rows<kAct, true, false, true>(job);
}
template <typename S, typename R>
FASTNAS_INLINE void gradients_body(const NormJob<S, R>& job) {
  switch (job.activation) {
    case Activation::kNone: return gradient_rows<Activation::kNone, false, true, false>(job);
    case Activation::kRelu: return gradients_with<Activation::kRelu>(job);
    case Activation::kSilu: return gradients_with<Activation::kSilu>(job);
  }
}

FASTNAS_FOR_STORAGES(gradient_sums)
FASTNAS_FOR_STORAGES(gradients)

template <typename S, typename R>
void backward(const GroupShape& shape, const Maps<S, R>& maps, const std::vector<accumulator_t<S>>& weight,
              std::vector<accumulator_t<S>> bias, Activation activation, const accumulator_t<S>* means,
              const accumulator_t<S>* rstds, WantedGradients wanted, accumulator_t<S>* weight_grad, accumulator_t<S>* bias_grad) {
  using A = accumulator_t<S>;
  const GroupPlan plan(shape);
  const int64_t channels = shape.channels, per_group = shape.per_group();
  ChannelParameters<A> parameters(shape, true);
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
    if (!wanted.sums()) return;
    const Columns<A> columns = scratch.columns(region);
    each_block(shape.channels_last, region, [&](int64_t rows, int64_t cols, int64_t offset) {
      NormJob<S, R> job = maps.job(shape, region, rows, cols, offset, activation);
      job.columns = columns;
      job.tile = scratch.tile();
      double* own = sums_of(region);
      job.first_sum = shape.channels_last ? own : scratch.sums();
      job.second_sum = shape.channels_last ? own + channels : scratch.sums() + cols;
      if (shape.channels_last) return gradient_sums(job);
      std::fill_n(job.first_sum, 2 * cols, 0.0);
      gradient_sums(job);
      own[0] += total(job.first_sum, cols);
      own[channels] += total(job.second_sum, cols);
    });
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
    const Columns<A> columns = scratch.columns(region);
    each_block(shape.channels_last, region, [&](int64_t rows, int64_t cols, int64_t offset) {
      NormJob<S, R> job = maps.job(shape, region, rows, cols, offset, activation);
      job.columns = columns;
      gradients(job);
    });
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
  const Tensor g = in_layout(torch::stable::to(grad, input.scalar_type()), shape.channels_last);
  const Tensor saved_mean = torch::stable::contiguous(mean), saved_rstd = torch::stable::contiguous(rstd);
  with_storages(x, added, [&](auto storage, auto residual_storage) {
    using S = decltype(storage);
    using R = decltype(residual_storage);
    using A = accumulator_t<S>;
    Maps<S, R> maps;
    maps.x = read_view<S>(x);
    maps.grad = read_view<S>(g);
    if (added) maps.residual = read_view<R>(*added);
    if (wanted.input) maps.out = write_view<S>(results.input);
    if (wanted.residual) maps.residual_grad = write_view<R>(results.residual);
    backward<S, R>(shape, maps, per_channel<A>(weight, shape.channels, A(1)), per_channel<A>(bias, shape.channels, A(0)),
                   activation, static_cast<const A*>(saved_mean.const_data_ptr()),
                   static_cast<const A*>(saved_rstd.const_data_ptr()), wanted,
                   wanted.weight ? static_cast<A*>(results.weight.mutable_data_ptr()) : nullptr,
                   wanted.bias ? static_cast<A*>(results.bias.mutable_data_ptr()) : nullptr);
  });
  return results.in_types_of(input, weight, bias, residual);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastnas, CPU, m) { m.impl("group_norm_act_backward", TORCH_BOX(&group_norm_act_backward)); }

}  // namespace fastnas
