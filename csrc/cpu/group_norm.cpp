// act(GroupNorm(x) * weight + bias + residual) on the CPU (Group Normalization, Wu & He 2018), forward.
//
// x is read twice, the second time from a cache where it fits, and the result is written once. Means and variances are those of
// an exact two-pass computation to a few roundings of fp32 (see norm_moments_body); they are saved in fp32 (fp64 for fp64), all that
// the backward pass needs beside x.
#include <torch/csrc/stable/library.h>

#include <cmath>
#include <string>
#include <tuple>
#include <type_traits>

#include "memory.h"
#include "norm_common.h"

namespace fastnas {
namespace {

template <typename S, typename R>
void forward(const GroupShape& shape, const Maps<S, R>& maps, const std::vector<accumulator_t<S>>& weight,
             std::vector<accumulator_t<S>> bias, double eps, accumulator_t<S>* means, accumulator_t<S>* rstds) {
  using A = accumulator_t<S>;
  const NormPlan plan(shape);
  const int64_t channels = shape.channels, per_group = shape.per_group();
  ChannelParameters<A> parameters(shape.images, shape.channels, false);
  parameters.offset = std::move(bias);
  std::vector<double> channel_moments(shape.images * plan.slices() * 2 * channels);
  const auto moments_of = [&](const Region& region) {
    return channel_moments.data() + (region.image * plan.slices() + region.slice) * 2 * channels + region.channel;
  };

  const auto sum = [&](const Region& region, Scratch<A>& scratch) {
    region_moments(plan, maps, region, scratch, moments_of(region));
  };

  const auto settle = [&](const Region& whole) {
    for (int64_t channel = whole.channel; channel < whole.channel + whole.channels; channel += per_group) {
      Moments group;
      for (int64_t slice = 0; slice < plan.slices(); ++slice) {
        const double* own = moments_of({whole.image, channel, per_group, 0, 0, slice});
        group.join(Moments::of(own, own + channels, per_group, static_cast<double>(plan.slice_pixels(slice))));
      }
      const A mean = static_cast<A>(group.mean);
      const A rstd = static_cast<A>(1 / std::sqrt(group.deviation / group.count + eps));
      means[(whole.image * channels + channel) / per_group] = mean;
      rstds[(whole.image * channels + channel) / per_group] = rstd;
      for (int64_t c = channel; c < channel + per_group; ++c) {
        parameters.mean[whole.image * channels + c] = mean;
        parameters.scale[whole.image * channels + c] = rstd * weight[c];
      }
    }
  };

  const auto result = [&](const Region& region, Scratch<A>& scratch) {
    region_results(plan, maps, region, scratch, [](const NormJob<S, R>& job) { norm_apply(job); });
  };

  const auto make_scratch = [&] { return Scratch<A>(plan, parameters); };
  plan.run(true, make_scratch, sum, settle, result);
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
  Tensor out = empty_map(input, input.scalar_type(), shape.channels_last);
  ask_for_large_pages(out);
  const std::vector<int64_t> groups_of_images{shape.images, groups};
  Tensor mean = torch::stable::new_zeros(input, groups_of_images, sum_type(input));
  Tensor rstd = torch::stable::new_zeros(input, groups_of_images, sum_type(input));
  if (shape.empty()) return {out, mean, rstd};

  const Tensor x = in_layout(input, shape.channels_last);
  std::optional<Tensor> added;
  if (residual) added = residual_for(*residual, input, shape.channels_last);
  with_storages(x, added, [&](auto storage, auto residual_storage) {
    using S = decltype(storage);
    using R = decltype(residual_storage);
    using A = accumulator_t<S>;
    Maps<S, R> maps;
    maps.activation = activation;
    maps.x = read_view<S>(x);
    if (added) {
      maps.third = read_view<R>(*added);
      maps.third_kind = Third::kResidual;
    }
    maps.out = write_view<S>(out);
    forward<S, R>(shape, maps, per_channel<A>(weight, shape.channels, A(1)), per_channel<A>(bias, shape.channels, A(0)), eps,
                  static_cast<A*>(mean.mutable_data_ptr()), static_cast<A*>(rstd.mutable_data_ptr()));
  });
  return {out, mean, rstd};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastnas, CPU, m) { m.impl("group_norm_act", TORCH_BOX(&group_norm_act)); }

}  // namespace fastnas
