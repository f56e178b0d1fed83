// act(BatchNorm(x) * weight + bias + residual) on the CPU (Ioffe & Szegedy 2015), forward.
//
// With the statistics of the batch x is read twice and the result written once; with given ones everything is one pass. Means and
// variances are those of an exact two-pass computation to a few roundings of fp32 (see norm_moments_body).
#include <torch/csrc/stable/library.h>

#include <cmath>
#include <string>
#include <tuple>

#include "batch_norm_common.h"

namespace fastnas {
namespace {

// [C] each; variance: unbiased (divided by n - 1), for the running statistics.
template <typename A>
struct Statistics {
  A *mean, *rstd, *variance;
};

template <typename S, typename R>
void forward(const GroupShape& shape, const Maps<S, R>& maps, bool of_batch, const std::vector<accumulator_t<S>>& weight,
             std::vector<accumulator_t<S>> bias, double eps, Statistics<accumulator_t<S>> statistics) {
  using A = accumulator_t<S>;
  const NormPlan plan(shape);
  ChannelParameters<A> parameters(1, shape.channels, false);
  parameters.offset = std::move(bias);
  SliceSums moments(plan);

  const auto sum = [&](const Region& region, Scratch<A>& scratch) {
    region_moments(plan, maps, region, scratch, moments.of(region));
  };

  const auto settle_batch = [&](int64_t first, int64_t last) {  // slices are joined by the formula of Chan et al. 1979
    double* mean = moments.set(0);
    double* deviation = mean + shape.channels;
    double all = moments.count(0);
    for (int64_t index = 1; index < moments.sets(); ++index) {
      const double* own = moments.set(index);
      const double count = moments.count(index), before = all, share = count / (all += count);
      for (int64_t c = first; c < last; ++c) {
        const double delta = own[c] - mean[c];
        mean[c] += delta * share;
        deviation[c] += own[shape.channels + c] + delta * delta * (before * share);
      }
    }
    for (int64_t c = first; c < last; ++c) {
      statistics.mean[c] = static_cast<A>(mean[c]);
      statistics.rstd[c] = static_cast<A>(1 / std::sqrt(deviation[c] / all + eps));
      statistics.variance[c] = static_cast<A>(deviation[c] / std::max(all - 1, 1.0));
    }
  };
  const auto settle = [&](int64_t channel, int64_t channels) {
    if (of_batch) settle_batch(channel, channel + channels);
    for (int64_t c = channel; c < channel + channels; ++c) {
      const A scale = parameters.scale[c] = statistics.rstd[c] * weight[c];
      if (of_batch) {
        parameters.mean[c] = statistics.mean[c];
      } else {  // x * scale + offset with torch's roundings: detectors that are deployed give what torch's give
        parameters.offset[c] -= statistics.mean[c] * scale;
      }
    }
  };

  const auto result = [&](const Region& region, Scratch<A>& scratch) {
    region_results(plan, maps, region, scratch, [](const NormJob<S, R>& job) { norm_apply(job); });
  };

  const auto make_scratch = [&] { return Scratch<A>(plan, parameters); };
  plan.run_over_batch(of_batch, true, make_scratch, sum, settle, result);
}

struct Arguments {
  const Tensor& input;
  const std::optional<Tensor>&mean, &variance, &weight, &bias;
  double eps;
  const std::string& activation_name;
  const std::optional<Tensor>& residual;
};
struct Results {
  Tensor out, mean, rstd, variance;
};

// Into `into`, or into new memory. (Of large pages, as GroupNorm asks for them, nothing is left to gain in a whole detector: there
// the system spends longer on finding them than they save.)
Results run(const Arguments& given, const Tensor* into) {
  const Tensor& input = given.input;
  const GroupShape shape = batch_norm_shape(input);
  const Activation activation = batch_norm_activation(given.activation_name);
  check_eps(given.eps);
  check_per_channel(given.mean, "running_mean", input);
  check_per_channel(given.variance, "running_var", input);
  check(given.mean.has_value() == given.variance.has_value(), "running_var: expected together with running_mean");
  check_per_channel(given.weight, "weight", input);
  check_per_channel(given.bias, "bias", input);
  if (given.residual) check_like(*given.residual, "residual", input);
  const bool of_batch = !given.mean;
  const auto per_channel_result = [&](int64_t size) { return torch::stable::new_zeros(input, {size}, sum_type(input)); };
  Results results{into ? *into : empty_map(input, input.scalar_type(), shape.channels_last), per_channel_result(shape.channels),
                  per_channel_result(shape.channels), per_channel_result(of_batch ? shape.channels : 0)};

  const Tensor x = in_layout(input, shape.channels_last);
  check(!into || x.const_data_ptr() == into->const_data_ptr(), "input: expected a map without gaps to be written in place");
  std::optional<Tensor> added;
  if (given.residual) added = residual_for(*given.residual, input, shape.channels_last);
  with_storages(x, added, [&](auto storage, auto residual_storage) {
    using S = decltype(storage);
    using R = decltype(residual_storage);
    using A = accumulator_t<S>;
    const Statistics<A> statistics{static_cast<A*>(results.mean.mutable_data_ptr()),
                                   static_cast<A*>(results.rstd.mutable_data_ptr()),
                                   static_cast<A*>(results.variance.mutable_data_ptr())};
    if (!of_batch) {
      const std::vector<A> means = per_channel<A>(given.mean, shape.channels, A(0));
      const std::vector<A> variances = per_channel<A>(given.variance, shape.channels, A(1));
      for (int64_t c = 0; c < shape.channels; ++c) {
        statistics.mean[c] = means[c];
        statistics.rstd[c] = A(1) / std::sqrt(variances[c] + static_cast<A>(given.eps));
      }
    }
    if (shape.empty()) return;
    Maps<S, R> maps;
    maps.activation = activation;
    maps.x = read_view<S>(x);
    if (added) {
      maps.third = read_view<R>(*added);
      maps.third_kind = Third::kResidual;
    }
    maps.out = write_view<S>(results.out);
    const GroupShape folded = fold_images(shape, maps);
    forward<S, R>(folded, maps, of_batch, per_channel<A>(given.weight, shape.channels, A(1)),
                  per_channel<A>(given.bias, shape.channels, A(0)), given.eps, statistics);
  });
  return results;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> batch_norm_act(
    const Tensor& input, const std::optional<Tensor>& mean, const std::optional<Tensor>& variance,
    const std::optional<Tensor>& weight, const std::optional<Tensor>& bias, double eps, const std::string& activation,
    const std::optional<Tensor>& residual) {
  const Results results = run({input, mean, variance, weight, bias, eps, activation, residual}, nullptr);
  return {results.out, results.mean, results.rstd, results.variance};
}

// The loops read every element once, before they write it.
void batch_norm_act_(
    const Tensor& input, const Tensor& mean, const Tensor& variance, const std::optional<Tensor>& weight,
    const std::optional<Tensor>& bias, double eps, const std::string& activation, const std::optional<Tensor>& residual) {
  const std::optional<Tensor> given_mean = mean, given_variance = variance;
  run({input, given_mean, given_variance, weight, bias, eps, activation, residual}, &input);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastnas, CPU, m) {
  m.impl("batch_norm_act", TORCH_BOX(&batch_norm_act));
  m.impl("batch_norm_act_", TORCH_BOX(&batch_norm_act_));
}

}  // namespace fastnas
