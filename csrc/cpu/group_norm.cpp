// act(GroupNorm(x) * weight + bias + residual) on the CPU (Group Normalization, Wu & He 2018), forward.
//
// x is read twice, the second time from a cache where it fits, and the result is written once. Means and variances are those of
// an exact two-pass computation to a few roundings of fp32 (see moments_body); they are saved in fp32 (fp64 for fp64), all that
// the backward pass needs beside x.
#include <torch/csrc/stable/library.h>

#include <cmath>
#include <string>
#include <tuple>
#include <type_traits>

#include "group_norm_common.h"
#include "memory.h"

namespace fastnas {
namespace {

template <typename S, typename R>
FASTNAS_INLINE void apply_body(const NormJob<S, R>& job) {
  switch (job.activation) {
    case Activation::kNone:
      return job.residual ? apply_rows<Activation::kNone, true>(job) : apply_rows<Activation::kNone, false>(job);
    case Activation::kRelu:
      return job.residual ? apply_rows<Activation::kRelu, true>(job) : apply_rows<Activation::kRelu, false>(job);
    case Activation::kSilu:
      return job.residual ? apply_rows<Activation::kSilu, true>(job) : apply_rows<Activation::kSilu, false>(job);
  }
}

FASTNAS_FOR_STORAGES(moments)
FASTNAS_FOR_STORAGES(apply)

// Mean and sum of squared deviations of `count` numbers, joined by the formula of Chan et al. 1979.
struct Moments {
  double count = 0, mean = 0, deviation = 0;

  void join(const Moments& other) {
    const double all = count + other.count, delta = other.mean - mean;
    mean += delta * (other.count / all);
    deviation += other.deviation + delta * delta * (count * other.count / all);
    count = all;
  }
  // Of `sets` sets of `each` numbers.
  static Moments of(const double* means, const double* deviations, int64_t sets, double each) {
    Moments result;
    result.count = each * static_cast<double>(sets);
    result.mean = total(means, sets) / static_cast<double>(sets);
    result.deviation = total(deviations, sets) + each * total_square(means, result.mean, sets);
    return result;
  }
};

template <typename S, typename R>
void forward(const GroupShape& shape, const Maps<S, R>& maps, const std::vector<accumulator_t<S>>& weight,
             std::vector<accumulator_t<S>> bias, double eps, Activation activation, accumulator_t<S>* means,
             accumulator_t<S>* rstds) {
  using A = accumulator_t<S>;
  const GroupPlan plan(shape);
  const int64_t channels = shape.channels, per_group = shape.per_group();
  ChannelParameters<A> parameters(shape, false);
  parameters.offset = std::move(bias);
  std::vector<double> channel_moments(shape.images * plan.slices() * 2 * channels);
  const auto moments_of = [&](const Region& region) {
    return channel_moments.data() + (region.image * plan.slices() + region.slice) * 2 * channels + region.channel;
  };

  const auto sum = [&](const Region& region, Scratch<A>& scratch) {
    Moments plane;
    each_block(shape.channels_last, region, [&](int64_t rows, int64_t cols, int64_t offset) {
      NormJob<S, R> job = maps.job(shape, region, rows, cols, offset, activation);
      job.tile = scratch.tile();
      job.first_sum = shape.channels_last ? moments_of(region) : scratch.sums();
      job.second_sum = shape.channels_last ? job.first_sum + channels : scratch.sums() + cols;
      if (shape.channels_last) return moments(job);
      std::fill_n(job.first_sum, 2 * cols, 0.0);
      moments(job);
      plane.join(Moments::of(job.first_sum, job.second_sum, cols, static_cast<double>(rows)));
    });
    if (!shape.channels_last) {
      moments_of(region)[0] = plane.mean;
      moments_of(region)[channels] = plane.deviation;
    }
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
    const Columns<A> columns = scratch.columns(region);
    each_block(shape.channels_last, region, [&](int64_t rows, int64_t cols, int64_t offset) {
      NormJob<S, R> job = maps.job(shape, region, rows, cols, offset, activation);
      job.columns = columns;
      apply(job);
    });
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
    maps.x = read_view<S>(x);
    if (added) maps.residual = read_view<R>(*added);
    maps.out = write_view<S>(out);
    forward<S, R>(shape, maps, per_channel<A>(weight, shape.channels, A(1)), per_channel<A>(bias, shape.channels, A(0)), eps,
                  activation, static_cast<A*>(mean.mutable_data_ptr()), static_cast<A*>(rstd.mutable_data_ptr()));
  });
  return {out, mean, rstd};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastnas, CPU, m) { m.impl("group_norm_act", TORCH_BOX(&group_norm_act)); }

}  // namespace fastnas
