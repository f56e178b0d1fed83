// What GroupNorm and batch norm on the CPU share in both passes: parameters per column, scratch memory, the visit of a region,
// dispatch on the third map's type.
#pragma once

#include <algorithm>
#include <cmath>
#include <optional>
#include <type_traits>
#include <vector>

#include "../group_norm.h"
#include "norm_plan.h"
#include "storage.h"

namespace fastnas {

// The sum of f(i) for i in 0..n, in an order that vectorises.
template <typename F>
FASTNAS_INLINE double sum_over(int64_t n, F f) {
  double lanes[8] = {};
  const int64_t full = n / 8 * 8;
  for (int64_t i = 0; i < full; i += 8) {
    for (int64_t j = 0; j < 8; ++j) lanes[j] += f(i + j);
  }
  for (int64_t i = full; i < n; ++i) lanes[i - full] += f(i);
  return ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) + ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]));
}
// Not inlined: where n is known, GCC 12 warns of a loop that it made up.
__attribute__((noinline)) inline double total(const double* values, int64_t n) {
  return sum_over(n, [=](int64_t i) { return values[i]; });
}
__attribute__((noinline)) inline double total_square(const double* values, double from, int64_t n) {
  return sum_over(n, [=](int64_t i) { return (values[i] - from) * (values[i] - from); });
}

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

// weight or bias as [C] of the type that sums are made in.
template <typename A>
std::vector<A> per_channel(const std::optional<Tensor>& values, int64_t channels, A otherwise) {
  if (!values) return std::vector<A>(channels, otherwise);
  constexpr auto type = std::is_same_v<A, double> ? ScalarType::Double : ScalarType::Float;
  const Tensor wide = as_contiguous(as_type(*values, type));
  const A* data = static_cast<const A*>(wide.const_data_ptr());
  return std::vector<A>(data, data + channels);
}

// Parameters of the channels of each image, or (sets = 1) of all images.
template <typename A>
struct ChannelParameters {
  int64_t sets;
  std::vector<A> mean, scale, lift, slope;  // [sets * C]
  std::vector<A> offset;                    // [C]

  ChannelParameters(int64_t sets, int64_t channels, bool backward)
      : sets(sets), mean(sets * channels), scale(mean.size()), lift(backward ? mean.size() : 0), slope(lift.size()) {}
};

// The working memory of a thread, and what the loops need of the parameters for one region.

template <typename A>
class Scratch {
 public:
  Scratch(const NormPlan& plan, const ChannelParameters<A>& parameters)
      : plan_(plan), parameters_(parameters), tile_(3 * plan.cols()), sums_(2 * plan.cols()),
        lanes_(plan.shape().channels_last ? 0 : 5 * kLanes) {}

  A* tile() { return tile_.data(); }
  double* sums() { return sums_.data(); }
  Columns<A> columns(const Region& region) {
    const int64_t at = (parameters_.sets == 1 ? 0 : region.image * plan_.shape().channels) + region.channel;
    const auto of = [&](const std::vector<A>& values, int64_t index, int64_t lane) -> const A* {
      if (values.empty()) return nullptr;
      if (plan_.shape().channels_last) return values.data() + index;
      A* lanes = lanes_.data() + lane * kLanes;
      std::fill_n(lanes, std::min(kLanes, region.pixels), values[index]);
      return lanes;
    };
    return {of(parameters_.mean, at, 0), of(parameters_.scale, at, 1), of(parameters_.offset, region.channel, 2),
            of(parameters_.lift, at, 3), of(parameters_.slope, at, 4)};
  }

 private:
  const NormPlan& plan_;
  const ChannelParameters<A>& parameters_;
  std::vector<A> tile_;
  std::vector<double> sums_;
  std::vector<A> lanes_;
};

// The maps of one call.
template <typename S, typename R>
struct Maps {
  Activation activation = Activation::kNone;
  Third third_kind = Third::kNone;
  MapView<const S> x, grad;
  MapView<const R> third;
  MapView<S> out;
  MapView<R> residual_grad;

  NormJob<S, R> job(const GroupShape& shape, const Region& region, int64_t rows, int64_t cols, int64_t offset) const {
    const bool last = shape.channels_last;
    const auto at = [&](const auto& view) { return view.data ? start_of(view, region) + offset : nullptr; };
    NormJob<S, R> job{};
    job.rows = rows;
    job.cols = cols;
    job.activation = activation;
    job.x = at(x);
    job.x_stride = row_stride(last, x);
    job.grad = at(grad);
    job.grad_stride = row_stride(last, grad);
    job.third_kind = third_kind;
    job.third = at(third);
    job.third_stride = row_stride(last, third);
    job.out = at(out);
    job.out_stride = row_stride(last, out);
    job.residual_grad = at(residual_grad);
    job.residual_grad_stride = row_stride(last, residual_grad);
    return job;
  }
};

// body(S{}, R{}): R is S, or the type that S is summed in.
template <typename Body>
void with_storages(const Tensor& input, const std::optional<Tensor>& third, Body&& body) {
  with_storage(input.scalar_type(), "input", [&](auto storage) {
    using S = decltype(storage);
    if (third && third->scalar_type() != input.scalar_type()) return body(S{}, accumulator_t<S>{});
    body(S{}, S{});
  });
}

// ---------------------------------------------------------------------------------------------------------------------
// The visits of a region. Sums of its channel c go to own[c] and own[channels of the map + c].

template <typename S, typename R>
void region_moments(const NormPlan& plan, const Maps<S, R>& maps, const Region& region, Scratch<accumulator_t<S>>& scratch,
                    double* own) {
  const bool last = plan.shape().channels_last;
  Moments plane;
  each_block(last, region, [&](int64_t rows, int64_t cols, int64_t offset) {
    NormJob<S, R> job = maps.job(plan.shape(), region, rows, cols, offset);
    job.tile = scratch.tile();
    job.first_sum = last ? own : scratch.sums();
    job.second_sum = last ? own + plan.shape().channels : scratch.sums() + cols;
    if (last) return norm_moments(job);
    std::fill_n(job.first_sum, 2 * cols, 0.0);
    norm_moments(job);
    plane.join(Moments::of(job.first_sum, job.second_sum, cols, static_cast<double>(rows)));
  });
  if (last) return;
  own[0] = plane.mean;
  own[plan.shape().channels] = plane.deviation;
}

template <typename S, typename R>
void region_gradient_sums(const NormPlan& plan, const Maps<S, R>& maps, const Region& region, Scratch<accumulator_t<S>>& scratch,
                          double* own) {
  const bool last = plan.shape().channels_last;
  const int64_t channels = plan.shape().channels;
  const auto columns = scratch.columns(region);
  each_block(last, region, [&](int64_t rows, int64_t cols, int64_t offset) {
    NormJob<S, R> job = maps.job(plan.shape(), region, rows, cols, offset);
    job.columns = columns;
    job.tile = scratch.tile();
    job.first_sum = last ? own : scratch.sums();
    job.second_sum = last ? own + channels : scratch.sums() + cols;
    if (last) return norm_gradient_sums(job);
    std::fill_n(job.first_sum, 2 * cols, 0.0);
    norm_gradient_sums(job);
    own[0] += total(job.first_sum, cols);
    own[channels] += total(job.second_sum, cols);
  });
}

// loop: norm_apply or norm_gradients.
template <typename S, typename R, typename Loop>
void region_results(const NormPlan& plan, const Maps<S, R>& maps, const Region& region, Scratch<accumulator_t<S>>& scratch,
                    const Loop& loop) {
  const auto columns = scratch.columns(region);
  each_block(plan.shape().channels_last, region, [&](int64_t rows, int64_t cols, int64_t offset) {
    NormJob<S, R> job = maps.job(plan.shape(), region, rows, cols, offset);
    job.columns = columns;
    loop(job);
  });
}

}  // namespace fastnas
