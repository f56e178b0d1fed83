// How a depthwise convolution on the CPU is seen and cut.
//
// Forward and the gradient of the input are one computation: along either axis the t-th cell of a phase of the result sums
// `taps` neighbouring cells of the source from base + stride * t on. Forward has one phase and the convolution's stride; the
// gradient has a phase for each remainder by the convolution's stride, and stride 1: no zeros are put between cells.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "depthwise_conv_kernels.h"

namespace fastnas::depthwise {

struct Phase {
  int64_t base, taps;
  int64_t first, step;  // the j-th cell meets the kernel's cell first + step * j
};

struct Axis {
  int64_t source, result, stride;
  std::vector<Phase> phases;  // of the result's cells 0, 1, ..., repeated

  int64_t count(size_t phase) const {
    const int64_t all = static_cast<int64_t>(phases.size()), own = static_cast<int64_t>(phase);
    return result > own ? (result - own + all - 1) / all : 0;
  }
  int64_t first(int64_t cell) const {  // of the source, that a cell of the result sums; may lie before its begin
    const int64_t all = static_cast<int64_t>(phases.size());
    return phases[cell % all].base + stride * (cell / all);
  }
  int64_t before() const {  // cells in front of the source that are read
    int64_t most = 0;
    for (const Phase& phase : phases) most = std::max(most, -phase.base);
    return most;
  }
  int64_t most_taps() const {
    int64_t most = 1;
    for (const Phase& phase : phases) most = std::max(most, phase.taps);
    return most;
  }
};

inline Axis forward_axis(int64_t input, int64_t output, int64_t kernel, int64_t stride, int64_t padding) {
  return {input, output, stride, {{-padding, kernel, 0, 1}}};
}

inline Axis gradient_axis(int64_t input, int64_t output, int64_t kernel, int64_t stride, int64_t padding) {
  Axis axis{output, input, 1, {}};
  for (int64_t phase = 0; phase < stride; ++phase) {
    const int64_t cell = (phase + padding) % stride;  // the first of the kernel that meets this phase
    const int64_t taps = cell < kernel ? (kernel - 1 - cell) / stride + 1 : 0;
    axis.phases.push_back({(phase + padding - cell) / stride - (taps - 1), taps, cell + stride * (taps - 1), -stride});
  }
  return axis;
}

// Scratch memory that begins at a register's boundary: loads across one cost twice.
template <typename A>
class Memory {
 public:
  explicit Memory(int64_t size) : all_(size + kChannelLanes<A>) {}
  A* data() {
    const uintptr_t address = reinterpret_cast<uintptr_t>(all_.data());
    return reinterpret_cast<A*>((address + kRegister - 1) / kRegister * kRegister);
  }

 private:
  std::vector<A> all_;
};

// Elements between neighbouring images, channels, rows and columns of a map.
template <typename S>
struct View {
  S* data;
  int64_t image, channel, row, column;
};

// Some rows of some channels of one image.
struct Band {
  int64_t unit;  // its number among those of the same channels
  int64_t image, channel, channels, first_block, blocks, from, to;
};

}  // namespace fastnas::depthwise
