// Rows of maps in scratch memory, and what is summed from them. For depthwise_conv.cpp alone.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <type_traits>
#include <vector>

#include "depthwise_conv_call.h"
#include "depthwise_conv_plan.h"
#include "storage.h"

namespace fastnas::depthwise {
namespace {

FASTNAS_CLONES void correlate(const RowJob<float>& job) { correlate_body(job); }
FASTNAS_CLONES void correlate(const RowJob<double>& job) { correlate_body(job); }
FASTNAS_CLONES void sum_weights(const WeightJob<float>& job) { weight_body(job); }
FASTNAS_CLONES void sum_weights(const WeightJob<double>& job) { weight_body(job); }
FASTNAS_CLONES void read(const CopyJob<const float>& job) { read_body(job); }
FASTNAS_CLONES void read(const CopyJob<const double>& job) { read_body(job); }
FASTNAS_CLONES void read(const CopyJob<const BFloat16>& job) { read_body(job); }
FASTNAS_CLONES void read(const CopyJob<const Float16>& job) { read_body(job); }
FASTNAS_CLONES void write(const CopyJob<float>& job) { write_body(job); }
FASTNAS_CLONES void write(const CopyJob<double>& job) { write_body(job); }
FASTNAS_CLONES void write(const CopyJob<BFloat16>& job) { write_body(job); }
FASTNAS_CLONES void write(const CopyJob<Float16>& job) { write_body(job); }

template <typename S>
View<const S> read_view(const Tensor& map) {
  return {static_cast<const S*>(map.const_data_ptr()), map.stride(0), map.stride(1), map.stride(2), map.stride(3)};
}
template <typename S>
View<S> write_view(Tensor& map) {
  return {static_cast<S*>(map.mutable_data_ptr()), map.stride(0), map.stride(1), map.stride(2), map.stride(3)};
}

// ---------------------------------------------------------------------------------------------------------------------
// Rows of the band's channels, in scratch memory as blocks of channels

template <typename A>
int64_t blocks_of(int64_t channels) {
  return (channels + kChannelLanes<A> - 1) / kChannelLanes<A>;
}

// Between neighbouring blocks: no multiple of a page, where all blocks would fight for the same places in the first cache.
template <typename A>
int64_t block_stride(int64_t columns) {
  return (columns + (columns % 2 == 0)) * kChannelLanes<A>;
}

template <typename S, typename A>
CopyJob<S> row_job(const View<S>& map, const Band& band, int64_t y, int64_t columns, A* scratch, int64_t stride) {
  S* const data = map.data + band.image * map.image + band.channel * map.channel + y * map.row;
  return {data, band.channels, columns, map.channel, map.column, scratch, stride};
}

// The last rows of a map that were read.
template <typename S>
class Window {
 public:
  using A = accumulator_t<S>;
  // before: columns of zeros in front of the map's `width`; columns: zeros behind them included
  Window(View<const S> map, int64_t height, int64_t width, int64_t rows, int64_t before, int64_t columns, int64_t blocks)
      : map_(map), height_(height), width_(width), rows_(rows), stride_(block_stride<A>(columns)), row_(blocks * stride_),
        before_(before * kChannelLanes<A>), memory_((rows + 1) * row_), found_(rows) {}

  void open(const Band& band, int64_t first) {
    band_ = band;
    next_ = std::max<int64_t>(0, first);
  }
  // The block's rows from `first` on, at the map's column `column`; zeros where the map has none.
  const A* const* rows(int64_t first, int64_t count, int64_t block, int64_t column) {
    for (; next_ < std::min(first + count, height_); ++next_) {
      read(row_job(map_, band_, next_, width_, slot(next_ % rows_) + before_, stride_));
    }
    for (int64_t r = 0; r < count; ++r) {
      const int64_t y = first + r;
      found_[r] = slot(y < 0 || y >= height_ ? rows_ : y % rows_) + block * stride_ + before_ + column * kChannelLanes<A>;
    }
    return found_.data();
  }

 private:
  A* slot(int64_t index) { return memory_.data() + index * row_; }

  View<const S> map_;
  int64_t height_, width_, rows_, stride_, row_, before_;
  Memory<A> memory_;  // the last row: zeros
  std::vector<const A*> found_;
  Band band_{};
  int64_t next_ = 0;
};

// ---------------------------------------------------------------------------------------------------------------------
// Forward and the gradient of the input

template <typename A>
class Filters {
 public:
  Filters(const Convolution& conv, const Axis& rows, const Axis& columns, const Tensor& weight,
          const std::optional<Tensor>& bias)
      : per_block_(conv.taps() * kChannelLanes<A>),
        memory_(blocks_of<A>(conv.channels) * (per_block_ + kChannelLanes<A>)) {
    constexpr auto type = std::is_same_v<A, double> ? ScalarType::Double : ScalarType::Float;
    constexpr int64_t kLanes = kChannelLanes<A>;
    const Tensor wide = torch::stable::contiguous(torch::stable::to(weight, type));
    const A* values = static_cast<const A*>(wide.const_data_ptr());
    starts_ = memory_.data() + blocks_of<A>(conv.channels) * per_block_;
    if (bias) {
      const Tensor wide_bias = torch::stable::contiguous(torch::stable::to(*bias, type));
      std::copy_n(static_cast<const A*>(wide_bias.const_data_ptr()), conv.channels, starts_);
    }
    // The order of the cells of a block: by phases of rows and columns, then as rows and columns are summed.
    std::vector<int64_t> cells;
    for (const Phase& y : rows.phases) {
      for (const Phase& x : columns.phases) {
        first_.push_back(static_cast<int64_t>(cells.size()) * kLanes);
        for (int64_t j = 0; j < y.taps; ++j) {
          for (int64_t i = 0; i < x.taps; ++i) {
            cells.push_back((y.first + y.step * j) * conv.kernel_width + x.first + x.step * i);
          }
        }
      }
    }
    for (int64_t c = 0; c < conv.channels; ++c) {
      A* to = memory_.data() + c / kLanes * per_block_ + c % kLanes;
      for (const int64_t cell : cells) {
        *to = values[c * conv.taps() + cell];
        to += kLanes;
      }
    }
  }

  const A* weights(int64_t block, size_t phases) { return memory_.data() + block * per_block_ + first_[phases]; }
  const A* start(int64_t block) const { return starts_ + block * kChannelLanes<A>; }

 private:
  int64_t per_block_;
  Memory<A> memory_;
  A* starts_;
  std::vector<int64_t> first_;
};

template <typename S>
class Correlation {
 public:
  using A = accumulator_t<S>;
  static constexpr int64_t kLanes = kChannelLanes<A>;

  Correlation(const Convolution& conv, const Axis& rows, const Axis& columns, const Tensor& weight,
              const std::optional<Tensor>& bias, View<const S> source, View<S> result)
      : rows_(rows), columns_(columns), filters_(conv, rows, columns, weight, bias), source_(source), result_(result) {}

  Window<S> window(int64_t blocks) const {
    int64_t most = columns_.before() + columns_.source;
    for (size_t p = 0; p < columns_.phases.size(); ++p) {
      const Phase& phase = columns_.phases[p];
      most = std::max(most, columns_.before() + phase.base + columns_read(columns_.count(p), phase.taps, columns_.stride));
    }
    return {source_, rows_.source, columns_.source, rows_.most_taps(), columns_.before(), most, blocks};
  }
  Memory<A> line(int64_t blocks) const { return Memory<A>(blocks * block_stride<A>(columns_.result)); }

  // Row y of the result. line: memory for it.
  void run(const Band& band, int64_t y, Window<S>& window, Memory<A>& line) {
    const size_t row_phase = static_cast<size_t>(y) % rows_.phases.size(), phases = columns_.phases.size();
    const Phase& rows = rows_.phases[row_phase];
    const int64_t top = rows_.first(y), skipped = std::max<int64_t>(0, -top);
    const int64_t count = std::max<int64_t>(0, std::min(rows.taps, rows_.source - top) - skipped);
    const auto out = row_job(result_, band, y, columns_.result, line.data(), block_stride<A>(columns_.result));
    for (int64_t block = 0; block < band.blocks; ++block) {
      for (size_t p = 0; p < phases; ++p) {
        const Phase& phase = columns_.phases[p];
        RowJob<A> job;
        job.rows = phase.taps > 0 ? count : 0;
        job.source = job.rows > 0 ? window.rows(top + skipped, count, block, phase.base) : nullptr;
        job.weights = filters_.weights(band.first_block + block, row_phase * phases + p) + skipped * phase.taps * kLanes;
        job.start = filters_.start(band.first_block + block);
        job.taps = std::max<int64_t>(1, phase.taps);
        job.stride = columns_.stride;
        job.count = columns_.count(p);
        job.result = line.data() + block * out.block_stride + static_cast<int64_t>(p) * kLanes;
        job.step = static_cast<int64_t>(phases) * kLanes;
        job.wide = wide_registers();
        correlate(job);
      }
    }
    write(out);
  }

  const Axis& rows() const { return rows_; }

 private:
  Axis rows_, columns_;
  Filters<A> filters_;
  View<const S> source_;
  View<S> result_;
};

// ---------------------------------------------------------------------------------------------------------------------
// The gradients of weight and bias

template <typename S>
class WeightGradient {
 public:
  using A = accumulator_t<S>;
  static constexpr int64_t kLanes = kChannelLanes<A>;

  WeightGradient(const Convolution& conv, int64_t units, View<const S> input)
      : conv_(conv), input_(input), per_block_((conv.taps() + 1) * kLanes),
        per_unit_(blocks_of<A>(conv.channels) * per_block_), units_(units), sums_(units * per_unit_) {}

  Window<S> window(int64_t blocks) const {
    const int64_t read = (conv_.out_width - 1) * conv_.stride_x + conv_.kernel_width;
    return {input_, conv_.height, conv_.width, conv_.kernel_height, conv_.left,
            std::max(conv_.left + conv_.width, read), blocks};
  }

  // Adds what row y of the gradient contributes.
  void run(const Band& band, int64_t y, bool bias, Window<S>& grads, Window<S>& inputs) {
    for (int64_t block = 0; block < band.blocks; ++block) {
      WeightJob<A> job;
      job.source = inputs.rows(y * conv_.stride_y - conv_.top, conv_.kernel_height, block, -conv_.left);
      job.grad = grads.rows(y, 1, block, 0)[0];
      job.rows = conv_.kernel_height;
      job.taps = conv_.kernel_width;
      job.stride = conv_.stride_x;
      job.count = conv_.out_width;
      job.wide = wide_registers();
      job.sums = sums_.data() + band.unit * per_unit_ + (band.first_block + block) * per_block_;
      sum_weights(job);
      if (!bias) continue;
      const A* const one = ones();  // a map of ones: the sum of the gradients
      job.source = &one;
      job.rows = job.taps = 1;
      job.stride = 0;
      job.sums += conv_.taps() * kLanes;
      sum_weights(job);
    }
  }

  // result: [channels, cells]; first_cell: where they begin in the sums of a block.
  void write_sums(int64_t first_cell, int64_t cells, A* result) {
    std::vector<double> totals(cells * kLanes);
    for (int64_t block = 0; block < blocks_of<A>(conv_.channels); ++block) {
      std::fill(totals.begin(), totals.end(), 0.0);
      for (int64_t unit = 0; unit < units_; ++unit) {
        const A* own = sums_.data() + unit * per_unit_ + block * per_block_ + first_cell * kLanes;
        for (int64_t i = 0; i < cells * kLanes; ++i) totals[i] += own[i];
      }
      const int64_t channels = std::min(kLanes, conv_.channels - block * kLanes);
      for (int64_t c = 0; c < channels; ++c) {
        for (int64_t i = 0; i < cells; ++i) result[(block * kLanes + c) * cells + i] = static_cast<A>(totals[i * kLanes + c]);
      }
    }
  }

 private:
  static const A* ones() {
    struct alignas(kRegister) Ones {
      A values[kLanes];
      Ones() { std::fill_n(values, kLanes, A(1)); }
    };
    static const Ones all;
    return all.values;
  }

  const Convolution& conv_;
  View<const S> input_;
  int64_t per_block_, per_unit_, units_;
  Memory<A> sums_;  // [units, blocks, taps and one for the bias, lanes]
};

}  // namespace
}  // namespace fastnas::depthwise
