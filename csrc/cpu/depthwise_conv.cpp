// Depthwise convolution (one filter per channel) on the CPU: forward, and the gradients of input, weight and bias.
//
// What takes the time is memory, and memory is fastest when whole rows are read in order (measured: one block of channels at a
// time took up to four times as long). So rows with all their channels go through scratch memory, a window of as many as the
// kernel is high, each read once, and the sums are made there block by block of channels. The backward pass makes both gradients
// of a row of the result while that row is in the window. Work is cut into bands of rows by shape alone. Sums are fp32 (fp64 for
// fp64); those of weights are made per band, then joined in double in the order of the bands: results do not depend on the
// number of threads.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstdint>
#include <tuple>
#include <vector>

#include "depthwise_conv_rows.h"
#include "memory.h"

namespace fastnas::depthwise {
namespace {

constexpr int64_t kScratchBytes = 1 << 20;  // half of a second cache; what needs more is cut into groups of channels
constexpr int64_t kLeastBlocks = 8;         // in such a group
constexpr int64_t kBandNumbers = 1 << 20;   // a band reads a few rows of its neighbours' again
constexpr int64_t kNumbersPerThread = 1 << 16;

class Bands {
 public:
  Bands(const Convolution& conv, int64_t lanes, int64_t number_bytes) : conv_(conv), lanes_(lanes) {
    // What scratch memory holds of a channel: rows of the input, of the gradient, and one of the result.
    const int64_t scratch = (conv.kernel_height + 1) * (conv.width + conv.out_width);
    const int64_t all = (conv.channels + lanes - 1) / lanes;
    const int64_t most = std::max<int64_t>(kLeastBlocks, kScratchBytes / (scratch * lanes * number_bytes));
    groups_ = (all + most - 1) / most;
    blocks_ = (all + groups_ - 1) / groups_;
    const int64_t numbers = (conv.width * conv.stride_y + conv.out_width) * blocks_ * lanes;  // of a row of the result
    rows_ = std::clamp<int64_t>(kBandNumbers / numbers, 1, conv.out_height);
    per_image_ = (conv.out_height + rows_ - 1) / rows_;
    per_thread_ = std::max<int64_t>(1, kNumbersPerThread / (rows_ * numbers));
  }

  int64_t units() const { return conv_.images * per_image_; }
  int64_t count() const { return units() * groups_; }
  int64_t per_thread() const { return per_thread_; }
  int64_t blocks() const { return blocks_; }  // at most, in a band

  // Rows of the convolution's result.
  Band band(int64_t index) const {
    const int64_t unit = index / groups_, group = index % groups_, part = unit % per_image_;
    const int64_t channel = std::min(group * blocks_ * lanes_, conv_.channels);
    const int64_t channels = std::min(blocks_ * lanes_, conv_.channels - channel);
    return {unit, unit / per_image_, channel, channels, group * blocks_, (channels + lanes_ - 1) / lanes_, part * rows_,
            std::min((part + 1) * rows_, conv_.out_height)};
  }
  // The first row of the input whose gradient is computed after row y of the result's has come.
  int64_t input_row(int64_t y) const {
    return y >= conv_.out_height ? conv_.height : std::clamp<int64_t>(y * conv_.stride_y - conv_.top, 0, conv_.height);
  }

 private:
  const Convolution& conv_;
  int64_t lanes_, groups_, blocks_, rows_, per_image_, per_thread_;
};

template <typename S>
void forward(const Convolution& conv, const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, Tensor& out) {
  using A = accumulator_t<S>;
  Correlation<S> correlation(
      conv, forward_axis(conv.height, conv.out_height, conv.kernel_height, conv.stride_y, conv.top),
      forward_axis(conv.width, conv.out_width, conv.kernel_width, conv.stride_x, conv.left), weight, bias, read_view<S>(input),
      write_view<S>(out));
  const Bands bands(conv, kChannelLanes<A>, sizeof(A));
  torch::stable::parallel_for(0, bands.count(), bands.per_thread(), [&](int64_t first, int64_t last) {
    Window<S> window = correlation.window(bands.blocks());
    Memory<A> line = correlation.line(bands.blocks());
    for (int64_t index = first; index < last; ++index) {
      const Band band = bands.band(index);
      window.open(band, correlation.rows().first(band.from));
      for (int64_t y = band.from; y < band.to; ++y) correlation.run(band, y, window, line);
    }
  });
}

struct Wanted {
  bool input, weight, bias;
  bool sums() const { return weight || bias; }
};

template <typename S>
void backward(const Convolution& conv, const Tensor& grad, const Tensor& input, const Tensor& weight, Wanted wanted,
              Tensor& input_grad, Tensor& weight_grad, Tensor& bias_grad) {
  using A = accumulator_t<S>;
  Correlation<S> correlation(
      conv, gradient_axis(conv.height, conv.out_height, conv.kernel_height, conv.stride_y, conv.top),
      gradient_axis(conv.width, conv.out_width, conv.kernel_width, conv.stride_x, conv.left), weight, std::nullopt,
      read_view<S>(grad), wanted.input ? write_view<S>(input_grad) : View<S>{});
  const Bands bands(conv, kChannelLanes<A>, sizeof(A));
  WeightGradient<S> gradient(conv, wanted.sums() ? bands.units() : 0, read_view<S>(input));
  torch::stable::parallel_for(0, bands.count(), bands.per_thread(), [&](int64_t first, int64_t last) {
    Window<S> grads = correlation.window(bands.blocks()), inputs = gradient.window(bands.blocks());
    Memory<A> line = correlation.line(bands.blocks());
    for (int64_t index = first; index < last; ++index) {
      const Band band = bands.band(index);
      grads.open(band, wanted.input ? band.from + 1 - correlation.rows().most_taps() : band.from);
      inputs.open(band, band.from * conv.stride_y - conv.top);
      for (int64_t y = band.from; y < band.to; ++y) {
        if (wanted.sums()) gradient.run(band, y, wanted.bias, grads, inputs);
        if (!wanted.input) continue;
        // The first band has what lies above all windows, the last what lies below.
        const int64_t begin = y == 0 ? 0 : bands.input_row(y), end = bands.input_row(y + 1);
        for (int64_t row = begin; row < end; ++row) correlation.run(band, row, grads, line);
      }
    }
  });
  if (wanted.weight) gradient.write_sums(0, conv.taps(), static_cast<A*>(weight_grad.mutable_data_ptr()));
  if (wanted.bias) gradient.write_sums(conv.taps(), 1, static_cast<A*>(bias_grad.mutable_data_ptr()));
}

Tensor depthwise_conv2d(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                        const std::vector<int64_t>& stride, const std::vector<int64_t>& padding) {
  const Convolution conv = describe(input, weight, stride, padding);
  if (bias) check_channels(*bias, "bias", input);
  Tensor out = empty_in_layout({conv.images, conv.channels, conv.out_height, conv.out_width}, input.scalar_type(), input,
                               is_channels_last(input));
  ask_for_large_pages(out);
  if (conv.empty()) return out;
  with_storage(input.scalar_type(), "input",
               [&](auto storage) { forward<decltype(storage)>(conv, input, weight, bias, out); });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> depthwise_conv2d_backward(
    const Tensor& grad, const Tensor& input, const Tensor& weight, const std::vector<int64_t>& stride,
    const std::vector<int64_t>& padding, const std::vector<bool>& wanted) {
  const Convolution conv = describe(input, weight, stride, padding);
  check_gradient(grad, input, conv);
  check(wanted.size() == 3, "wanted: expected three answers (input, weight, bias), got ", wanted.size());
  const ScalarType type = input.scalar_type();
  const ScalarType sums = type == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  Tensor input_grad = wanted[0] ? empty_in_layout({conv.images, conv.channels, conv.height, conv.width}, type, input,
                                                  is_channels_last(input))
                                : torch::stable::new_empty(input, {0}, type);
  ask_for_large_pages(input_grad);
  // Zeros: right where there are no images.
  Tensor weight_grad = wanted[1] ? torch::stable::new_zeros(
                                       input, {conv.channels, 1, conv.kernel_height, conv.kernel_width}, sums)
                                 : torch::stable::new_empty(input, {0}, sums);
  Tensor bias_grad = torch::stable::new_zeros(input, {wanted[2] ? conv.channels : 0}, sums);
  if (!conv.empty()) {
    const Tensor same_type = torch::stable::to(grad, type);
    with_storage(type, "input", [&](auto storage) {
      backward<decltype(storage)>(conv, same_type, input, weight, {wanted[0], wanted[1], wanted[2]}, input_grad, weight_grad,
                                  bias_grad);
    });
  }
  return {input_grad, torch::stable::to(weight_grad, weight.scalar_type()),
          torch::stable::to(bias_grad, weight.scalar_type())};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastnas, CPU, m) {
  m.impl("depthwise_conv2d", TORCH_BOX(&depthwise_conv2d));
  m.impl("depthwise_conv2d_backward", TORCH_BOX(&depthwise_conv2d_backward));
}

}  // namespace fastnas::depthwise
