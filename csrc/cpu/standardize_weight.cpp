// Weight standardisation of any number of convolutions in one call, forward and backward (csrc/standardize_weight.h has the
// formulas). The rows (filters) of all layers are cut into tasks of about equal size for the threads; each filter is read
// once and written once (standardize_weight_kernels.h).
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <tuple>
#include <type_traits>

#include "../standardize_weight.h"
#include "../standardize_weight_call.h"
#include "memory.h"
#include "standardize_weight_kernels.h"
#include "storage.h"

namespace fastnas {
namespace {

using namespace standardize;

constexpr int64_t kTaskElements = 1 << 15;  // 128 KB of fp32, some tens of microseconds

// (stored as, computed in); the second is fp64 where any tensor of the call is.
#define FASTNAS_FOR_TYPES(CASE) CASE(float, float) CASE(BFloat16, float) CASE(Float16, float) \
  CASE(float, double) CASE(BFloat16, double) CASE(Float16, double) CASE(double, double)
#define FASTNAS_CASE(S, A)                                                     \
  FASTNAS_CLONES void load(const LoadJob<S, A>& job) { load_body(job); }        \
  FASTNAS_CLONES void write(const WriteJob<A, S>& job) { write_body(job); }     \
  FASTNAS_CLONES void spread(const SpreadJob<A, S>& job) { spread_body(job); }
FASTNAS_FOR_TYPES(FASTNAS_CASE)
#undef FASTNAS_CASE
FASTNAS_CLONES void moments(MomentsJob<float>& job) { moments_body(job); }
FASTNAS_CLONES void moments(MomentsJob<double>& job) { moments_body(job); }
FASTNAS_CLONES void product(ProductJob<float>& job) { product_body(job); }
FASTNAS_CLONES void product(ProductJob<double>& job) { product_body(job); }

struct Task {
  size_t layer;
  int64_t first, last;  // rows
};

// body(layer, row, scratch of two rows) for every row of every layer.
template <typename A, typename Body>
void for_each_row(const std::vector<Filters>& filters, const Body& body) {
  std::vector<Task> tasks;
  int64_t largest = 0;
  for (size_t l = 0; l < filters.size(); ++l) {
    const int64_t size = filters[l].size();
    if (size == 0) continue;
    largest = std::max(largest, size);
    const int64_t step = std::max<int64_t>(1, kTaskElements / size);
    for (int64_t first = 0; first < filters[l].rows; first += step) {
      tasks.push_back({l, first, std::min(first + step, filters[l].rows)});
    }
  }
  torch::stable::parallel_for(0, static_cast<int64_t>(tasks.size()), 1, [&](int64_t begin, int64_t end) {
    std::vector<A> scratch(2 * largest);
    for (int64_t t = begin; t < end; ++t) {
      for (int64_t row = tasks[t].first; row < tasks[t].last; ++row) body(tasks[t].layer, row, scratch.data());
    }
  });
}

// Where the filters of one layer lie. Asked of torch once per layer: each question costs as much as half a small filter.
template <typename S>
struct Rows {
  S* data;
  int64_t stride;
  bool innermost;  // the inputs
  S* row(int64_t index) const { return data + index * stride; }
};
template <typename S>
Rows<const S> rows_of(const Tensor& tensor) {
  return {static_cast<const S*>(tensor.const_data_ptr()), tensor.stride(0), inputs_innermost(tensor)};
}
template <typename S>
Rows<S> rows_to(Tensor& tensor, const Filters& layer) {  // results are dense
  return {static_cast<S*>(tensor.mutable_data_ptr()), layer.size(), inputs_innermost(tensor)};
}

// One filter as A in the wanted order; in place where it already is that.
template <typename S, typename A>
const A* load_row(const Filters& layer, const Rows<const S>& rows, int64_t row, bool wanted_innermost, A* scratch) {
  const S* from = rows.row(row);
  if constexpr (std::is_same_v<S, A>) {
    if (rows.innermost == wanted_innermost) return from;
  }
  const Order order = rows.innermost == wanted_innermost ? Order::kSame
      : rows.innermost                                   ? Order::kTapsToInputs
                                                         : Order::kInputsToTaps;
  load(LoadJob<S, A>{from, scratch, layer.inputs, layer.taps, order});
  return scratch;
}

// mean, rstd and pull of every row of every layer
template <typename A>
struct StatsRows {
  A* mean;
  int64_t step;
  FilterStats<std::remove_const_t<A>> get(int64_t at) const { return {mean[at], mean[step + at], mean[2 * step + at]}; }
  void set(int64_t at, const FilterStats<A>& stats) const {
    mean[at] = stats.mean;
    mean[step + at] = stats.rstd;
    mean[2 * step + at] = stats.pull;
  }
};

template <typename S, typename T, typename A>
void forward(const std::vector<Filters>& filters, A eps, bool unbiased, std::vector<Tensor>& outs, Tensor& stats) {
  const StatsRows<A> stats_rows{static_cast<A*>(stats.mutable_data_ptr()), stats.stride(0)};
  struct Layer {
    Rows<const S> weight;
    Rows<T> out;
    const A* gain;  // or null
  };
  std::vector<Layer> layers;
  for (size_t l = 0; l < filters.size(); ++l) {
    const A* gain = filters[l].has_gain ? static_cast<const A*>(filters[l].gain.const_data_ptr()) : nullptr;
    layers.push_back({rows_of<S>(filters[l].weight), rows_to<T>(outs[l], filters[l]), gain});
  }
  for_each_row<A>(filters, [&](size_t l, int64_t row, A* scratch) {
    const Filters& shape = filters[l];
    const Layer& layer = layers[l];
    const A* values = load_row<S, A>(shape, layer.weight, row, layer.out.innermost, scratch);
    MomentsJob<A> job{values, shape.size(), A(0), A(0)};
    moments(job);
    const FilterStats<A> of_row = filter_stats(job.mean, job.squares, shape.size(), eps, unbiased);
    stats_rows.set(shape.first_row + row, of_row);
    const A factor = static_cast<A>(shape.scale) * (layer.gain ? layer.gain[row] : A(1));
    write(WriteJob<A, T>{values, shape.size(), of_row.mean, of_row.rstd * factor, layer.out.row(row)});
  });
}

template <typename S, typename G, typename A>
void backward(const std::vector<Filters>& filters, const std::vector<Tensor>& grads, const Tensor& stats,
              std::vector<Tensor>& weight_grads, std::vector<Tensor>& gain_grads) {
  const StatsRows<const A> stats_rows{static_cast<const A*>(stats.const_data_ptr()), stats.stride(0)};
  struct Layer {
    Rows<const S> weight;
    Rows<const G> grad;
    Rows<S> weight_grad;
    const A* gain;  // or null, and then so is the next
    A* gain_grad;
  };
  std::vector<Layer> layers;
  for (size_t l = 0; l < filters.size(); ++l) {
    const Filters& shape = filters[l];
    layers.push_back({rows_of<S>(shape.weight), rows_of<G>(grads[l]), rows_to<S>(weight_grads[l], shape),
                      shape.has_gain ? static_cast<const A*>(shape.gain.const_data_ptr()) : nullptr,
                      shape.has_gain ? static_cast<A*>(gain_grads[l].mutable_data_ptr()) : nullptr});
  }
  for_each_row<A>(filters, [&](size_t l, int64_t row, A* scratch) {
    const Filters& shape = filters[l];
    const Layer& layer = layers[l];
    const int64_t size = shape.size();
    const bool order = layer.weight_grad.innermost;
    const A* values = load_row<S, A>(shape, layer.weight, row, order, scratch);
    const A* grad = load_row<G, A>(shape, layer.grad, row, order, scratch + size);
    const FilterStats<A> of_row = stats_rows.get(shape.first_row + row);
    ProductJob<A> job{values, grad, size, of_row.mean, A(0), A(0)};
    product(job);
    const A with_what = job.product * of_row.rstd, scale = static_cast<A>(shape.scale);
    if (layer.gain) layer.gain_grad[row] = scale * with_what;
    const FilterGradient<A> slopes =
        filter_gradient(of_row, scale * (layer.gain ? layer.gain[row] : A(1)), job.grad_sum, with_what, size);
    spread(SpreadJob<A, S>{values, grad, size, of_row.mean, slopes.grad_slope, slopes.weight_slope, slopes.offset,
                           layer.weight_grad.row(row)});
  });
}

// body(S{}, T{}, A{}) for the types of two tensors and of the statistics.
template <typename Body>
void with_types(ScalarType first, const char* first_name, ScalarType second, const char* second_name, const Body& body) {
  with_storage(first, first_name, [&](auto s) {
    with_storage(second, second_name, [&](auto t) {
      using S = decltype(s);
      using T = decltype(t);
      using Wide = std::conditional_t<std::is_same_v<S, double> || std::is_same_v<T, double>, double, float>;
      body(s, t, Wide{});
    });
  });
}

std::tuple<std::vector<Tensor>, Tensor> standardize_weights(
    const std::vector<Tensor>& weights, const std::vector<Tensor>& gains, const std::vector<double>& scales,
    const std::vector<bool>& channels_last, double eps, bool unbiased, ScalarType dtype) {
  check_weights(weights, gains, scales);
  const ScalarType wide = stats_type(weights[0].scalar_type(), dtype);
  check_options(channels_last, weights.size(), eps, dtype);
  const std::vector<Filters> filters = describe_filters(weights, gains, scales, wide);
  std::vector<Tensor> outs = empty_outputs(filters, dtype, channels_last);
  for (Tensor& out : outs) ask_for_large_pages(out);
  Tensor stats = empty_stats(filters, wide);
  with_types(weights[0].scalar_type(), "weights", dtype, "dtype", [&](auto s, auto t, auto a) {
    forward<decltype(s), decltype(t), decltype(a)>(filters, static_cast<decltype(a)>(eps), unbiased, outs, stats);
  });
  return {outs, stats};
}

std::tuple<std::vector<Tensor>, std::vector<Tensor>> standardize_weights_backward(
    const std::vector<Tensor>& grads, const std::vector<Tensor>& weights, const std::vector<Tensor>& gains,
    const std::vector<double>& scales, const Tensor& stats, const std::vector<int64_t>& first_rows) {
  check_weights(weights, gains, scales);
  check_grads(grads, weights);
  const ScalarType wide = stats_type(weights[0].scalar_type(), grads[0].scalar_type());
  const std::vector<Tensor> dense = with_dense_rows(grads);
  std::vector<Filters> filters = describe_filters(weights, gains, scales, wide);
  place_in_stats(filters, stats, first_rows, wide);
  std::vector<Tensor> weight_grads = empty_weight_grads(filters);
  for (Tensor& weight_grad : weight_grads) ask_for_large_pages(weight_grad);
  std::vector<Tensor> gain_grads = empty_gain_grads(filters, wide);
  with_types(weights[0].scalar_type(), "weights", grads[0].scalar_type(), "grads", [&](auto s, auto g, auto a) {
    backward<decltype(s), decltype(g), decltype(a)>(filters, dense, stats, weight_grads, gain_grads);
  });
  return {weight_grads, like_gains(gain_grads, gains)};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastnas, CPU, m) {
  m.impl("standardize_weights", TORCH_BOX(&standardize_weights));
  m.impl("standardize_weights_backward", TORCH_BOX(&standardize_weights_backward));
}

}  // namespace fastnas
