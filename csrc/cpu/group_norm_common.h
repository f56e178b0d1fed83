// What both passes of GroupNorm on the CPU share: parameters per column, scratch memory, dispatch on the residual's type.
#pragma once

#include <algorithm>
#include <cmath>
#include <optional>
#include <type_traits>
#include <vector>

#include "../group_norm.h"
#include "group_norm_plan.h"
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

// weight or bias as [C] of the type that sums are made in.
template <typename A>
std::vector<A> per_channel(const std::optional<Tensor>& values, int64_t channels, A otherwise) {
  if (!values) return std::vector<A>(channels, otherwise);
  constexpr auto type = std::is_same_v<A, double> ? ScalarType::Double : ScalarType::Float;
  const Tensor wide = torch::stable::contiguous(torch::stable::to(*values, type));
  const A* data = static_cast<const A*>(wide.const_data_ptr());
  return std::vector<A>(data, data + channels);
}

// Parameters of the channels of all images, and what the loops need of them for one region.
template <typename A>
struct ChannelParameters {
  std::vector<A> mean, scale, lift, slope;  // [N * C]
  std::vector<A> offset;                    // [C]

  ChannelParameters(const GroupShape& shape, bool backward)
      : mean(shape.images * shape.channels), scale(mean.size()), lift(backward ? mean.size() : 0), slope(lift.size()) {}
};

template <typename A>
class Scratch {
 public:
  Scratch(const GroupPlan& plan, const ChannelParameters<A>& parameters)
      : plan_(plan), parameters_(parameters), tile_(3 * plan.cols()), sums_(2 * plan.cols()),
        lanes_(plan.shape().channels_last ? 0 : 5 * kLanes) {}

  A* tile() { return tile_.data(); }
  double* sums() { return sums_.data(); }
  Columns<A> columns(const Region& region) {
    const int64_t at = region.image * plan_.shape().channels + region.channel;
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
  const GroupPlan& plan_;
  const ChannelParameters<A>& parameters_;
  std::vector<A> tile_;
  std::vector<double> sums_;
  std::vector<A> lanes_;
};

// The maps of one call.
template <typename S, typename R>
struct Maps {
  MapView<const S> x, grad;
  MapView<const R> residual;
  MapView<S> out;
  MapView<R> residual_grad;

  NormJob<S, R> job(const GroupShape& shape, const Region& region, int64_t rows, int64_t cols, int64_t offset,
                    Activation activation) const {
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
    job.residual = at(residual);
    job.residual_stride = row_stride(last, residual);
    job.out = at(out);
    job.out_stride = row_stride(last, out);
    job.residual_grad = at(residual_grad);
    job.residual_grad_stride = row_stride(last, residual_grad);
    return job;
  }
};

// body(S{}, R{}): R is S, or the type that S is summed in.
template <typename Body>
void with_storages(const Tensor& input, const std::optional<Tensor>& residual, Body&& body) {
  with_storage(input.scalar_type(), "input", [&](auto storage) {
    using S = decltype(storage);
    if (residual && residual->scalar_type() != input.scalar_type()) return body(S{}, accumulator_t<S>{});
    body(S{}, S{});
  });
}

// A loop of group_norm_kernels.h for all storage types, each compiled per instruction set. (target_clones and templates do not
// mix, so the types are spelled out.)
#define FASTNAS_FOR_STORAGES(name)                                              \
  FASTNAS_CLONES void name(const NormJob<float, float>& job) { name##_body(job); }         \
  FASTNAS_CLONES void name(const NormJob<double, double>& job) { name##_body(job); }       \
  FASTNAS_CLONES void name(const NormJob<BFloat16, BFloat16>& job) { name##_body(job); }   \
  FASTNAS_CLONES void name(const NormJob<BFloat16, float>& job) { name##_body(job); }      \
  FASTNAS_CLONES void name(const NormJob<Float16, Float16>& job) { name##_body(job); }     \
  FASTNAS_CLONES void name(const NormJob<Float16, float>& job) { name##_body(job); }

}  // namespace fastnas
