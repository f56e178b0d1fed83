// Weighted fusion of a BiFPN node on the CPU, forward and backward; formulas in csrc/fusion.h.
//
// Forward reads every input once and writes the result once. Backward recomputes the sum from the inputs, so nothing but
// them is saved. Work is cut into bands of rows of one image, by shape alone, and every cell of every gradient and every
// partial dot product belongs to one band: the result does not depend on the number of threads. A band recomputes the few
// rows beyond its own that its gradients need (one in eight where an input is pooled, none for two-fold upsampling).
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../fusion_node.h"
#include "memory.h"
#include "storage.h"
#include "weighted_fusion_bands.h"

namespace fastnas {
namespace {

constexpr int64_t kForwardBand = 1 << 12;   // numbers in a band: rows of three inputs stay in the first cache
constexpr int64_t kBackwardBand = 1 << 15;  // and here in the second
constexpr int64_t kNumbersPerThread = 1 << 16;

FASTNAS_CLONES void fuse(const BandJob<float>& job) { forward_band(job); }
FASTNAS_CLONES void fuse(const BandJob<double>& job) { forward_band(job); }
FASTNAS_CLONES void fuse(const BandJob<BFloat16>& job) { forward_band(job); }
FASTNAS_CLONES void fuse(const BandJob<Float16>& job) { forward_band(job); }
FASTNAS_CLONES void unfuse(const BandJob<float>& job) { backward_band(job); }
FASTNAS_CLONES void unfuse(const BandJob<double>& job) { backward_band(job); }
FASTNAS_CLONES void unfuse(const BandJob<BFloat16>& job) { backward_band(job); }
FASTNAS_CLONES void unfuse(const BandJob<Float16>& job) { backward_band(job); }

std::array<double, kMostInputs> weights_of(const FusionNode& node) {
  std::array<double, kMostInputs> weights{};
  if (!node.weights) return weights;
  for (int i = 0; i < node.count(); ++i) {
    weights[i] = node.type == ScalarType::Double ? node.weights->const_data_ptr<double>()[i]
                                                 : static_cast<double>(node.weights->const_data_ptr<float>()[i]);
  }
  return weights;
}

// The bands of a node, and the job of each apart from its memory.
template <typename S>
class Bands {
 public:
  Bands(const FusionNode& node, int64_t band_numbers) : node_(node) {
    job_.count = node.count();
    job_.activation = node.activation;
    job_.inner = node.inner();
    job_.row = node.width * node.inner();
    job_.weighted = node.method != Method::kSum;
    const Shares<double> shares(weights_of(node).data(), node.count(), node.method, node.eps);
    for (int i = 0; i < node.count(); ++i) {
      const Edge& edge = node.edges[i];
      job_.edges[i].resample = edge.resample;
      job_.edges[i].up_rows = edge.up_rows;
      job_.edges[i].up_cols = edge.up_cols;
      job_.edges[i].pool_rows = edge.pool_rows;
      job_.edges[i].pool_cols = edge.pool_cols;
      job_.edges[i].row = edge.width * node.inner();
      job_.edges[i].height = static_cast<int32_t>(edge.height);
      job_.edges[i].width = static_cast<int32_t>(edge.width);
      job_.edges[i].share = static_cast<accumulator_t<S>>(shares.share[i]);
      inputs_.push_back(static_cast<const S*>(node.maps[i].const_data_ptr()));
    }
    rows_ = std::max<int64_t>(2, band_numbers / std::max<int64_t>(1, job_.row) / 2 * 2);  // even: pairs stay together
    rows_ = std::min(rows_, node.height);
    per_plane_ = (node.height + rows_ - 1) / rows_;
  }

  int64_t count() const { return node_.planes() * per_plane_; }
  int64_t per_thread() const { return std::max<int64_t>(1, kNumbersPerThread / (rows_ * job_.row)); }
  int64_t most_numbers() const { return (rows_ + 4) * job_.row; }

  int64_t plane(int64_t band) const { return band / per_plane_; }
  BandJob<S> job(int64_t band) const {
    BandJob<S> job = job_;
    job.from = static_cast<int32_t>(band % per_plane_ * rows_);
    job.to = static_cast<int32_t>(std::min(job.from + rows_, node_.height));
    job.reach_from = job.from;
    job.reach_to = job.to;
    for (int i = 0; i < job.count; ++i) {
      EdgeJob<S>& edge = job.edges[i];
      edge.map = inputs_[i] + plane(band) * numbers(i);
      if (edge.resample == Resample::kDown) job.reach_from = std::max(0, job.from - 1);
      if (edge.resample == Resample::kUp) {
        const int32_t last = edge.up_rows.source(job.to - 1);
        if (edge.up_rows.first(last) >= job.from) job.reach_to = std::max(job.reach_to, edge.up_rows.end(last));
      }
    }
    return job;
  }
  int64_t numbers(int i) const { return node_.edges[i].height * job_.edges[i].row; }

 private:
  const FusionNode& node_;
  BandJob<S> job_{};
  std::vector<const S*> inputs_;
  int64_t rows_, per_plane_;
};

// Memory of a thread for one band after another.
template <typename S>
struct Scratch {
  std::vector<S> rows[kMostInputs];
  std::vector<int32_t> places[kMostInputs];
  std::vector<accumulator_t<S>> dz, lines;

  void lend_rows(BandJob<S>& job, int64_t numbers) {
    if (job.inner == 1) lines.resize(pool_lines(job.row));
    job.lines = lines.data();
    for (int i = 0; i < job.count; ++i) {
      if (job.edges[i].resample == Resample::kSame) continue;
      rows[i].resize(numbers);
      job.edges[i].buffer = rows[i].data();
    }
  }
  void lend_all(BandJob<S>& job, int64_t numbers) {
    lend_rows(job, numbers);
    dz.resize(numbers + 1);
    job.dz = dz.data() + 1;
    for (int i = 0; i < job.count; ++i) {
      if (job.edges[i].resample != Resample::kDown) continue;
      places[i].resize(numbers + 1);
      job.edges[i].places = places[i].data() + 1;
    }
  }
};

template <typename S>
void forward(const FusionNode& node, Tensor& out) {
  const Bands<S> bands(node, kForwardBand);
  S* result = static_cast<S*>(out.mutable_data_ptr());
  const int64_t plane = node.height * node.width * node.inner();
  torch::stable::parallel_for(0, bands.count(), bands.per_thread(), [&](int64_t first, int64_t last) {
    Scratch<S> scratch;
    for (int64_t band = first; band < last; ++band) {
      BandJob<S> job = bands.job(band);
      scratch.lend_rows(job, bands.most_numbers());
      job.out = result + bands.plane(band) * plane;
      fuse(job);
    }
  });
}

// Returns the gradients of the shares.
template <typename S>
std::array<double, kMostInputs> backward(const FusionNode& node, const Tensor& grad, std::vector<Tensor>& gradients) {
  const Bands<S> bands(node, kBackwardBand);
  const S* grads = static_cast<const S*>(grad.const_data_ptr());
  const int64_t plane = node.height * node.width * node.inner();
  std::vector<S*> results;
  for (Tensor& gradient : gradients) results.push_back(static_cast<S*>(gradient.mutable_data_ptr()));
  std::vector<double> dots(bands.count() * kMostInputs, 0.0);
  torch::stable::parallel_for(0, bands.count(), bands.per_thread(), [&](int64_t first, int64_t last) {
    Scratch<S> scratch;
    for (int64_t band = first; band < last; ++band) {
      BandJob<S> job = bands.job(band);
      scratch.lend_all(job, bands.most_numbers());
      job.grad = grads + bands.plane(band) * plane;
      job.dots = dots.data() + band * kMostInputs;
      for (int i = 0; i < job.count; ++i) job.edges[i].gradient = results[i] + bands.plane(band) * bands.numbers(i);
      unfuse(job);
    }
  });
  std::array<double, kMostInputs> sums{};
  for (int64_t band = 0; band < bands.count(); ++band) {
    for (int i = 0; i < kMostInputs; ++i) sums[i] += dots[band * kMostInputs + i];
  }
  return sums;
}

Tensor weighted_fusion(const std::vector<Tensor>& inputs, const std::optional<Tensor>& weights,
                       const std::vector<int64_t>& size, const std::string& method, const std::string& activation,
                       const std::string& padding, double eps) {
  const FusionNode node(inputs, weights, size, method, activation, padding, eps);
  Tensor out = node.empty_map(node.height, node.width);
  prefer_huge_pages(out);
  if (node.is_empty()) return out;
  with_storage(node.type, "inputs", [&](auto storage) { forward<decltype(storage)>(node, out); });
  return out;
}

std::vector<Tensor> weighted_fusion_backward(
    const Tensor& grad, const std::vector<Tensor>& inputs, const std::optional<Tensor>& weights,
    const std::vector<int64_t>& size, const std::string& method, const std::string& activation, const std::string& padding,
    double eps) {
  const FusionNode node(inputs, weights, size, method, activation, padding, eps);
  const Tensor dense = node.dense_gradient(grad);
  std::vector<Tensor> gradients;
  for (int i = 0; i < node.count(); ++i) {
    gradients.push_back(node.empty_map(node.edges[i].height, node.edges[i].width));
    prefer_huge_pages(gradients.back());
  }
  std::array<double, kMostInputs> dots{};
  if (!node.is_empty()) {
    with_storage(node.type, "grad", [&](auto storage) { dots = backward<decltype(storage)>(node, dense, gradients); });
  }
  if (node.weights) {
    std::array<double, kMostInputs> values{};
    weight_gradients(weights_of(node).data(), dots.data(), node.count(), node.method, node.eps, values.data());
    Tensor result = torch::stable::new_empty(*node.weights, {node.count()}, ScalarType::Double);
    std::copy_n(values.data(), node.count(), result.mutable_data_ptr<double>());
    gradients.push_back(torch::stable::to(result, weights->scalar_type()));
  }
  return gradients;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastnas, CPU, m) {
  m.impl("weighted_fusion", TORCH_BOX(&weighted_fusion));
  m.impl("weighted_fusion_backward", TORCH_BOX(&weighted_fusion_backward));
}

}  // namespace fastnas
