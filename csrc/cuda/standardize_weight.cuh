// Weight standardisation of all convolutions of a model on the GPU, without torch: one launch forward, one backward.
//
// The layers travel by value in the kernel's parameters (constant memory; up to 32 KB, which sm_70 and CUDA 12.1 allow), so
// there is no table to copy and the launch can be captured. One block of four warps owns 1, 2 or 4 filters (four, two or one
// warps each, by the size K of a filter) and keeps them in shared memory as fp32, so weights are read once from memory and
// mean and variance are exact two-pass sums. Bytes: forward 4 K + 2 K (fp32 to bf16), backward 4 K + 2 K + 4 K, the floor.
// A change of order, (i, y, x) to (y, x, i) for channels-last, happens on the way out of shared memory: lanes walk over the
// inputs, whose step kh * kw is odd, so no two lanes meet in a bank. Filters beyond 96 KB are read again instead of kept.
// No atomics: every sum has a fixed order, so results repeat bit by bit.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "../standardize_weight.h"
#include "vector.cuh"

namespace fastnas::cuda {

constexpr int kStandardizeWarps = 4;
constexpr int kStandardizeThreads = 32 * kStandardizeWarps;
constexpr int kStandardizeBlocks = 10;           // per multiprocessor that registers must allow: up to 51 a thread, and no spill
constexpr int kBlockElements = 4096;             // of all filters of a block, as long as one filter is not larger
constexpr int kMostShared = 96 << 10;            // bytes a block may keep; sm_80 and later all have 99 KB or more
constexpr int kMostLayers = 192;                 // of a launch: 17 KB of parameters, enough for ResNet-152

// One convolution, [rows, inputs, kh, kw]. Order of a filter: (y, x, i) where `innermost`, else (i, y, x).
struct FilterLayer {
  const void* weight;  // filters weight_stride elements apart
  const void* grad;    // backward: gradient of the result, filters grad_stride apart
  void* out;           // dense: the result, or backward the gradient of the weight (in the weight's order)
  const float* gain;   // [rows] or null
  float* gain_grad;    // backward: [rows], null without gain
  int64_t weight_stride, grad_stride;
  int32_t rows, inputs, taps;
  int32_t first_row;    // in the statistics
  int32_t first_block;  // in the launch
  float scale;
  int8_t warps;  // per filter: 1, 2 or 4
  bool weight_innermost, other_innermost;  // other: the result, or backward the gradient of the result
  bool weight_packs, grad_packs, out_packs;  // four elements at a time: aligned and K a multiple of 4
};

static_assert(sizeof(FilterLayer) * kMostLayers + 1024 < 32764, "the parameters of a kernel");

struct FilterTable {
  FilterLayer layers[kMostLayers];
  int32_t count;

  __device__ __forceinline__ const FilterLayer& of_block(int32_t block) const {
    int low = 0, high = count - 1;  // the last layer that begins at or before the block
    while (low < high) {
      const int middle = (low + high + 1) / 2;
      if (layers[middle].first_block <= block) {
        low = middle;
      } else {
        high = middle - 1;
      }
    }
    return layers[low];
  }
};

// The part of a block that works on one filter. All threads of a block go through the same barriers, with a filter or without.
struct FilterTeam {
  int row;      // of the layer
  int slot;     // among the filters of the block
  int lane;     // among the threads of the filter
  int threads;  // of the filter
  bool active;  // the last block of a layer may have fewer filters

  __device__ __forceinline__ explicit FilterTeam(const FilterLayer& layer) {
    threads = 32 * layer.warps;
    slot = static_cast<int>(threadIdx.x) / threads;
    lane = static_cast<int>(threadIdx.x) % threads;
    row = (static_cast<int>(blockIdx.x) - layer.first_block) * (kStandardizeWarps / layer.warps) + slot;
    active = row < layer.rows;
  }
  // The sum of `value` over the threads of the filter, the same in all of them. `partial`: one float per warp, each call its own.
  __device__ __forceinline__ float sum(float value, float* partial) const {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
    if (threads == 32) return value;
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
    __syncthreads();  // the same `threads` in the whole block
    const int first = slot * threads / 32;
    float total = partial[first];
    for (int w = 1; w < threads / 32; ++w) total += partial[first + w];
    return total;
  }
};

// visit(k) for each element of a filter, or visit_pack(k) for each four.
template <typename Visit, typename VisitPack>
__device__ __forceinline__ void walk(
    const FilterTeam& team, int size, bool packs, const Visit& visit, const VisitPack& visit_pack) {
  if (packs) {
#pragma unroll 4
    for (int k = 4 * team.lane; k < size; k += 4 * team.threads) visit_pack(k);
  } else {
    for (int k = team.lane; k < size; k += team.threads) visit(k);
  }
}

// visit(by_input, by_tap): the place of each element in both orders; neighbouring lanes have neighbouring inputs.
template <typename Visit>
__device__ __forceinline__ void walk_both_orders(const FilterTeam& team, int inputs, int taps, const Visit& visit) {
  for (int i = team.lane; i < inputs; i += team.threads) {
#pragma unroll 9
    for (int t = 0; t < taps; ++t) visit(i * taps + t, t * inputs + i);
  }
}

// Loads through the read-only path: the compiler may then start many before it stores what came first.
template <typename S>
__device__ __forceinline__ float read_element(const S* from) {
  return widen(__ldg(from));
}
__device__ __forceinline__ Pack<float, 4> read_pack(const float* from) {
  const float4 raw = __ldg(reinterpret_cast<const float4*>(from));
  return {{raw.x, raw.y, raw.z, raw.w}};
}
template <typename S>
__device__ __forceinline__ Pack<float, 4> read_pack(const S* from) {
  static_assert(sizeof(S) == 2);
  union {
    uint2 bits;
    Pack<S, 4> pack;
  } raw = {__ldg(reinterpret_cast<const uint2*>(from))};
  return {{widen(raw.pack.value[0]), widen(raw.pack.value[1]), widen(raw.pack.value[2]), widen(raw.pack.value[3])}};
}

// Shared memory of one filter: a multiple of four floats, so that packs are aligned.
FASTNAS_HD int padded(int size) { return (size + 3) / 4 * 4; }

// A filter in shared memory, or in global memory where it is too large for that.
template <typename S, bool kKept>
struct FilterRow {
  const S* memory;
  float* kept;  // shared memory if kKept

  __device__ __forceinline__ float at(int k) const {
    if constexpr (kKept) return kept[k];
    return read_element(memory + k);
  }
  __device__ __forceinline__ Pack<float, 4> pack(int k) const {
    if constexpr (kKept) return load_pack<4>(static_cast<const float*>(kept) + k);
    return read_pack(memory + k);
  }
  // Copies the filter into shared memory if kKept; returns this thread's share of the sum.
  __device__ __forceinline__ float keep(const FilterTeam& team, int size, bool packs) const {
    float sum = 0.0f;
    walk(
        team, size, packs,
        [&](int k) {
          const float value = read_element(memory + k);
          if constexpr (kKept) kept[k] = value;
          sum += value;
        },
        [&](int k) {
          const Pack<float, 4> values = read_pack(memory + k);
          if constexpr (kKept) store_pack<4>(kept + k, values);
          sum += (values.value[0] + values.value[1]) + (values.value[2] + values.value[3]);
        });
    return sum;
  }
};

template <bool kKept, typename S, typename T>
__device__ __forceinline__ void standardize_filter(
    const FilterLayer& layer, float eps, bool unbiased, float* kept, float* __restrict__ stats, int64_t stats_rows) {
  __shared__ float sums[kStandardizeWarps], square_sums[kStandardizeWarps];
  const FilterTeam team(layer);
  const int inputs = layer.inputs, taps = layer.taps, size = inputs * taps;
  const int64_t row = team.active ? team.row : 0;  // so that addresses stay inside
  const FilterRow<S, kKept> weight{
      static_cast<const S*>(layer.weight) + row * layer.weight_stride, kept + team.slot * padded(size)};
  const int mine = team.active ? size : 0;

  const float mean = team.sum(weight.keep(team, mine, layer.weight_packs), sums) / static_cast<float>(size);
  float squares = 0.0f;  // each thread reads what it wrote itself: no barrier before
  walk(
      team, mine, layer.weight_packs,
      [&](int k) {
        const float distance = weight.at(k) - mean;
        squares += distance * distance;
      },
      [&](int k) {
        const Pack<float, 4> values = weight.pack(k);
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const float distance = values.value[e] - mean;
          squares += distance * distance;
        }
      });
  squares = team.sum(squares, square_sums);
  const FilterStats<float> of_filter = filter_stats(mean, squares, static_cast<int64_t>(size), eps, unbiased);
  if (team.active && team.lane == 0) {
    const int64_t at = layer.first_row + row;
    stats[at] = of_filter.mean;
    stats[stats_rows + at] = of_filter.rstd;
    stats[2 * stats_rows + at] = of_filter.pull;
  }

  const float slope = of_filter.rstd * (layer.scale * (layer.gain ? layer.gain[row] : 1.0f));
  T* __restrict__ out = static_cast<T*>(layer.out) + row * size;
  __syncthreads();  // from here on threads read what others wrote
  if (layer.weight_innermost == layer.other_innermost) {
    walk(
        team, mine, layer.weight_packs && layer.out_packs, [&](int k) { narrow((weight.at(k) - mean) * slope, out[k]); },
        [&](int k) {
          const Pack<float, 4> values = weight.pack(k);
          Pack<T, 4> result;
#pragma unroll
          for (int e = 0; e < 4; ++e) narrow((values.value[e] - mean) * slope, result.value[e]);
          store_pack<4>(out + k, result);
        });
  } else if (team.active) {
    const bool from_inputs = !layer.weight_innermost;
    walk_both_orders(team, inputs, taps, [&](int by_input, int by_tap) {
      const float value = weight.at(from_inputs ? by_input : by_tap);
      narrow((value - mean) * slope, out[from_inputs ? by_tap : by_input]);
    });
  }
}

// The gradient of the weight, and of the gain where there is one.
template <bool kKept, typename S, typename G>
__device__ __forceinline__ void differentiate_filter(
    const FilterLayer& layer, float* kept, const float* __restrict__ stats, int64_t stats_rows) {
  __shared__ float sums[kStandardizeWarps], product_sums[kStandardizeWarps];
  const FilterTeam team(layer);
  const int inputs = layer.inputs, taps = layer.taps, size = inputs * taps;
  const int64_t row = team.active ? team.row : 0;
  const bool innermost = layer.weight_innermost, same_order = innermost == layer.other_innermost;
  float* const slot = kept + team.slot * 2 * padded(size);
  const FilterRow<S, kKept> weight{static_cast<const S*>(layer.weight) + row * layer.weight_stride, slot};
  const FilterRow<G, kKept> grad{static_cast<const G*>(layer.grad) + row * layer.grad_stride, slot + padded(size)};
  const int mine = team.active ? size : 0;

  if constexpr (kKept) {
    weight.keep(team, mine, layer.weight_packs);
    if (same_order) {
      grad.keep(team, mine, layer.grad_packs);
    } else if (team.active) {
      walk_both_orders(team, inputs, taps, [&](int by_input, int by_tap) {
        grad.kept[innermost ? by_tap : by_input] = read_element(grad.memory + (innermost ? by_input : by_tap));
      });
    }
  }
  __syncthreads();
  // The gradient at place k of the weight's order. Divisions only where nothing is kept.
  const auto grad_at = [&](int k) {
    if (kKept || same_order) return grad.at(k);
    return grad.at(innermost ? k % inputs * taps + k / inputs : k % taps * inputs + k / taps);
  };

  const int64_t at = layer.first_row + row;
  const FilterStats<float> of_filter{stats[at], stats[stats_rows + at], stats[2 * stats_rows + at]};
  const bool packs = kKept && size % 4 == 0;
  float grad_sum = 0.0f, product = 0.0f;
  walk(
      team, mine, packs,
      [&](int k) {
        const float value = grad_at(k);
        grad_sum += value;
        product += value * (weight.at(k) - of_filter.mean);
      },
      [&](int k) {
        const Pack<float, 4> values = weight.pack(k), grads = grad.pack(k);
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          grad_sum += grads.value[e];
          product += grads.value[e] * (values.value[e] - of_filter.mean);
        }
      });
  grad_sum = team.sum(grad_sum, sums);
  product = team.sum(product, product_sums) * of_filter.rstd;

  const float factor = layer.scale * (layer.gain ? layer.gain[row] : 1.0f);
  if (layer.gain_grad && team.active && team.lane == 0) layer.gain_grad[row] = layer.scale * product;
  const FilterGradient<float> slopes =
      filter_gradient(of_filter, factor, grad_sum, product, static_cast<int64_t>(size));
  S* __restrict__ out = static_cast<S*>(layer.out) + row * size;
  const auto gradient = [&](float grad_value, float value) {
    return slopes.grad_slope * grad_value + (slopes.weight_slope * (value - of_filter.mean) + slopes.offset);
  };
  walk(
      team, mine, packs && layer.out_packs, [&](int k) { narrow(gradient(grad_at(k), weight.at(k)), out[k]); },
      [&](int k) {
        const Pack<float, 4> values = weight.pack(k), grads = grad.pack(k);
        Pack<S, 4> result;
#pragma unroll
        for (int e = 0; e < 4; ++e) narrow(gradient(grads.value[e], values.value[e]), result.value[e]);
        store_pack<4>(out + k, result);
      });
}

// stats: [3, stats_rows]; dynamic shared memory: padded(K) floats per filter of a block, nothing for layers whose K is above
// `most_kept`.
template <typename S, typename T>
__global__ void __launch_bounds__(kStandardizeThreads, kStandardizeBlocks) standardize_filters(
    const __grid_constant__ FilterTable table, float eps, bool unbiased, int most_kept,
    float* __restrict__ stats, int64_t stats_rows) {
  extern __shared__ __align__(16) float kept_filters[];
  const FilterLayer& layer = table.of_block(static_cast<int32_t>(blockIdx.x));
  if (layer.inputs * layer.taps <= most_kept) {
    standardize_filter<true, S, T>(layer, eps, unbiased, kept_filters, stats, stats_rows);
  } else {
    standardize_filter<false, S, T>(layer, eps, unbiased, kept_filters, stats, stats_rows);
  }
}

// The same with 2 * padded(K) floats per filter.
template <typename S, typename G>
__global__ void __launch_bounds__(kStandardizeThreads, kStandardizeBlocks) standardize_filters_backward(
    const __grid_constant__ FilterTable table, int most_kept, const float* __restrict__ stats, int64_t stats_rows) {
  extern __shared__ __align__(16) float kept_filters[];
  const FilterLayer& layer = table.of_block(static_cast<int32_t>(blockIdx.x));
  if (layer.inputs * layer.taps <= most_kept) {
    differentiate_filter<true, S, G>(layer, kept_filters, stats, stats_rows);
  } else {
    differentiate_filter<false, S, G>(layer, kept_filters, stats, stats_rows);
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Launches

// How many warps a filter of this size gets.
inline int filter_warps(int64_t size) {
  if (size <= kBlockElements / 4) return 1;
  return size <= kBlockElements / 2 ? 2 : 4;
}

// Calls launch(table, blocks, shared bytes, most_kept) for each bundle of up to kMostLayers layers. `rows_kept`: filters that a
// block keeps per filter it owns (1 forward, 2 backward).
template <typename Launch>
cudaError_t launch_bundles(const FilterLayer* layers, int64_t count, int rows_kept, const Launch& launch) {
  for (int64_t begin = 0; begin < count; begin += kMostLayers) {
    FilterTable table;
    table.count = static_cast<int32_t>(count - begin < kMostLayers ? count - begin : kMostLayers);
    int64_t blocks = 0;
    int shared = 0;
    const int most_kept = kMostShared / (rows_kept * static_cast<int>(sizeof(float))) / 4 * 4;
    for (int l = 0; l < table.count; ++l) {
      FilterLayer& layer = table.layers[l] = layers[begin + l];
      const int64_t size = static_cast<int64_t>(layer.inputs) * layer.taps;
      layer.warps = static_cast<int8_t>(filter_warps(size));
      layer.first_block = static_cast<int32_t>(blocks);
      const int filters = kStandardizeWarps / layer.warps;
      blocks += (layer.rows + filters - 1) / filters;
      if (size > most_kept) continue;
      const int bytes = filters * rows_kept * padded(static_cast<int>(size)) * static_cast<int>(sizeof(float));
      shared = bytes > shared ? bytes : shared;
    }
    if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
    const cudaError_t status = launch(table, static_cast<unsigned>(blocks), shared, most_kept);
    if (status != cudaSuccess) return status;
  }
  return cudaSuccess;
}

template <typename Kernel, typename... Arguments>
cudaError_t launch_filters(Kernel kernel, unsigned blocks, int shared, cudaStream_t stream, const Arguments&... arguments) {
  if (shared > 48 << 10) {  // more than every kernel may have without asking
    const cudaError_t status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
    if (status != cudaSuccess) return status;
  }
  kernel<<<blocks, kStandardizeThreads, shared, stream>>>(arguments...);
  return cudaGetLastError();
}

// S: type of the weights, T: of the results. Layers without elements must have been left out.
template <typename S, typename T>
cudaError_t standardize(
    const FilterLayer* layers, int64_t count, float eps, bool unbiased, float* stats, int64_t stats_rows, cudaStream_t stream) {
  const auto launch = [&](const FilterTable& table, unsigned blocks, int shared, int most_kept) {
    return launch_filters(standardize_filters<S, T>, blocks, shared, stream, table, eps, unbiased, most_kept, stats,
                          stats_rows);
  };
  return launch_bundles(layers, count, 1, launch);
}

// S: type of the weights and their gradients, G: of the gradients of the results.
template <typename S, typename G>
cudaError_t standardize_backward(
    const FilterLayer* layers, int64_t count, const float* stats, int64_t stats_rows, cudaStream_t stream) {
  const auto launch = [&](const FilterTable& table, unsigned blocks, int shared, int most_kept) {
    return launch_filters(standardize_filters_backward<S, G>, blocks, shared, stream, table, most_kept, stats,
                          stats_rows);
  };
  return launch_bundles(layers, count, 2, launch);
}

}  // namespace fastnas::cuda
